//! Options of a run: the cluster's size, its buckets, and the settings of its nodes.

use std::collections::BTreeMap;

use quorate_core::BucketDefinition;
use quorate_core::planted::Bug;
use quorate_node::Settings;

use super::storage::Durability;

/// Bucket that keeps siblings.
pub const SIBLINGS: &str = "b";
/// Bucket in which the last write wins.
pub const LAST_WINS: &str = "lww";
/// Bucket that has the default definition at first. In some runs an operator gives it another n
/// while clients use it.
pub const REDEFINED: &str = "own";

/// Default of [`Options::max_skew_ms`].
pub const MAX_SKEW_MS: u64 = 1_000;

/// The options of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Members of the first layout.
    pub nodes: usize,
    /// Further nodes, which can become members.
    pub spares: usize,
    /// N, the number of replicas of a key.
    pub replicas: u8,
    /// Q, the number of partitions.
    pub partitions: u32,
    /// Durability of the engines.
    pub durability: Durability,
    /// True if nodes start anti-entropy themselves: when a peer returns, and at intervals.
    /// Otherwise it runs only when the simulation requests it, as `Sim::converge` does.
    pub anti_entropy: bool,
    /// True if nodes collect tombstones.
    pub tombstone_gc: bool,
    /// The bug to plant.
    pub bug: Option<Bug>,
    /// Definition of the bucket [`SIBLINGS`].
    pub bucket: BucketDefinition,
    /// Allowed difference between the nodes' clocks, in milliseconds. A node whose clock is further
    /// off coordinates no writes.
    pub max_skew_ms: u64,
    /// True if nodes find each other by gossip: each is configured with the address of node 0 only.
    /// Otherwise each is configured with a list of all nodes.
    pub gossip: bool,
    /// Limit of the speed at which a node copies the partitions that it gains in a layout change. A
    /// partition has a few hundred bytes here, so a low limit makes the change last longer.
    pub transfer_bytes_per_s: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            nodes: 5,
            spares: 0,
            replicas: 3,
            partitions: 8,
            durability: Durability::Fsync,
            anti_entropy: false,
            tombstone_gc: false,
            bug: None,
            bucket: BucketDefinition::default(),
            max_skew_ms: MAX_SKEW_MS,
            gossip: false,
            transfer_bytes_per_s: 1024 * 1024,
        }
    }
}

impl Options {
    /// Returns the nodes' settings. Intervals of minutes are shortened to seconds.
    pub fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.coordinator.max_request_timeout_ms = 2_000;
        settings.coordinator.max_clock_skew_ms = self.max_skew_ms;
        settings.repair.interval_ms = 5_000;
        settings.repair.enabled = self.anti_entropy;
        settings.transfer.bytes_per_s = self.transfer_bytes_per_s;
        settings.tombstone_gc.enabled = self.tombstone_gc;
        settings.tombstone_gc.interval_ms = 400;
        settings.tombstone_gc.grace_ms = settings.shortest_grace_ms();
        settings
    }

    /// Returns the definitions of the first layout's buckets.
    pub(super) fn definitions(&self) -> BTreeMap<String, BucketDefinition> {
        let last_wins = BucketDefinition { resolver: "lww".into(), ..self.bucket.clone() };
        BTreeMap::from([(SIBLINGS.to_owned(), self.bucket.clone()), (LAST_WINS.to_owned(), last_wins)])
    }
}
