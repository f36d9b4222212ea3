//! The nodes of a cluster, as layouts and membership name them.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64;

/// A node's id for its whole life: a hash of its configured name. The id stays the same after a
/// restart, even if the node's address changes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub u64);

impl NodeId {
    /// Returns the id of the node with this name.
    pub fn of_name(name: &str) -> NodeId {
        NodeId(xxh3_64(name.as_bytes()))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node-{:04x}", self.0 >> 48)
    }
}

/// A node of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// The node's id.
    pub id: NodeId,
    /// The node's configured name.
    pub name: String,
    /// The address at which the node listens, "host:port".
    pub address: String,
    /// The node's failure zone, or empty. The replicas of a partition are spread over zones.
    pub zone: String,
    /// Share of the partitions that this node holds, relative to the other members' weights.
    pub weight: u16,
}

/// Weight of a member whose configuration names none.
pub const DEFAULT_WEIGHT: u16 = 100;

/// Allowed weights of a member.
pub const WEIGHTS: std::ops::RangeInclusive<u16> = 1..=10_000;

/// Longest name, address or zone of a member, in bytes.
pub const MAX_MEMBER_TEXT: usize = 255;

impl Member {
    /// Creates a member with this name, address and zone, and the default weight.
    pub fn new(name: &str, address: &str, zone: &str) -> Member {
        Member {
            id: NodeId::of_name(name),
            name: name.into(),
            address: address.into(),
            zone: zone.into(),
            weight: DEFAULT_WEIGHT,
        }
    }
}

/// Maximum number of members of a layout.
pub const MAX_MEMBERS: usize = 1_024;

/// The way in which a member left the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Departure {
    /// The member handed over its data.
    Left,
    /// The member's disk was declared lost. No node waits for the member, and its old process is
    /// refused.
    Lost {
        /// Number of the layout that declared the disk lost.
        by: u64,
    },
    /// The member's disk was declared lost, and the member has joined again since. The member is
    /// accepted only with an empty disk.
    Returned {
        /// Number of the layout that declared the disk lost.
        lost_by: u64,
    },
}
