//! What clients and peers ask, and what they are answered: the vocabulary of both protocols.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::bucket::BucketDefinition;
use crate::change::Staged;
use crate::clock::Stamp;
use crate::error::RequestError;
use crate::key::{BucketName, Key, PartitionId, StorageKey};
use crate::layout::NodeId;
use crate::object::{Digest, Payload, RequestId};

/// How many replicas a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum QuorumSize {
    /// What the bucket says.
    #[default]
    Default,
    /// This many.
    Count(u8),
    /// More than half of the key's replicas.
    Majority,
    /// All of the key's replicas.
    All,
}

impl QuorumSize {
    /// The number for a key with `n` replicas. `Default` counts as a majority.
    pub fn of(self, n: u8) -> u8 {
        match self {
            QuorumSize::Count(count) => count,
            QuorumSize::Majority | QuorumSize::Default => n / 2 + 1,
            QuorumSize::All => n,
        }
    }
}

impl std::str::FromStr for QuorumSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "quorum" => Ok(QuorumSize::Majority),
            "all" => Ok(QuorumSize::All),
            number => match number.parse() {
                Ok(count) if count > 0 => Ok(QuorumSize::Count(count)),
                _ => Err(format!("{number:?}: use a number from 1, \"quorum\" or \"all\"")),
            },
        }
    }
}

impl std::fmt::Display for QuorumSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            QuorumSize::Default => f.write_str("default"),
            QuorumSize::Count(count) => write!(f, "{count}"),
            QuorumSize::Majority => f.write_str("quorum"),
            QuorumSize::All => f.write_str("all"),
        }
    }
}

impl Serialize for QuorumSize {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            QuorumSize::Count(count) => serializer.serialize_u8(*count),
            other => serializer.collect_str(other),
        }
    }
}

impl<'de> Deserialize<'de> for QuorumSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = QuorumSize;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number from 1, \"quorum\" or \"all\"")
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<QuorumSize, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<QuorumSize, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<QuorumSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Read one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GetRequest {
    /// Which key.
    pub key: Key,
    /// How many replicas must answer.
    pub r: QuorumSize,
}

/// Write one key: a put, or a delete if the payload is a tombstone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutRequest {
    /// Which key.
    pub key: Key,
    /// A value, or a tombstone.
    pub payload: Payload,
    /// What the write replaces.
    pub replacing: Replacing,
    /// The client's id for the write, kept over its retries.
    pub request: RequestId,
    /// How many replicas must ack.
    pub w: QuorumSize,
    /// Whether fallbacks may stand in; `None`: what the bucket says.
    pub sloppy: Option<bool>,
    /// 0 for the first attempt, then counted up: a retry asks whether it was applied before.
    pub attempt: u16,
}

/// What a put replaces, with contexts as clients hold them: encoded ([`crate::codec::encode_context`]), opaque.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Replacing {
    /// Overwrite: what the coordinator holds, and what this client last saw (no bytes: nothing).
    WhatIsThere {
        /// An encoded context.
        seen: Bytes,
    },
    /// What the context contains and no more. No bytes: the empty context, concurrent with everything.
    Exactly {
        /// An encoded context.
        context: Bytes,
    },
}

/// Read one page of a bucket, in storage order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanRequest {
    /// Which bucket.
    pub bucket: BucketName,
    /// Only keys that begin with these bytes.
    pub prefix: Bytes,
    /// Where the page before ended, or empty.
    pub cursor: Bytes,
    /// Most entries a page; 0: as many as fit.
    pub limit: u32,
    /// Leave the values out.
    pub keys_only: bool,
    /// How many replicas of each partition must answer.
    pub r: QuorumSize,
}

/// What a client may ask of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientRequest {
    /// Answer.
    Ping,
    /// Read one key.
    Get(GetRequest),
    /// Write one key.
    Put(PutRequest),
    /// Read one page of a bucket.
    Scan(ScanRequest),
    /// What each replica holds of a key.
    Explain(Key),
    /// The node's view of the cluster.
    Status,
    /// The layout this node acts on.
    Layout,
    /// A digest of all that this node holds, a partition each: for comparing replicas.
    Fingerprint,
    /// What repair is doing; `start`: begin a round with every peer now.
    Repair {
        /// Begin one.
        start: bool,
    },
    /// The cluster's layout: to see and to change.
    Cluster(ClusterRequest),
    /// Cut this node off from peers (empty: from none). Refused unless the configuration turns faults on.
    Faults {
        /// Names of the members to lose all messages from and to; with a ">" before it: only those to it.
        cut: Vec<String>,
    },
}

/// What an operator asks about layouts. All answer with a [`ClusterReport`], `Plan` with a [`PlanReport`],
/// `CreateBucket` and `Buckets` with a [`BucketsReport`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClusterRequest {
    /// Show members, staged changes and how far a change is.
    Show,
    /// Stage a change.
    Stage(Staged),
    /// Make one change the newest layout, whatever else is staged.
    Apply(Staged),
    /// What the staged changes would move.
    Plan,
    /// Make the staged changes the newest layout.
    Commit {
        /// The digest of the layout that a plan showed, if it must be that one.
        plan: Option<u64>,
    },
    /// Withdraw the staged changes.
    Clear,
    /// Take no more requests of clients; those under way are finished.
    Drain,
    /// Give a bucket a definition of its own, and wait until all nodes go by it.
    CreateBucket {
        /// Its name.
        name: String,
        /// What its keys are held to.
        definition: BucketDefinition,
    },
    /// What buckets' keys are held to.
    Buckets,
}

/// What buckets' keys are held to, as a node knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BucketsReport {
    /// The answering node.
    pub node: String,
    /// The newest layout's number.
    pub layout: u64,
    /// N in it: what `n` is where a definition names none.
    pub replicas: u8,
    /// By name; `default` is for all that are not named.
    pub buckets: BTreeMap<String, BucketReport>,
}

/// What one bucket's keys are held to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BucketReport {
    /// The definition.
    #[serde(flatten)]
    pub definition: BucketDefinition,
    /// False while it is being created: requests are refused until all nodes know its `n`.
    pub ready: bool,
}

/// A cluster's layout as a node knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterReport {
    /// The answering node.
    pub node: String,
    /// The newest layout's number.
    pub layout: u64,
    /// Its digest, in hexadecimal.
    pub digest: String,
    /// The number of the layout that is read.
    pub read: u64,
    /// Q.
    pub partitions: u32,
    /// N in the newest layout.
    pub replicas: u8,
    /// Members of the active layouts, and nodes that wait to become some.
    pub members: Vec<ClusterMember>,
    /// Changes that wait for their commit.
    pub staged: Vec<String>,
    /// Past layouts, the newest last.
    pub history: Vec<PastLayout>,
    /// The change under way, if one is.
    pub change: Option<ChangeReport>,
}

/// A member, or a node that may become one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterMember {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// Its zone, or empty.
    pub zone: String,
    /// How much it holds, relative to others.
    pub weight: u16,
    /// "member", "joining", "leaving", "waiting" (no member yet), or "removed".
    pub role: String,
    /// "up" or "down".
    pub state: String,
    /// Partitions in the newest layout.
    pub partitions: u32,
    /// Of those, as first replica.
    pub first: u32,
}

/// A layout that was.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PastLayout {
    /// Its number.
    pub number: u64,
    /// Its digest, in hexadecimal.
    pub digest: String,
    /// What was changed.
    pub summary: String,
}

/// How far a change of layout is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChangeReport {
    /// Numbers of the active layouts.
    pub layouts: Vec<u64>,
    /// The phase that everybody has reached.
    pub phase: String,
    /// Each participant's phase, by name.
    pub phases: BTreeMap<String, String>,
    /// Who holds the change up because it is down, and what to do.
    pub trouble: Vec<String>,
    /// What the answering node copies or hands over.
    pub transfer: TransferReport,
}

/// What one node copies of others, or hands over to them, in a change of layout.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TransferReport {
    /// Partitions that it has to look at.
    pub partitions: u32,
    /// Those it is done with.
    pub done: u32,
    /// Bytes of keys and objects copied so far.
    pub bytes: u64,
    /// Bytes a second, since the copying began.
    pub bytes_per_s: u64,
    /// About how long it will still take, milliseconds.
    pub left_ms: Option<u64>,
}

/// What the staged changes would do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PlanReport {
    /// The changes.
    pub staged: Vec<String>,
    /// The number the layout would get.
    pub layout: u64,
    /// Its digest, to commit exactly this.
    pub digest: String,
    /// N.
    pub replicas: u8,
    /// What changes for each node.
    pub nodes: Vec<PlanNode>,
    /// Replicas of partitions that are copied.
    pub moved: u32,
    /// The fewest that the new loads allow.
    pub fewest: u32,
    /// About how many bytes that is, by what the answering node holds.
    pub bytes: u64,
    /// In how many zones each partition has replicas, at least.
    pub zones: u32,
}

/// What changes for one node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PlanNode {
    /// Its name.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Partitions now.
    pub before: u32,
    /// Partitions then.
    pub after: u32,
    /// Partitions it would copy.
    pub gains: u32,
    /// About how many bytes.
    pub bytes: u64,
}

/// One of the values that lie side by side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sibling {
    /// When it was written.
    pub stamp: Stamp,
    /// The bytes.
    pub value: Bytes,
}

/// Who answered what: lets a client see how its request was served.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Receipt {
    /// The node that coordinated.
    pub coordinator: NodeId,
    /// The layout it acted on.
    pub layout: u64,
    /// Replicas that answered (reads) or acked (writes) before the reply.
    pub acked: Vec<NodeId>,
    /// Fallbacks among those.
    pub fallbacks: Vec<NodeId>,
    /// Replicas that were behind and were sent the merged object.
    pub repaired: Vec<NodeId>,
    /// From the request's arrival to the reply, microseconds.
    pub micros: u32,
}

/// The answer to a read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GetReply {
    /// What is shown, in stamp order: none if the key is absent or deleted.
    pub siblings: Vec<Sibling>,
    /// What was seen, encoded.
    pub context: Bytes,
    /// How it was served.
    pub receipt: Receipt,
}

/// The answer to a write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutReply {
    /// What the client has now seen of the key, encoded.
    pub context: Bytes,
    /// Versions lie beside this one that the client has not seen.
    pub conflict: bool,
    /// Acks that were hints at fallbacks.
    pub hinted: u8,
    /// How it was served.
    pub receipt: Receipt,
}

/// One key of a scan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanEntry {
    /// The key's partition: with the key, the scan's place after this entry ([`scan_cursor`]).
    pub partition: PartitionId,
    /// The key.
    pub key: Bytes,
    /// Its values in stamp order, never none; empty ones if only keys were asked for.
    pub siblings: Vec<Sibling>,
    /// What was seen of it, encoded.
    pub context: Bytes,
}

/// Where a scan is once it has shown everything up to this storage key of a partition; no key: nothing of it yet.
pub fn scan_cursor(partition: PartitionId, after: &[u8]) -> Bytes {
    let mut cursor = partition.0.to_be_bytes().to_vec();
    cursor.extend_from_slice(after);
    cursor.into()
}

/// One page of a scan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanReply {
    /// The keys, in storage order.
    pub entries: Vec<ScanEntry>,
    /// Where the next page begins; empty at the end.
    pub cursor: Bytes,
}

/// The digest of what a node holds of a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionFingerprint {
    /// Which partition.
    pub partition: PartitionId,
    /// Of keys of buckets with this many replicas: others lie on other nodes.
    pub n: u8,
    /// How many records.
    pub records: u64,
    /// XOR over hashes of (storage key, object digest).
    pub digest: u64,
}

/// The answer to a client's request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientReply {
    /// To `Get`.
    Get(GetReply),
    /// To `Put`.
    Put(PutReply),
    /// To `Scan`.
    Scan(ScanReply),
    /// To `Explain`, `Status`, `Repair` and `Cluster`: a JSON document.
    Report(String),
    /// To `Layout`: the encoded layout.
    Layout(Bytes),
    /// To `Fingerprint`.
    Fingerprint(Vec<PartitionFingerprint>),
    /// To `Ping` and `Faults`.
    Done,
}

/// What a client gets back.
pub type ClientResult = Result<ClientReply, RequestError>;

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
    HeldDurably(Vec<StorageKey>),
    /// Whether anything there stands against reaping these keys: hints, or what was lately let go of.
    MayReap {
        /// Which.
        keys: Vec<StorageKey>,
        /// The digest of the only layout that is active, for the asker.
        layout: u64,
    },
    /// Delete each of these objects if it is exactly in this state.
    Reap(Reap),
    /// What time it is there.
    Clock,
    /// A message of the membership plugin to itself on another node.
    Gossip(Bytes),
    /// What a node knows of the progress of a change of layout ([`crate::transition::News`]), for the same in return.
    News(Bytes),
    /// All that a node knows of layouts ([`crate::transition::Layouts`]).
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
pub struct Reap {
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
    /// To `HeldDurably`: one for each key, `None` for one that is absent.
    Held(Vec<Option<Digest>>),
    /// To `MayReap`: for each key, true if nothing there stands against it.
    MayReap(Vec<bool>),
    /// To `Clock`: milliseconds since 1970.
    Clock(u64),
    /// To `News`.
    News(Bytes),
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

/// What one replica holds of a key, for `explain`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReplicaState {
    /// The node's name.
    pub node: String,
    /// "held", "absent", or why nothing is known.
    pub state: String,
    /// The object's digest, in hexadecimal.
    pub digest: Option<String>,
    /// Live versions, tombstones included.
    pub versions: Vec<VersionSummary>,
}

/// One live version, for `explain`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VersionSummary {
    /// Actor and stamp.
    pub dot: String,
    /// Bytes of the value; `None` for a tombstone.
    pub value_bytes: Option<u64>,
    /// When it was written, milliseconds since 1970.
    pub written_ms: u64,
}

/// Where a key lies and what each replica holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// The bucket.
    pub bucket: String,
    /// The key, escaped if it is not text.
    pub key: String,
    /// The partition's number.
    pub partition: u16,
    /// The layout's number.
    pub layout: u64,
    /// The bucket's n, r, w.
    pub n: u8,
    /// Replicas a read asks.
    pub r: u8,
    /// Acks a write waits for.
    pub w: u8,
    /// Names of the replicas, in order.
    pub replicas: Vec<String>,
    /// Names of the fallbacks, in order.
    pub fallbacks: Vec<String>,
    /// What each replica holds.
    pub holdings: Vec<ReplicaState>,
    /// True if all replicas answered and agree.
    pub agree: bool,
    /// Hints for this key that the fallbacks hold.
    pub hints: Vec<String>,
}

/// What is kept for one unreachable replica.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HintStatus {
    /// For whom.
    pub target: String,
    /// How many.
    pub hints: u64,
    /// Their bytes, keys included.
    pub bytes: u64,
    /// How long the oldest has been waiting, milliseconds.
    pub oldest_ms: u64,
}

/// What anti-entropy is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RepairStatus {
    /// Rounds with one peer that ended, since the start.
    pub rounds: u64,
    /// With whom a round is under way.
    pub running_with: Option<String>,
    /// Keys that differed, since the start.
    pub divergent_keys: u64,
    /// Keys that differed in the last round.
    pub last_round_keys: u64,
    /// Milliseconds since the last round ended.
    pub last_round_ago_ms: Option<u64>,
    /// Why the last round that failed did.
    pub trouble: Option<String>,
}

/// What became of deletes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ReapingStatus {
    /// Tombstones of which this node is the first replica, as far as it knows.
    pub waiting: u64,
    /// Reaped since the start, by this node's orders.
    pub reaped: u64,
    /// What the last look found in the way: a member, and why.
    pub blocked_by: Option<String>,
}

/// One member as a node sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemberStatus {
    /// The member's name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Its zone, or empty.
    pub zone: String,
    /// "up" or "down", as the answering node sees it.
    pub state: String,
    /// Partitions it is a replica of.
    pub partitions: u32,
    /// Partitions it is the first replica of.
    pub first: u32,
    /// Why it was refused, if it was.
    pub trouble: Option<String>,
}

/// A node's view of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The answering node.
    pub node: String,
    /// The cluster's id.
    pub cluster: String,
    /// This build's version.
    pub version: String,
    /// The layout's number.
    pub layout: u64,
    /// The layout's digest, in hexadecimal.
    pub layout_digest: String,
    /// Q, the ring's number of partitions.
    pub partitions: u32,
    /// N, replicas a partition.
    pub replicas: u8,
    /// The storage plugin and its durability.
    pub storage: String,
    /// Milliseconds since the node started.
    pub uptime_ms: u64,
    /// Hints this node holds for others.
    pub hints: u64,
    /// For whom, and how many.
    pub hints_for: Vec<HintStatus>,
    /// Partitions that may have forgotten, and answer no reads until they have asked the others.
    pub recovering: u32,
    /// Why this node coordinates nothing, if its clock is far from those of its peers.
    pub clock_trouble: Option<String>,
    /// What anti-entropy is doing.
    pub repair: RepairStatus,
    /// What became of deletes.
    pub reaping: ReapingStatus,
    /// The change of layout under way, if one is.
    pub change: Option<ChangeReport>,
    /// The node was taken out while it was away, and serves nothing.
    pub removed: bool,
    /// All members.
    pub members: Vec<MemberStatus>,
}
