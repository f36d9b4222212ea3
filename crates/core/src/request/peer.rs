//! Requests between nodes, and the replies to them.

use bytes::Bytes;

use crate::key::{PartitionId, StorageKey};
use crate::member::NodeId;
use crate::object::Digest;

use super::client::{ClientRequest, ClientResult};

/// A request of a node to a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerRequest {
    /// A read of the object under a storage key. The receiver must be a replica of the key in
    /// `layout`.
    Read {
        /// The storage key.
        key: StorageKey,
        /// Digest of the layout that the coordinator reads. A replica that no longer reads that
        /// layout refuses.
        layout: u64,
    },
    /// An object to store. The receiver merges it into the object or the hint that it already has.
    Write(PeerWrite),
    /// A read of the hints that a node holds for a key, merged into one object.
    ReadHints(StorageKey),
    /// A read of the object under a storage key for repair, never for a client. A replica that may
    /// have forgotten records answers it too.
    Fetch(StorageKey),
    /// A read of a page of one partition's records, in the order of their storage keys.
    ScanPartition(ScanPartition),
    /// A client's request, from a coordinator that is no replica of the key.
    Forward(ClientRequest),
    /// Roots of the sender's hash trees. The peer compares them with the roots of its own trees.
    Roots(Vec<TreeRoot>),
    /// A request for the hashes in all leaves of one of the peer's hash trees.
    Leaves(TreeName),
    /// A request for a page of the keys and digests under some leaves of a hash tree.
    Digests(DigestsOf),
    /// A request for the digests of the objects that are durably stored under some keys.
    DurableDigests(Vec<StorageKey>),
    /// A question if the tombstones under these keys may be collected. A node objects if it holds a
    /// hint for the key, or recently deleted a hint of the key's partition. Such a hint could bring
    /// back an older version.
    MayCollect {
        /// The storage keys.
        keys: Vec<StorageKey>,
        /// Digest of the sender's only active layout. A peer with another active layout refuses.
        layout: u64,
    },
    /// An order to delete tombstones. An object with another digest than the given one stays.
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

/// A write from one node to another: a replica merges the object, a fallback keeps it as a hint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerWrite {
    /// The storage key.
    pub key: StorageKey,
    /// The encoded object.
    pub object: Bytes,
    /// The purpose of the write.
    pub purpose: WritePurpose,
    /// Time after which the receiver refuses the message, in milliseconds since 1970. A delayed
    /// message must not bring back an object that tombstone collection deleted in the meantime.
    pub valid_until_ms: u64,
    /// Digest of the newest layout that the coordinator uses for writes. A replica that no longer
    /// accepts writes of that layout refuses. For the purpose `HandOff`, this digest is not
    /// checked.
    pub layout: u64,
}

/// Purpose of a write between nodes. It decides how the receiver stores the object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WritePurpose {
    /// A client's write or read repair: the receiver merges the object. It acks when its engine
    /// allows that (`Capability::ack_when_durable`).
    Replicate,
    /// A hint: the receiver keeps the object for this replica, which cannot be reached. It acks
    /// when its engine allows that (`Capability::ack_when_durable`).
    Hint(NodeId),
    /// A delivered hint, anti-entropy, or a transfer: the receiver merges the object. It acks once
    /// the object is durable, because the sender may then delete its own copy.
    HandOff,
}

/// The name of a hash tree. The tree covers a node's records of one partition, in buckets with one
/// n.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TreeName {
    /// The partition.
    pub partition: PartitionId,
    /// The n of the buckets whose records the tree covers.
    pub n: u8,
}

/// A hash tree's root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TreeRoot {
    /// The tree.
    pub tree: TreeName,
    /// The hash at the root of the sender's tree.
    pub root: u64,
}

/// A peer's answer about one hash tree of a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TreeState {
    /// Result of comparing the root of the peer's tree with the root that it was sent.
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

/// A request for a page of the storage keys and digests under some leaves of a hash tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DigestsOf {
    /// The tree.
    pub tree: TreeName,
    /// The leaves whose keys are requested: bit `i` stands for leaf number `i`.
    pub leaves: u64,
    /// Storage key after which the page begins. Empty: the page is the first.
    pub after: Bytes,
}

/// A page of storage keys and digests of objects, in the order of the storage keys.
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
    /// Time after which a replica deletes nothing by this order, in milliseconds since 1970.
    pub valid_until_ms: u64,
}

/// Maximum number of keys or hash trees in one request. A peer refuses a request with more.
pub const MAX_KEYS_ASKED: usize = 4_096;

/// A request for a page of one partition's records. A scan asks for the records of one bucket, the
/// transfer of a layout change for the records of all buckets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanPartition {
    /// The partition.
    pub partition: PartitionId,
    /// The bytes with which the storage keys must begin.
    pub prefix: Bytes,
    /// Storage key after which the page begins. Empty: the page is the first.
    pub after: Bytes,
    /// Maximum number of records.
    pub limit: u32,
    /// Size of keys and objects after which the page ends, in bytes.
    pub max_bytes: u32,
    /// Digest of a layout in which the receiver is a replica. For a scan, it is the layout that the
    /// coordinator reads. A replica that no longer reads that layout refuses.
    pub layout: u64,
}

/// A page of one partition's records, in the order of their storage keys.
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
    /// Reply to `Write`, `CollectTombstones` and `Gossip`. After a `Write`, the object is stored.
    /// It is also durable, if the engine acks only durable writes or the purpose is `HandOff`.
    Acked,
    /// Reply to `ScanPartition`.
    Page(ScanPage),
    /// Reply to `Forward`.
    Client(ClientResult),
    /// Reply to `Roots`: one state for each root.
    Trees(Vec<TreeState>),
    /// Reply to `Leaves`: the hashes in the leaves, in the order of their numbers.
    Leaves(Vec<u64>),
    /// Reply to `Digests`.
    Digests(DigestPage),
    /// Reply to `DurableDigests`: one digest for each key. `None`: there is no object under that
    /// key.
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
        /// Name of the queue.
        what: String,
        /// The queue's limit.
        limit: u64,
    },
    /// The peer's engine failed. This does not mean that the record is absent: it could not be read
    /// or written.
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
