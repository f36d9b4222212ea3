//! How a node behaves: as coordinator of clients' requests, and as replica of its partitions.
//!
//! Written only against `quorate_core`: it names no plugin, no wire format, no socket. Requests come in through
//! `NodeService` ([`node`]), requests to peers go out through `PeerTransport`, records are kept by a `StorageEngine`.
//!
//! A put: [`node`] → `coordinator/put.rs` → `quorate_core::quorum` → [`replica`] → the engine. A get likewise.

mod completions;
mod coordinator;
mod fingerprint;
mod gather;
pub mod node;
pub mod replica;
pub mod shared;

pub use node::Node;
pub use shared::{CoordinatorConfig, Shared};
