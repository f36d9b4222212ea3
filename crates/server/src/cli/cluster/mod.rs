//! The command `cluster`: shows and changes the nodes of the cluster, and their shares.

mod command;
mod plan;
mod show;
mod transfers;

pub(super) use command::ClusterCommand;
