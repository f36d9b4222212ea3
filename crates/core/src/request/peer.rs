//! Requests between nodes, and the replies to them.

use bytes::Bytes;

use crate::key::{PartitionId, StorageKey};
use crate::member::NodeId;
use crate::object::Digest;

use super::client::{ClientRequest, ClientResult};

/// What a node may ask of a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerRequest {
    /// The object under a storage key, from a replica of it in a layout.
    Read {
        /// Which.
        key: StorageKey,
        /// The digest of the layout that the coordinator reads: one that the replica has left behind is refused.
        layout: u64,
    },
    /// Merge this object into what is stored.
    Write(PeerWrite),
    /// What a fallback holds for a key in hints for its replicas.
    ReadHints(StorageKey),
    /// The object under a storage key, also from a replica that is recovering: for repair, never for a client.
    Fetch(StorageKey),
    /// Records of a partition's bucket in storage order, after a storage key.
    ScanPartition(ScanPartition),
    /// A client's request, for a coordinator that is no replica.
    Forward(ClientRequest),
    /// Whether these trees are the same there.
    Roots(Vec<TreeRoot>),
    /// The leaves of one tree.
    Leaves(TreeName),
    /// Keys and digests under some leaves of a tree, a page of them.
    Digests(DigestsOf),
    /// What is durably stored under each of these keys, as a digest.
    DurableDigests(Vec<StorageKey>),
    /// Whether anything there stands against reaping these keys: hints, or what was lately let go of.
    MayCollect {
        /// Which.
        keys: Vec<StorageKey>,
        /// The digest of the only layout that is active, for the asker.
        layout: u64,
    },
    /// Delete each of these objects if it is exactly in this state.
    CollectTombstones(CollectTombstones),
    /// What time it is there.
    Clock,
    /// A message of the membership plugin to itself on another node.
    Gossip(Bytes),
    /// What a node knows of the progress of a change of layout ([`crate::layout_change::News`]), for the same in return.
    LayoutSummary(Bytes),
    /// All that a node knows of layouts ([`crate::layout_change::Layouts`]).
    Layouts,
}

/// An object on its way to a replica, or to a fallback.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerWrite {
    /// Where.
    pub key: StorageKey,
    /// Encoded.
    pub object: Bytes,
    /// As what.
    pub purpose: WritePurpose,
    /// When the message is void, milliseconds since 1970: a delayed copy must not bring back what was reaped meanwhile.
    pub valid_until_ms: u64,
    /// The digest of the newest layout that the coordinator goes by: one that the replica has left behind is refused.
    pub layout: u64,
}

/// What is to be done with an object that is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WritePurpose {
    /// Merge it: a write, or read repair. Acked as the engine promises.
    Replicate,
    /// Keep it for this replica, which can't be reached. Acked as the engine promises.
    Hint(NodeId),
    /// Merge it: a hint, or anti-entropy. Acked once it is durable, since the sender may then forget it.
    HandOff,
}

/// One node's hash tree of a partition, for buckets with `n` replicas.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TreeName {
    /// The partition.
    pub partition: PartitionId,
    /// Replicas of the buckets in it.
    pub n: u8,
}

/// A tree and its root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TreeRoot {
    /// Which tree.
    pub tree: TreeName,
    /// Its root here.
    pub root: u64,
}

/// What another node says of a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TreeState {
    /// Whether it is the same there.
    pub likeness: Likeness,
    /// The node may have forgotten what it held of the partition.
    pub recovering: bool,
}

/// Whether two trees are the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Likeness {
    /// They are.
    Same,
    /// They are not.
    Differs,
    /// The node is still building its tree.
    Unknown,
}

/// A page of keys and digests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DigestsOf {
    /// Which tree.
    pub tree: TreeName,
    /// A bit for each leaf that is wanted.
    pub leaves: u64,
    /// Begin after this storage key; empty: at the start.
    pub after: Bytes,
}

/// Keys and digests, in storage order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DigestPage {
    /// Each with its object's digest.
    pub entries: Vec<(Bytes, Digest)>,
    /// Where the next page begins; empty at the end.
    pub next: Bytes,
}

/// An order to delete what all replicas were found to hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CollectTombstones {
    /// Keys, and the state each must be in.
    pub entries: Vec<(StorageKey, Digest)>,
    /// When the order is void, milliseconds since 1970.
    pub valid_until_ms: u64,
}

/// Most keys or trees that one request asks about.
pub const MAX_KEYS_ASKED: usize = 4_096;

/// Records of one bucket in one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanPartition {
    /// Which partition.
    pub partition: PartitionId,
    /// The bytes that every storage key wanted begins with.
    pub prefix: Bytes,
    /// Begin after this storage key; empty: at the start.
    pub after: Bytes,
    /// Most records.
    pub limit: u32,
    /// Stop once this many bytes are gathered.
    pub max_bytes: u32,
    /// The digest of the layout that is read.
    pub layout: u64,
}

/// Records in storage order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ScanPage {
    /// Storage key and encoded object of each.
    pub records: Vec<(Bytes, Bytes)>,
    /// True if there may be more.
    pub more: bool,
}

/// What a peer answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerReply {
    /// To `Read`: the encoded object, if any.
    Object(Option<Bytes>),
    /// To `Write`: merged and, where the engine promises it, durable.
    Acked,
    /// To `ScanPartition`.
    Page(ScanPage),
    /// To `Forward`.
    Client(ClientResult),
    /// To `Roots`: one for each.
    Trees(Vec<TreeState>),
    /// To `Leaves`.
    Leaves(Vec<u64>),
    /// To `Digests`.
    Digests(DigestPage),
    /// To `DurableDigests`: one for each key, `None` for one that is absent.
    DurableDigests(Vec<Option<Digest>>),
    /// To `MayCollect`: for each key, true if nothing there stands against it.
    MayCollect(Vec<bool>),
    /// To `Clock`: milliseconds since 1970.
    Clock(u64),
    /// To `News`.
    LayoutSummary(Bytes),
    /// To `Layouts`.
    Layouts(Bytes),
}

/// Why a peer did not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PeerError {
    /// The connection is gone, or never was; whether the request was done is not known.
    #[error("not connected")]
    Disconnected,
    /// It was too late when the request's turn came.
    #[error("deadline passed")]
    Expired,
    /// A queue there, or towards there, is full.
    #[error("overloaded: {what} is at its limit of {limit}")]
    Overloaded {
        /// Which queue.
        what: String,
        /// Its bound.
        limit: u64,
    },
    /// Its engine failed; the record is not absent, it is unreadable or unwritable.
    #[error("storage failed: {detail}")]
    Storage {
        /// What the engine said.
        detail: String,
    },
    /// It may have forgotten what it held of the partition, and answers no reads of it until it has asked the others.
    #[error("recovering")]
    Recovering,
    /// The request goes by a layout that this node has left behind, or does not know, or in which it is no replica of the key.
    #[error("layouts differ")]
    StaleLayout,
    /// It does not do such a thing.
    #[error("refused: {detail}")]
    Refused {
        /// Why.
        detail: String,
    },
}

/// What a node gets back from a peer.
pub type PeerResult = Result<PeerReply, PeerError>;
