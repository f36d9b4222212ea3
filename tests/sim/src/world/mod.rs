//! A simulated cluster: the real nodes on simulated time, network and disks, and the operations on
//! them.
//!
//! - `run`: runs a scenario on a new cluster.
//! - `sim`: the cluster, [`Sim`], and what it holds.
//! - `options`, `environment`, `log`: settings, clocks and randomness, and the log of a run.
//! - `network`, `disk`, `storage`: the simulated network, disks, and the engine on a disk.
//! - `machine`: a node's machine. Its disk and clock survive crashes.
//! - `process`: a node's process. A crash ends it.
//! - `faults`: crashes, partitions, wrong clocks, full and damaged disks.
//! - `layout_changes`: operators' changes of the layout.
//! - `connections`, `requests`: clients' connections to nodes, and the requests on them.
//! - `writes`, `reads`: clients' writes and reads, reported to the oracle.
//! - `convergence`: ends all faults, waits until the replicas are identical, and checks them.

mod connections;
mod convergence;
mod disk;
mod environment;
mod faults;
mod layout_changes;
mod log;
mod machine;
mod network;
mod options;
mod process;
mod reads;
mod requests;
mod run;
mod sim;
mod storage;
mod writes;

pub use disk::Disk;
pub use log::Log;
pub use network::{Host, Net};
pub use options::{LAST_WINS, MAX_SKEW_MS, Options, REDEFINED, SIBLINGS};
pub use reads::ReadValues;
pub use requests::Reply;
pub use run::{Outcome, run};
pub use sim::Sim;
pub use storage::Durability;
pub use writes::{WriteMode, WriteOptions};
