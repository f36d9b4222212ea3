//! Deterministic simulation of whole clusters: one seed always gives the same history.
//!
//! The real node and rpc crates run over simulated time, network and disks.
//!
//! - [`workload`]: one seed's run. Clients read and write while a nemesis injects faults.
//! - [`world`]: the cluster. Machines, network, disks, and the operations on them.
//! - [`oracle`]: the checker. It records every write and compares each reply, each change of a
//!   record and the end state with the rules.
//! - [`random`]: the generator that all random draws of a run come from.
//!
//! A folder imports only the folders below it in this list.
//!
//! *Not* here: LMDB, the operating system and real sockets. The pytest suite tests those.

mod naming;
pub mod oracle;
pub mod random;
mod records;
pub mod workload;
pub mod world;
