//! Reports for people and scripts: each is sent as a JSON document.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bucket::BucketDefinition;

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
    pub blocked_by: Vec<String>,
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
    pub last_error: Option<String>,
}

/// What became of deletes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TombstoneGcStatus {
    /// Tombstones of which this node is the first replica, as far as it knows.
    pub waiting: u64,
    /// Reaped since the start, by this node's orders.
    pub collected: u64,
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
    pub last_error: Option<String>,
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
    pub clock_problem: Option<String>,
    /// What anti-entropy is doing.
    pub repair: RepairStatus,
    /// What became of deletes.
    pub tombstone_gc: TombstoneGcStatus,
    /// The change of layout under way, if one is.
    pub change: Option<ChangeReport>,
    /// The node was taken out while it was away, and serves nothing.
    pub removed: bool,
    /// All members.
    pub members: Vec<MemberStatus>,
}
