//! How a node behaves: as coordinator of clients' requests, and as replica of its partitions.
//!
//! Written only against `quorate_core`: it names no plugin, no wire format, no socket. Requests come in through
//! `NodeService` ([`node`]), requests to peers go out through `PeerTransport`, records are kept by a `StorageEngine`.
//!
//! What goes on without any client: [`hints`] are delivered, a replica that may have forgotten asks the others
//! ([`recovery`]), replicas compare their hash [`trees`] and exchange what differs ([`repair`], [`sync`]), tombstones that
//! everybody has go ([`reaper`]), and clocks are compared ([`clocks`]). When the layout changes ([`layouts`], [`transition`]),
//! partitions move ([`transfer`]).
//!
//! A put: [`node`] → `coordinator/put.rs` → `quorate_core::quorum` → [`replica`] → the engine. A get likewise.

mod administer;
mod buckets;
mod clocks;
mod completions;
mod coordinator;
mod fingerprint;
mod gather;
pub mod gossip;
mod hints;
pub mod layouts;
mod leftovers;
pub mod node;
mod reaper;
mod recovery;
mod repair;
pub mod replica;
pub mod settings;
pub mod shared;
mod spread;
mod sync;
mod transfer;
mod transition;
mod trees;
mod turns;

pub use node::Node;
pub use settings::Settings;
pub use shared::Shared;
