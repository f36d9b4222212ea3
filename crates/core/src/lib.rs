//! The pure part of Quorate: its decisions, as functions of state, input and time.
//!
//! # What is not here, and must not come here
//! No sockets, files, threads, async runtimes, clock reads or randomness. The caller passes the
//! time and the random numbers ([`environment::Environment`]). Data to send or store is returned,
//! or goes through one of the two seams ([`seams`]) or the three plugin traits ([`storage`],
//! [`resolver`], [`membership`]).
//!
//! # First types to read
//! [`object::Object`] is everything that a replica stores under a key; its `merge` is the heart of
//! the store. [`layout::Layout`] names the replicas of a key. [`quorum`] decides when a request has
//! enough replies.

pub mod admission;
pub mod assignment;
pub mod bucket;
pub mod causality;
pub mod change;
pub mod clock;
pub mod codec;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod environment;
pub mod error;
pub mod event;
mod flow;
pub mod hint;
pub mod key;
pub mod layout;
pub mod layout_change;
pub mod layout_error;
pub mod member;
pub mod membership;
pub mod object;
pub mod planted;
pub mod plugin;
pub mod quorum;

pub mod recovery;
pub mod report;
pub mod request;
pub mod resolver;
pub mod seams;
pub mod storage;
pub mod tombstone_gc;
pub mod tree;
mod varint;

pub use bucket::{BucketDefinition, Buckets, ReadRepair};
pub use causality::{Actor, CausalContext, Dot};
pub use clock::Stamp;
pub use error::RequestError;
pub use key::{BucketName, Key, PartitionId, StorageKey};
pub use layout::Layout;
pub use layout_error::LayoutError;
pub use member::{Member, NodeId};
pub use object::{Digest, Object, Payload, RequestId, Version};
