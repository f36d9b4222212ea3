//! The history of a run: every write, every version that a node stored, and every lost disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quorate_core::{CausalContext, Dot, Layout, NodeId, Object, Payload, RequestId, StorageKey};

use super::rules::{Rule, Violation};

/// All recorded events of a run, and the violations found so far.
#[derive(Default)]
pub(super) struct History {
    /// Every write that a client sent.
    pub(super) writes: BTreeMap<RequestId, ClientWrite>,
    /// Every version that a node stored, by its dot.
    pub(super) versions: BTreeMap<Dot, StoredVersion>,
    /// The dots of each key, in the order in which nodes stored them.
    pub(super) dots_of_key: BTreeMap<StorageKey, Vec<Dot>>,
    /// The dots of each write. A write has several if its retries were coordinated again.
    pub(super) dots_of_request: BTreeMap<RequestId, Vec<Dot>>,
    /// For each version, the versions that replaced it and whose writers had seen it.
    pub(super) replaced_by: BTreeMap<Dot, BTreeSet<Dot>>,
    /// Disks that lost acked writes.
    pub(super) lost_disks: Vec<LostDisk>,
    /// Tombstones that some node collected.
    pub(super) collected: BTreeSet<Dot>,
    /// Writes that quorum reads showed: they count as if the replicas had acked them.
    pub(super) shown: BTreeMap<(StorageKey, RequestId), Ack>,
    /// Violations found so far.
    pub(super) violations: Vec<Violation>,
    /// Keys whose bucket keeps only the newest version.
    pub(super) last_write_wins: BTreeSet<StorageKey>,
    /// Number of versions of retried writes that are live in the end although an acked write had
    /// replaced them. This breaks no rule: a retry may write its value once more.
    pub(super) retries_seen_twice: u64,
    /// True once the layout may have changed: records may move between nodes.
    pub(super) layout_changes: bool,
    /// The newest layout that each node has stored.
    pub(super) layouts: BTreeMap<usize, Arc<Layout>>,
    /// The time at which the last node acked each layout, by the layout's number.
    pub(super) last_ack_ms: BTreeMap<u64, u64>,
}

/// A write as its client sent it.
#[derive(Clone, Debug)]
pub struct ClientWrite {
    /// The written key.
    pub key: StorageKey,
    /// A value, or a tombstone.
    pub payload: Payload,
    /// The versions that the client had seen.
    pub context: CausalContext,
    /// True if the write also replaces the versions that its coordinator holds.
    pub overwrites: bool,
    /// The ack, once the client received one.
    pub acked: Option<Ack>,
}

/// An ack, as its receipt describes it.
#[derive(Clone, Debug)]
pub struct Ack {
    /// Time at which the client received the ack, in milliseconds since the run began.
    pub at_ms: u64,
    /// Time at which the client sent the write. A node whose disk was lost after this time may have
    /// acked the write before.
    pub since_ms: u64,
    /// Acks that the write needed.
    pub w: usize,
    /// Nodes that acked.
    pub nodes: Vec<usize>,
    /// Fallbacks among the nodes that acked. Each keeps a hint for a replica.
    pub fallbacks: Vec<usize>,
    /// Dots of the write that the reply's context contains. Failed attempts may have stored
    /// versions with other dots.
    pub dots: Vec<Dot>,
}

/// A version that a node stored.
#[derive(Clone, Debug)]
pub(super) struct StoredVersion {
    pub(super) request: RequestId,
    pub(super) is_tombstone: bool,
    /// Versions that this version replaced and that its writer had seen.
    pub(super) replaced: BTreeSet<Dot>,
}

/// The loss of a node's disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct LostDisk {
    pub(super) node: usize,
    pub(super) at_ms: u64,
}

impl History {
    /// Adds a violation.
    pub(super) fn report(&mut self, rule: Rule, text: String) {
        self.violations.push(Violation { rule, text });
    }

    /// Returns true if the write must survive: fewer than W of the nodes that acked it may have
    /// lost it.
    pub(super) fn survives(&self, ack: &Ack, replicas: &[usize]) -> bool {
        // The bucket may have fewer replicas now than when the write was acked.
        self.losses(ack, replicas) < ack.w.min(replicas.len())
    }

    /// Counts the acking nodes that may have lost the write.
    ///
    /// A fallback passes the write on to a replica, and that replica may lose its disk later.
    pub(super) fn losses(&self, ack: &Ack, replicas: &[usize]) -> usize {
        if self.layout_changes {
            // The acked write may have moved to any node, so every lost disk counts.
            let lost = self.lost_disks.iter().filter(|lost| lost.at_ms >= ack.since_ms).count();
            return lost.min(ack.nodes.len());
        }
        let is_lost = |node: &usize| {
            self.lost_disks.iter().any(|lost| lost.node == *node && lost.at_ms >= ack.since_ms)
        };
        let hint_target_lost =
            replicas.iter().any(|replica| !ack.nodes.contains(replica) && is_lost(replica));
        let may_have_lost =
            |node: &&usize| is_lost(node) || (ack.fallbacks.contains(node) && hint_target_lost);
        ack.nodes.iter().filter(may_have_lost).count()
    }

    /// Returns true if a tombstone of the key is newer than the version `dot`, was collected, and
    /// is not live in `end`.
    pub(super) fn newer_tombstone_collected(&self, dot: Dot, key: &StorageKey, end: &Object) -> bool {
        self.dots_of_key[key].iter().any(|other| {
            let gone = !end.live().iter().any(|version| version.dot == *other);
            self.collected.contains(other) && gone && (other.stamp, other.actor) > (dot.stamp, dot.actor)
        })
    }

    /// Returns the version and all versions that replaced it, directly or not.
    pub(super) fn descendants(&self, dot: Dot) -> BTreeSet<Dot> {
        let mut open = vec![dot];
        let mut found = BTreeSet::new();
        while let Some(dot) = open.pop() {
            if found.insert(dot) {
                open.extend(self.replaced_by.get(&dot).into_iter().flatten().copied());
            }
        }
        found
    }

    /// Returns true if the version, or a version that replaced it directly or indirectly, was a
    /// tombstone that was collected.
    pub(super) fn is_collected(&self, dot: Dot) -> bool {
        self.descendants(dot).iter().any(|dot| self.collected.contains(dot))
    }
}

/// Returns true if `node` is a replica of the key in this layout.
pub(super) fn is_replica(layout: &Layout, node: NodeId, key: &StorageKey) -> bool {
    layout.replicas_for(key.partition(), key.bucket()).contains(&node)
}
