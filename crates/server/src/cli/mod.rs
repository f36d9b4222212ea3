//! The command line: the node and its tools.

mod bench;
mod bucket;
mod cluster;
mod command;
mod connection;
mod exit;
mod explain;
mod keys;
mod layout;
mod node;
mod output;
mod repair;
mod ring;
mod status;

pub(crate) use command::run;
