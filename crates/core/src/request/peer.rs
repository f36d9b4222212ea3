//! Requests between nodes, and the replies to them.

use bytes::Bytes;

use crate::key::{PartitionId, StorageKey};
use crate::member::NodeId;
use crate::object::Digest;

use super::client::{ClientRequest, ClientResult};

/// A request of a node to a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerRequest {
    /// A read of the object under a storage key, from a replica of the key in a layout.
    Read {
        /// The storage key.
        key: StorageKey,
        /// Digest of the layout that the coordinator reads. A replica that no longer reads that
        /// layout refuses.
        layout: u64,
    },
    /// An object to merge into the stored one.
    Write(PeerWrite),
    /// A read of the hints that a node holds for a key, merged into one object.
    ReadHints(StorageKey),
    /// A read of the object under a storage key for repair, never for a client. A replica that
    /// recovers answers it too.
    Fetch(StorageKey),
    /// A read of a bucket's records in a partition, in storage order, after a storage key.
    ScanPartition(ScanPartition),
    /// A client's request, from a coordinator that is no replica of the key.
    Forward(ClientRequest),
    /// A comparison of hash trees by their roots.
    Roots(Vec<TreeRoot>),
    /// A request for the leaves of one hash tree.
    Leaves(TreeName),
    /// A request for a page of the keys and digests under some leaves of a hash tree.
    Digests(DigestsOf),
    /// A request for the digests of the objects that are durably stored under some keys.
    DurableDigests(Vec<StorageKey>),
    /// A question if the tombstones under these keys may be collected. A node objects if it holds a
    /// hint for the key, or recently deleted a hint of its partition.
    MayCollect {
        /// The storage keys.
        keys: Vec<StorageKey>,
        /// Digest of the only active layout, as the sender knows it.
        layout: u64,
    },
    /// An order to delete each of these objects that is exactly in the given state.
    CollectTombstones(CollectTombstones),
    /// A request for the peer's wall clock.
    Clock,
    /// A message of the membership plugin to the same plugin on the peer.
    Gossip(Bytes),
    /// A node's progress in a layout change, encoded ([`crate::layout_change::LayoutSummary`]). The
    /// peer answers with its own.
    LayoutSummary(Bytes),
    /// A request for all layouts that the peer knows ([`crate::layout_change::Layouts`]).
    Layouts,
}

/// An object that is sent to a replica or to a fallback.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerWrite {
    /// The storage key.
    pub key: StorageKey,
    /// The encoded object.
    pub object: Bytes,
    /// The purpose of the write.
    pub purpose: WritePurpose,
    /// Time after which the message is void, in milliseconds since 1970. A delayed message must not
    /// bring back an object that was collected in the meantime.
    pub valid_until_ms: u64,
    /// Digest of the newest layout that the coordinator uses for writes. A replica that no longer
    /// accepts writes of that layout refuses. It is not checked for `HandOff`.
    pub layout: u64,
}

/// Purpose of a write between nodes. It decides how the receiver stores the object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WritePurpose {
    /// A client's write or read repair: the receiver merges the object. It acks as its engine
    /// promises.
    Replicate,
    /// A hint: the receiver keeps the object for this replica, which cannot be reached. It acks as
    /// its engine promises.
    Hint(NodeId),
    /// A delivered hint, anti-entropy, or a transfer: the receiver merges the object. It acks once
    /// the object is durable, because the sender may then forget it.
    HandOff,
}

/// Name of one node's hash tree of a partition, for buckets with `n` replicas.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TreeName {
    /// The partition.
    pub partition: PartitionId,
    /// Number of replicas of the buckets in the tree.
    pub n: u8,
}

/// A hash tree's root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TreeRoot {
    /// The tree.
    pub tree: TreeName,
    /// The tree's root on the sender.
    pub root: u64,
}

/// A peer's answer about a hash tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TreeState {
    /// Result of the comparison.
    pub likeness: Likeness,
    /// True if the peer may have forgotten records of the partition, or has not copied the
    /// partition yet.
    pub recovering: bool,
}

/// Result of comparing the roots of two hash trees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Likeness {
    /// Equal roots.
    Same,
    /// Different roots.
    Differs,
    /// No result: the peer is still building its tree, or does not hold the partition.
    Unknown,
}

/// A request for a page of keys and digests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DigestsOf {
    /// The tree.
    pub tree: TreeName,
    /// The leaves: bit `i` is set for leaf number `i`.
    pub leaves: u64,
    /// Storage key after which the page begins. Empty: at the start.
    pub after: Bytes,
}

/// A page of keys and digests, in storage order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DigestPage {
    /// Storage keys, each with the digest of its object.
    pub entries: Vec<(Bytes, Digest)>,
    /// Storage key after which the next page begins. Empty after the last page.
    pub next: Bytes,
}

/// An order to delete tombstones, after all replicas agreed on them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CollectTombstones {
    /// Storage keys, each with the digest that its object must have.
    pub entries: Vec<(StorageKey, Digest)>,
    /// Time after which the order is void, in milliseconds since 1970.
    pub valid_until_ms: u64,
}

/// Maximum number of keys or trees in one request.
pub const MAX_KEYS_ASKED: usize = 4_096;

/// A request for records of one bucket in one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanPartition {
    /// The partition.
    pub partition: PartitionId,
    /// The bytes with which the storage keys must begin.
    pub prefix: Bytes,
    /// Storage key after which the page begins. Empty: at the start.
    pub after: Bytes,
    /// Maximum number of records.
    pub limit: u32,
    /// Number of bytes after which the page ends.
    pub max_bytes: u32,
    /// Digest of the layout that the coordinator reads.
    pub layout: u64,
}

/// A page of records, in storage order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ScanPage {
    /// Storage keys, each with its encoded object.
    pub records: Vec<(Bytes, Bytes)>,
    /// True if there may be more records after the page.
    pub more: bool,
}

/// A peer's reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerReply {
    /// Reply to `Read`, `ReadHints` and `Fetch`: the encoded object, if there is one.
    Object(Option<Bytes>),
    /// Reply to `Write`, `CollectTombstones` and `Gossip`. A written object is merged and, if the
    /// engine promises it, durable.
    Acked,
    /// Reply to `ScanPartition`.
    Page(ScanPage),
    /// Reply to `Forward`.
    Client(ClientResult),
    /// Reply to `Roots`: one state for each root.
    Trees(Vec<TreeState>),
    /// Reply to `Leaves`: the hashes, in order.
    Leaves(Vec<u64>),
    /// Reply to `Digests`.
    Digests(DigestPage),
    /// Reply to `DurableDigests`: one for each key, `None` if it has no object.
    DurableDigests(Vec<Option<Digest>>),
    /// Reply to `MayCollect`: true for each key to whose collection the peer has no objection.
    MayCollect(Vec<bool>),
    /// Reply to `Clock`: the wall clock, in milliseconds since 1970.
    Clock(u64),
    /// Reply to `LayoutSummary`: the peer's own summary, encoded.
    LayoutSummary(Bytes),
    /// Reply to `Layouts`: all layouts that the peer knows, encoded.
    Layouts(Bytes),
}

/// Error of a request to a peer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PeerError {
    /// The connection was lost, or there was none. The peer may have served the request or not.
    #[error("not connected")]
    Disconnected,
    /// The deadline passed before the peer answered.
    #[error("deadline passed")]
    Expired,
    /// A queue is full, on the peer or on the connection to it.
    #[error("overloaded: {what} is at its limit of {limit}")]
    Overloaded {
        /// The queue.
        what: String,
        /// The queue's limit.
        limit: u64,
    },
    /// The peer's engine failed. The record is not absent: it cannot be read or written.
    #[error("storage failed: {detail}")]
    Storage {
        /// The engine's error.
        detail: String,
    },
    /// The peer may have forgotten records of the partition. It answers no reads of the partition
    /// until it has merged with enough other replicas.
    #[error("recovering")]
    Recovering,
    /// The request names a layout that the peer no longer uses or does not know, or in which it is
    /// no replica of the key.
    #[error("layouts differ")]
    StaleLayout,
    /// The peer does not serve this request.
    #[error("refused: {detail}")]
    Refused {
        /// The reason.
        detail: String,
    },
}

/// A peer's reply, or the error.
pub type PeerResult = Result<PeerReply, PeerError>;
