//! Checks of data that moves between nodes. No node may delete a hint or an object before the nodes
//! that must hold it hold it durably. A synced node must durably hold what it had to copy.

use std::sync::{Arc, Weak};

use quorate_core::layout_change::{Layouts, Phase};
use quorate_core::object::MergeRule;
use quorate_core::{Dot, Layout, NodeId, Object, RequestId, StorageKey};

use super::checker::Oracle;
use super::durable::durable_object;
use super::history::is_replica;
use super::rules::Rule;
use crate::naming::node_id;
use crate::records::{decode_layouts, layouts_key};

impl Oracle {
    /// Checks a deleted hint: its target must durably hold the hint's versions.
    pub(super) fn check_deleted_hint(&self, node: usize, target: NodeId, key: &StorageKey, hint: &Object) {
        let disks = self.disks();
        let Some(number) = (0..disks.len()).find(|&number| node_id(number) == target) else { return };
        let Some(disk) = disks[number].upgrade() else { return };
        let mut held = durable_object(&*disk, key);
        if self.is_replica_now(node, key) == Some(true) {
            // The node is a replica itself now, and the hint may be for it alone. It then merges
            // the hint into its own record. The check cannot read that: this update locks the disk.
            return;
        }
        if self.lock().layout_changes {
            // The target may not be a replica any more. Then other nodes must hold the versions.
            let others = disks.iter().enumerate().filter(|(other, _)| *other != node);
            for disk in others.filter_map(|(_, disk)| disk.upgrade()) {
                held.merge(&durable_object(&*disk, key), MergeRule::KeepAll);
            }
        }
        let mut history = self.lock();
        let is_missing = |dot: &Dot| {
            !held.context().contains(*dot)
                && !history.is_collected(*dot)
                && !history.last_write_wins.contains(key)
        };
        let missing = hint.live().iter().map(|version| version.dot).find(is_missing);
        let target_lost = history.lost_disks.iter().any(|lost| lost.node == number);
        if let Some(dot) = missing.filter(|_| !target_lost) {
            let text =
                format!("n{node} deletes a hint for n{number}, which does not have {dot:?} of {key:?}");
            history.report(Rule::AckedWritesSurvive, text);
        }
    }

    /// Checks an object that a node drops because it is no replica any more: every replica must
    /// durably hold the object's versions.
    pub(super) fn check_dropped_object(&self, node: usize, key: &StorageKey, old: &Object) {
        let Some(layout) = self.lock().layouts.get(&node).cloned() else { return };
        for (owner, disk) in self.disks().iter().enumerate().filter(|(owner, _)| *owner != node) {
            let owns = is_replica(&layout, node_id(owner), key);
            let Some(disk) = disk.upgrade().filter(|_| owns) else { continue };
            let held = durable_object(&*disk, key);
            let mut history = self.lock();
            let excused = history.last_write_wins.contains(key)
                || history.lost_disks.iter().any(|lost| lost.node == owner || lost.node == node);
            let is_missing = |dot: &Dot| !held.context().contains(*dot) && !history.is_collected(*dot);
            let missing = old.live().iter().map(|version| version.dot).find(is_missing);
            if let Some(dot) = missing.filter(|_| !excused) {
                let text = format!(
                    "n{node} drops {dot:?} of {key:?} by layout {}, which n{owner}, its owner, does not have: {old:?}, there {held:?}",
                    layout.number()
                );
                history.report(Rule::AckedWritesSurvive, text);
            }
        }
    }

    /// Returns true if `node` is a replica of `key` in the newest layout that it has stored.
    /// `None`: no layout changes in this run, or the node has stored no layout.
    pub(super) fn is_replica_now(&self, node: usize, key: &StorageKey) -> Option<bool> {
        let history = self.lock();
        let layout = history.layouts.get(&node).filter(|_| history.layout_changes)?;
        Some(is_replica(layout, node_id(node), key))
    }

    /// Records that a node has reached a phase of a layout change, and checks a synced node.
    pub fn phase_reached(&self, node: usize, number: u64, phase: Phase, at_ms: u64) {
        match phase {
            Phase::Acked => {
                let mut history = self.lock();
                let last = history.last_ack_ms.entry(number).or_default();
                *last = (*last).max(at_ms);
            }
            Phase::Synced => self.check_synced(node, number),
            _ => {}
        }
    }

    /// Checks a synced node: it must durably hold every write that a quorum of replicas acked
    /// before the last node acked the layout. Later writes do not count: they also need acks of the
    /// new replicas.
    fn check_synced(&self, node: usize, number: u64) {
        let disks = self.disks();
        let Some(disk) = disks.get(node).and_then(Weak::upgrade) else { return };
        let record = disk.durable_record(&layouts_key());
        let Some(layouts) = record.and_then(|bytes| decode_layouts(node_id(node), &bytes)) else { return };
        for (request, key) in self.writes_to_sync(node_id(node), number, &layouts) {
            let held = durable_object(&*disk, &key);
            if !self.covers(&held.context(), request, &key) {
                let text = format!(
                    "n{node} says that it has synced for layout {number}, and does not have {request:?} of {key:?}"
                );
                self.report(Rule::AckedWritesSurvive, text);
            }
        }
    }

    /// Returns the writes that `node` must hold when it has synced for layout `number`.
    fn writes_to_sync(&self, node: NodeId, number: u64, layouts: &Layouts) -> Vec<(RequestId, StorageKey)> {
        let history = self.lock();
        let newest = layouts.newest();
        let before_ms = history.last_ack_ms.get(&number).copied().unwrap_or(0);
        let mut due = Vec::new();
        for (request, write) in &history.writes {
            let Some(ack) = &write.acked else { continue };
            let counts = ack.at_ms < before_ms
                && ack.fallbacks.is_empty()
                && ack.w > usize::from(newest.replicas()) / 2
                && history.losses(ack, &[]) == 0
                && moves_to(node, layouts, &write.key);
            if counts {
                due.push((*request, write.key.clone()));
            }
        }
        due
    }
}

/// Returns true if `node` is a replica of `key` in the newest layout, and the key's replicas
/// differ from those in a layout that the node copies from.
fn moves_to(node: NodeId, layouts: &Layouts, key: &StorageKey) -> bool {
    let newest = layouts.newest();
    let n = |layout: &Layout| layout.buckets().get(key.bucket()).n;
    let replicas = |layout: &Layout| layout.replicas_of(key.partition(), n(newest)).to_vec();
    let new_replicas = replicas(newest);
    // A key whose bucket had another n arrives in another way: all nodes backfill the bucket.
    let moved = |source: &Arc<Layout>| n(source) == n(newest) && replicas(source) != new_replicas;
    new_replicas.contains(&node) && layouts.sources().iter().any(moved)
}
