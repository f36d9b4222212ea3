//! A node's process: its start, its threads, and its stop.

mod acceptor;
mod cluster_init;
mod data_folder;
mod faults;
mod layout_checks;
mod membership;
mod process;
mod serve;
mod signals;
mod worker;

pub(crate) use serve::serve;
