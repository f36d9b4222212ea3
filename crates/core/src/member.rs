//! The nodes of a cluster, as layouts and membership name them.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64;

/// Names a node for good: derived from its configured name, so that a restart, also at another address, is the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The id of the node with this name.
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
    /// Its id.
    pub id: NodeId,
    /// Its configured name.
    pub name: String,
    /// Where it listens, "host:port".
    pub address: String,
    /// Its failure zone, or empty: replicas of a partition are spread over zones.
    pub zone: String,
    /// How much it is to hold, relative to the others' weights.
    pub weight: u16,
}

/// The weight of a member that is given none.
pub const DEFAULT_WEIGHT: u16 = 100;

/// The weights a member may have.
pub const WEIGHTS: std::ops::RangeInclusive<u16> = 1..=10_000;

/// Longest name, address or zone of a member, in bytes.
pub const MAX_MEMBER_TEXT: usize = 255;

impl Member {
    /// A member named so, listening there.
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

/// Most nodes of a layout.
pub const MAX_MEMBERS: usize = 1_024;

/// How a member was taken out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Departure {
    /// It handed over what it held.
    Left,
    /// Its disk was declared lost by the layout of this number: nobody waits for it, and its old process is refused.
    Lost {
        /// By which layout.
        by: u64,
    },
    /// So it was, and it has joined again since: with an empty disk, or not at all.
    Returned {
        /// By which layout it was declared lost.
        lost_by: u64,
    },
}
