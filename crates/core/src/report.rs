//! Reports for people and scripts. Each is sent as a JSON document.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bucket::BucketDefinition;

/// The definitions of all buckets, as a node knows them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BucketsReport {
    /// Name of the node that made the report.
    pub node: String,
    /// The newest layout's number.
    pub layout: u64,
    /// N of the newest layout. It is the `n` of each bucket whose definition names none.
    pub replicas: u8,
    /// The buckets by name. `default` has the definition of all buckets without one of their own.
    pub buckets: BTreeMap<String, BucketReport>,
}

/// The definition of one bucket.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BucketReport {
    /// The definition.
    #[serde(flatten)]
    pub definition: BucketDefinition,
    /// True if the bucket can be used. False while it is being created: requests are refused until
    /// no node uses the old definition.
    pub ready: bool,
}

/// The layout and members of a cluster, as a node knows them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterReport {
    /// Name of the node that made the report.
    pub node: String,
    /// The newest layout's number.
    pub layout: u64,
    /// The newest layout's digest, in hexadecimal.
    pub digest: String,
    /// The number of the layout that reads use.
    pub read: u64,
    /// Q, the number of partitions.
    pub partitions: u32,
    /// N of the newest layout.
    pub replicas: u8,
    /// Members of the active layouts, and nodes that gossip has found and that no layout names.
    pub members: Vec<ClusterMember>,
    /// Staged changes, as text for people. They wait for their commit.
    pub staged: Vec<String>,
    /// The most recent layouts, oldest first. The last one is the newest layout.
    pub history: Vec<PastLayout>,
    /// The layout change under way, if there is one.
    pub change: Option<ChangeReport>,
}

/// A member, or a node that may become one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterMember {
    /// The node's name.
    pub name: String,
    /// The address at which the node listens.
    pub address: String,
    /// The node's zone, or empty.
    pub zone: String,
    /// Share of the partitions that the node holds, relative to the other members' weights.
    pub weight: u16,
    /// Role of the node: "member", "joining", "leaving", "waiting" (not yet a member), or
    /// "removed".
    pub role: String,
    /// State of the node, as the answering node sees it: "up" or "down".
    pub state: String,
    /// Partitions of which the node is a replica, in the newest layout.
    pub partitions: u32,
    /// Partitions of which the node is the first replica, in the newest layout.
    pub first: u32,
}

/// One layout of the cluster's history.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PastLayout {
    /// The layout's number.
    pub number: u64,
    /// The layout's digest, in hexadecimal.
    pub digest: String,
    /// The changes that made the layout, as text for people.
    pub summary: String,
}

/// The progress of a layout change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChangeReport {
    /// Numbers of the active layouts.
    pub layouts: Vec<u64>,
    /// The phase that every participant has reached.
    pub phase: String,
    /// Each participant's phase, by name.
    pub phases: BTreeMap<String, String>,
    /// Messages for people: one for each participant that is down and for which the change waits,
    /// with the remedy.
    pub blocked_by: Vec<String>,
    /// Progress of the answering node's copies and handoffs.
    pub transfer: TransferReport,
}

/// Progress of one node's copies and handoffs in a layout change.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TransferReport {
    /// Number of partitions that the node has to copy or to hand over, including those that are
    /// done.
    pub partitions: u32,
    /// Number of partitions that the node has copied or handed over.
    pub done: u32,
    /// Size of the keys and objects that were copied so far, in bytes.
    pub bytes: u64,
    /// Average copied bytes per second since the node began to copy.
    pub bytes_per_s: u64,
    /// Estimated time until all partitions are done, in milliseconds. `None` while no partition is
    /// done.
    pub left_ms: Option<u64>,
}

/// The layout that the staged changes would make, and the data that would move.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PlanReport {
    /// The staged changes, as text for people.
    pub staged: Vec<String>,
    /// The new layout's number.
    pub layout: u64,
    /// The new layout's digest, in hexadecimal. A commit that names it commits exactly this layout.
    pub digest: String,
    /// N of the new layout.
    pub replicas: u8,
    /// Effect of the plan on each node.
    pub nodes: Vec<PlanNode>,
    /// Number of replicas that would move: each is the copy of one partition to a node that does
    /// not hold it now.
    pub moved: u32,
    /// Lower limit of `moved`: no plan that gives each node as many partitions as this one moves
    /// fewer.
    pub fewest: u32,
    /// Estimated bytes that would be copied in all. The estimate is based on the partitions of the
    /// answering node.
    pub bytes: u64,
    /// Number of zones that hold replicas of a partition, for the partition with the fewest.
    pub zones: u32,
}

/// The effect of a plan on one node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PlanNode {
    /// The node's name.
    pub name: String,
    /// The node's zone in the new layout, or empty.
    pub zone: String,
    /// Number of partitions that the node holds now, before the plan is committed.
    pub before: u32,
    /// Number of partitions that the node would hold in the planned layout.
    pub after: u32,
    /// Number of partitions that the node would copy, because it does not hold them now.
    pub gains: u32,
    /// Estimated bytes that the node would copy.
    pub bytes: u64,
}

/// The versions that one replica holds of a key, for `explain`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReplicaState {
    /// The replica's name.
    pub node: String,
    /// State of the replica: "held", "absent", or the reason why it did not answer.
    pub state: String,
    /// The object's digest, in hexadecimal. `None` if the replica has no object or did not answer.
    pub digest: Option<String>,
    /// Live versions, tombstones included.
    pub versions: Vec<VersionSummary>,
}

/// One live version, for `explain`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VersionSummary {
    /// The write's dot, as "actor@stamp".
    pub dot: String,
    /// Bytes of the value; `None` for a tombstone.
    pub value_bytes: Option<u64>,
    /// Wall time of the write's stamp, in milliseconds since 1970.
    pub written_ms: u64,
}

/// The placement of a key, and the versions that each replica holds, for `explain`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// The bucket's name.
    pub bucket: String,
    /// The key, escaped if it is not text.
    pub key: String,
    /// The partition's number.
    pub partition: u16,
    /// The number of the layout that reads use.
    pub layout: u64,
    /// Number of replicas of the key.
    pub n: u8,
    /// Replies that a read waits for, unless its request names another number.
    pub r: u8,
    /// Acks that a write waits for, unless its request names another number.
    pub w: u8,
    /// Names of the replicas, in order.
    pub replicas: Vec<String>,
    /// Names of the fallbacks, in order.
    pub fallbacks: Vec<String>,
    /// The versions that each replica holds.
    pub holdings: Vec<ReplicaState>,
    /// True if all replicas answered, and either hold equal objects or all hold none.
    pub agree: bool,
    /// Names of the nodes that hold hints for this key.
    pub hints: Vec<String>,
}

/// The hints that a node keeps for one replica.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HintStatus {
    /// Name of the replica that the hints are for.
    pub target: String,
    /// Number of hints.
    pub hints: u64,
    /// Size of the hints in bytes, keys included.
    pub bytes: u64,
    /// Age of the oldest hint, in milliseconds.
    pub oldest_ms: u64,
}

/// The progress of anti-entropy.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RepairStatus {
    /// Rounds that succeeded since the node started. A round is a comparison with one peer.
    pub rounds: u64,
    /// Name of the peer of the round under way. `None` between rounds.
    pub running_with: Option<String>,
    /// Keys that differed between this node and a peer, in all rounds since the node started.
    pub divergent_keys: u64,
    /// Keys that differed in the last successful round.
    pub last_round_keys: u64,
    /// Milliseconds since the last successful round ended. `None` before the first.
    pub last_round_ago_ms: Option<u64>,
    /// The last round's peer and error, if that round failed.
    pub last_error: Option<String>,
}

/// The progress of tombstone collection.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TombstoneGcStatus {
    /// Tombstones that this node holds in partitions of which it is the first replica. The first
    /// replica orders the collection.
    pub waiting: u64,
    /// Number of tombstones that this node has ordered the replicas to delete, since the node
    /// started.
    pub collected: u64,
    /// The reason why the last check could not collect all tombstones, mostly a member that is
    /// down.
    pub blocked_by: Option<String>,
}

/// One member, as a node sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemberStatus {
    /// The member's name.
    pub name: String,
    /// The member's address.
    pub address: String,
    /// The member's zone, or empty.
    pub zone: String,
    /// State of the member, as the answering node sees it: "up", "down", or "down, suspected by
    /// all".
    pub state: String,
    /// Partitions of which the member is a replica.
    pub partitions: u32,
    /// Partitions of which the member is the first replica.
    pub first: u32,
    /// The reason why the last connection to the member was refused, if it was.
    pub last_error: Option<String>,
}

/// A node's view of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Name of the node that made the report.
    pub node: String,
    /// The cluster's id.
    pub cluster: String,
    /// This build's version.
    pub version: String,
    /// The newest layout's number.
    pub layout: u64,
    /// The newest layout's digest, in hexadecimal.
    pub layout_digest: String,
    /// Q, the number of partitions.
    pub partitions: u32,
    /// N, the number of replicas of each partition.
    pub replicas: u8,
    /// The storage plugin and its durability.
    pub storage: String,
    /// Milliseconds since the node started.
    pub uptime_ms: u64,
    /// Number of hints that this node holds, for all other nodes together.
    pub hints: u64,
    /// The hints that this node holds, one entry for each replica that they are for.
    pub hints_for: Vec<HintStatus>,
    /// Number of partitions of which this node may have forgotten records. It answers no reads of
    /// them until it has merged with enough other replicas.
    pub recovering: u32,
    /// The reason why this node coordinates no writes, if its clock differs too much from its
    /// peers' clocks.
    pub clock_problem: Option<String>,
    /// The progress of anti-entropy.
    pub repair: RepairStatus,
    /// The progress of tombstone collection.
    pub tombstone_gc: TombstoneGcStatus,
    /// The layout change under way, if there is one.
    pub change: Option<ChangeReport>,
    /// True if the node was removed while it was down or cut off. It then serves nothing.
    pub removed: bool,
    /// Members of the newest layout, and those that are leaving.
    pub members: Vec<MemberStatus>,
}
