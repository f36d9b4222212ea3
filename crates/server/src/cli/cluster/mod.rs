//! The command `cluster`: shows and changes the members of the cluster, and their shares of the
//! data.

mod command;
mod plan;
mod show;
mod transfers;

pub(super) use command::ClusterCommand;
