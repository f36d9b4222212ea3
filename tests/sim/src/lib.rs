//! Deterministic simulation of whole clusters.
//!
//! The real `cluster` and `rpc` crates run over simulated time ([`sim`]), a simulated network ([`network`]) and simulated
//! disks that lose what was not committed ([`disk`]). A generator drives clients while a nemesis breaks things
//! ([`workload`]); the [`oracle`] holds what happened against what DESIGN promises. A seed replays exactly.
//!
//! What is *not* here: LMDB, the operating system, real sockets. Those are the pytest suite's.

pub mod disk;
pub mod network;
pub mod oracle;
pub mod random;
pub mod sim;
pub mod workload;
