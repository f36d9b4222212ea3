//! Checks of each version that a node stores: its write exists, its dot is new, and it replaces
//! only versions that its writer had seen.

use std::collections::BTreeSet;

use bytes::Bytes;
use quorate_core::hint::parse_hint_key;
use quorate_core::{Dot, NodeId, Object, Payload, StorageKey, Version};

use super::checker::Oracle;
use super::history::{ClientWrite, History, StoredVersion};
use super::rules::Rule;
use crate::records::{decode_layouts, decode_object, layouts_key};

/// A change of one object on one node, in the node's own records or in a hint.
struct ObjectChange<'a> {
    node: usize,
    key: &'a StorageKey,
    old: &'a Object,
    new: &'a Object,
}

impl Oracle {
    /// Checks a change of a record. The simulated engine calls this for every change it applies.
    pub fn record_changed(&self, node: usize, key: &Bytes, old: Option<&Bytes>, new: Option<&Bytes>) {
        if *key == layouts_key() {
            let stored = new.and_then(|bytes| decode_layouts(NodeId(0), bytes));
            let stored = stored.map(|layouts| (node, layouts.newest().clone()));
            self.lock().layouts.extend(stored);
            return;
        }
        let (hint_target, key) = match parse_hint_key(key) {
            Some((target, key)) => (Some(target), key),
            None => match StorageKey::from_peer(key) {
                Some(key) => (None, key),
                None => return,
            },
        };
        let old = old.and_then(decode_object).unwrap_or_default();
        let Some(new) = new.and_then(decode_object) else {
            self.record_deleted(node, hint_target, &key, &old);
            return;
        };
        self.lock().object_changed(&ObjectChange { node, key: &key, old: &old, new: &new });
    }

    /// Checks the deletion of a hint or of an object, or records that a tombstone was collected.
    fn record_deleted(&self, node: usize, hint_target: Option<NodeId>, key: &StorageKey, old: &Object) {
        if let Some(target) = hint_target {
            self.check_deleted_hint(node, target, key, old);
        } else if old.is_tombstone() && self.is_replica_now(node, key) != Some(false) {
            self.lock().collected.extend(old.live().iter().map(|version| version.dot));
        } else {
            self.check_dropped_object(node, key, old);
        }
    }
}

impl History {
    fn object_changed(&mut self, change: &ObjectChange<'_>) {
        let ObjectChange { node, key, .. } = change;
        for version in change.new.live() {
            match self.versions.get(&version.dot) {
                Some(known) if known.request != version.request => {
                    let text = format!(
                        "n{node}: {key:?}: {:?} names {:?} and {:?}",
                        version.dot, known.request, version.request
                    );
                    self.report(Rule::Causality, text);
                }
                Some(_) => {}
                None => self.add_version(change, version),
            }
        }
    }

    /// Adds a version that no node had stored before.
    fn add_version(&mut self, change: &ObjectChange<'_>, version: &Version) {
        let ObjectChange { node, key, old, new } = change;
        let (dot, request) = (version.dot, version.request);
        let Some(write) = self.writes.get(&request).cloned() else {
            let text = format!("n{node}: {key:?}: {dot:?} was written by {request:?}, which no client sent");
            self.report(Rule::NoInventedValue, text);
            return;
        };
        if old.knows(request) {
            let text = format!(
                "n{node}: {key:?}: {request:?} is minted again as {dot:?}, although its coordinator knew of it"
            );
            self.report(Rule::RetriesAreOne, text);
        }
        let replaced = self.check_replaced(change, version, &write);
        if new.replaced().contains(dot) || self.replaced_by.contains_key(&dot) {
            self.report(Rule::Causality, format!("n{node}: {key:?}: {dot:?} is born replaced"));
        }
        for &other in &replaced {
            self.replaced_by.entry(other).or_default().insert(dot);
        }
        self.dots_of_key.entry((*key).clone()).or_default().push(dot);
        self.dots_of_request.entry(request).or_default().push(dot);
        let is_tombstone = version.payload == Payload::Tombstone;
        self.versions.insert(dot, StoredVersion { request, is_tombstone, replaced });
    }

    /// Checks the versions that the new object counts as replaced. Returns those that the writer
    /// had seen.
    fn check_replaced(
        &mut self,
        change: &ObjectChange<'_>,
        version: &Version,
        write: &ClientWrite,
    ) -> BTreeSet<Dot> {
        let ObjectChange { node, key, old, new } = change;
        let (dot, request) = (version.dot, version.request);
        let was_live = |dot: &Dot| old.live().iter().any(|version| version.dot == *dot);
        // A last-write-wins bucket drops older versions even if the writer had not seen them.
        let newest_wins = self.last_write_wins.contains(*key);
        let mut replaced = BTreeSet::new();
        for other in self.dots_of_key.get(*key).cloned().unwrap_or_default() {
            if !new.replaced().contains(other) {
                continue;
            }
            let seen = write.context.contains(other) || (write.overwrites && was_live(&other));
            let loses = newest_wins && other.stamp < dot.stamp;
            if seen {
                if other.stamp >= dot.stamp {
                    let text = format!("n{node}: {key:?}: {dot:?} replaces {other:?}, which is not older");
                    self.report(Rule::Causality, text);
                }
                replaced.insert(other);
            } else if !old.replaced().contains(other) && !loses && !self.is_collected(other) {
                let text = format!(
                    "n{node}: {key:?}: {dot:?} of {request:?} covers {other:?}, which its writer had not seen"
                );
                self.report(Rule::Causality, text);
            }
        }
        replaced
    }
}
