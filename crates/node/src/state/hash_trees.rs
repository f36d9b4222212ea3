//! The hash trees of the records that this node holds.
//!
//! A change of a record updates the record's tree in the same step. Records that were stored before
//! the start enter the trees in the background (`repair/tree_builder.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use quorate_core::codec::decode_object;
use quorate_core::request::TreeName;
use quorate_core::tree::HashTree;
use quorate_core::{Buckets, Digest, Object, PartitionId, StorageKey};

/// A record's digest, which its hash tree contains, and a flag that is true for a tombstone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordState {
    pub(crate) digest: Digest,
    pub(crate) tombstone: bool,
}

impl RecordState {
    pub(crate) fn of(object: &Object) -> RecordState {
        RecordState { digest: object.digest(), tombstone: object.is_tombstone() }
    }
}

/// The change of one record, from `old` to `new`. `None` stands for an absent record.
#[derive(Clone, Debug)]
pub(crate) struct TreeChange {
    pub(crate) key: StorageKey,
    pub(crate) old: Option<RecordState>,
    pub(crate) new: Option<RecordState>,
}

impl TreeChange {
    pub(crate) fn undone(&self) -> TreeChange {
        TreeChange { old: self.new, new: self.old, ..self.clone() }
    }
}

/// The hash trees of all partitions.
pub(crate) struct HashTrees {
    partitions: Vec<Mutex<Partition>>,
    /// The definitions of the buckets, which contain their n. In every partition, each n has a tree
    /// of its own.
    buckets: Arc<ArcSwap<Buckets>>,
}

#[derive(Default)]
struct Partition {
    built: bool,
    /// Records that changed while the trees were not built. These states are newer than those that
    /// the scan finds. `None`: the record was deleted.
    written: BTreeMap<StorageKey, Option<RecordState>>,
    /// The trees, each with its n: the number of replicas of the keys in the tree.
    trees: Vec<(u8, HashTree)>,
    /// Keys whose records are tombstones.
    tombstones: BTreeSet<StorageKey>,
    /// Keys whose records the scan could not read, so that they are in no tree. After a change of
    /// such a record, the trees are built again.
    unreadable: BTreeSet<StorageKey>,
}

/// The records that a scan of a partition found.
#[derive(Default)]
pub(crate) struct ScannedPartition {
    held: Vec<(StorageKey, RecordState)>,
    unreadable: Vec<StorageKey>,
}

impl ScannedPartition {
    pub(crate) fn add(&mut self, key: StorageKey, object: &Bytes) {
        match decode_object(object) {
            Ok(record) => self.held.push((key, RecordState::of(&record.object))),
            Err(_) => self.unreadable.push(key),
        }
    }
}

impl Partition {
    fn toggle(&mut self, key: &StorageKey, n: u8, held: RecordState) {
        let at = match self.trees.iter().position(|(of, _)| *of == n) {
            Some(at) => at,
            None => {
                self.trees.push((n, HashTree::default()));
                self.trees.len() - 1
            }
        };
        self.trees[at].1.toggle(key.as_bytes(), held.digest);
    }

    fn forget(&mut self) {
        self.built = false;
        self.trees.clear();
        self.tombstones.clear();
        self.unreadable.clear();
    }

    fn add(&mut self, key: StorageKey, n: u8, held: RecordState) {
        self.toggle(&key, n, held);
        if held.tombstone {
            self.tombstones.insert(key);
        }
    }
}

impl HashTrees {
    pub(crate) fn new(partitions: u32, buckets: Arc<ArcSwap<Buckets>>) -> HashTrees {
        HashTrees { partitions: (0..partitions).map(|_| Mutex::default()).collect(), buckets }
    }

    /// Returns the n of the tree that a key belongs to. Call it only while the partition is locked.
    /// After a bucket's n has changed, its trees are reset. The reset needs the lock too, so no
    /// tree keeps the outdated n.
    fn n_of(&self, key: &StorageKey) -> u8 {
        self.buckets.load().get(key.bucket()).n
    }

    fn lock(&self, partition: PartitionId) -> MutexGuard<'_, Partition> {
        self.partitions[partition.0 as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies a record's change to its tree. The engine calls this in the order of the record's
    /// changes.
    pub(crate) fn apply(&self, change: &TreeChange) {
        let mut partition = self.lock(change.key.partition());
        if partition.unreadable.contains(&change.key) {
            partition.forget();
        }
        if !partition.built {
            partition.written.insert(change.key.clone(), change.new);
            return;
        }
        if change.old == change.new {
            return;
        }
        let n = self.n_of(&change.key);
        if let Some(old) = change.old {
            partition.toggle(&change.key, n, old);
            if old.tombstone {
                partition.tombstones.remove(&change.key);
            }
        }
        if let Some(new) = change.new {
            partition.add(change.key.clone(), n, new);
        }
    }

    /// Undoes a change that could not be committed. Later changes of the same record fail then too.
    pub(crate) fn undo(&self, change: &TreeChange) {
        let mut partition = self.lock(change.key.partition());
        if partition.built {
            drop(partition);
            return self.apply(&change.undone());
        }
        // The committed record is unchanged, and the scan finds it.
        partition.written.remove(&change.key);
    }

    /// Returns the root of a tree. `None` while the tree is being built.
    pub(crate) fn root(&self, tree: TreeName) -> Option<u64> {
        let partition = self.lock(tree.partition);
        let found = partition.trees.iter().find(|(n, _)| *n == tree.n);
        partition.built.then(|| found.map_or(0, |(_, tree)| tree.root()))
    }

    /// Returns a copy of a tree. `None` while the tree is being built.
    pub(crate) fn tree(&self, tree: TreeName) -> Option<HashTree> {
        let partition = self.lock(tree.partition);
        let found = partition.trees.iter().find(|(n, _)| *n == tree.n);
        partition.built.then(|| found.map_or_else(HashTree::default, |(_, tree)| tree.clone()))
    }

    /// Returns keys of the partition whose records are tombstones: at most `limit`, after the key
    /// `after`. While the trees are being built, some or all keys are missing.
    pub(crate) fn tombstones(
        &self,
        partition: PartitionId,
        after: Option<&StorageKey>,
        limit: usize,
    ) -> Vec<StorageKey> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let partition = self.lock(partition);
        partition.tombstones.range((from, Bound::Unbounded)).take(limit).cloned().collect()
    }

    pub(crate) fn count_tombstones(&self, partition: PartitionId) -> usize {
        self.lock(partition).tombstones.len()
    }

    /// Forgets the partition's trees, so that they are built again from the stored records.
    pub(crate) fn reset(&self, partition: PartitionId) {
        self.lock(partition).forget();
    }

    pub(crate) fn is_built(&self, partition: PartitionId) -> bool {
        self.lock(partition).built
    }

    /// Builds the partition's trees from a scan and from the records that changed during it.
    pub(crate) fn finish(&self, partition: PartitionId, scanned: ScannedPartition) {
        let mut partition = self.lock(partition);
        let written = std::mem::take(&mut partition.written);
        partition.built = true;
        partition.unreadable =
            scanned.unreadable.into_iter().filter(|key| !written.contains_key(key)).collect();
        for (key, held) in scanned.held {
            if !written.contains_key(&key) {
                let n = self.n_of(&key);
                partition.add(key, n, held);
            }
        }
        for (key, held) in written {
            if let Some(held) = held {
                let n = self.n_of(&key);
                partition.add(key, n, held);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_core::Key;

    use super::*;

    const PARTITION: PartitionId = PartitionId(0);

    fn held(digest: u64) -> RecordState {
        RecordState { digest: Digest(digest), tombstone: false }
    }

    fn empty_trees() -> (HashTrees, StorageKey) {
        let key = StorageKey::of(PARTITION, &Key::new(b"b", b"k").unwrap());
        (HashTrees::new(1, Arc::new(ArcSwap::from_pointee(Buckets::default()))), key)
    }

    fn roots(trees: &HashTrees) -> Option<Vec<u64>> {
        let partition = trees.lock(PARTITION);
        partition.built.then(|| partition.trees.iter().map(|(_, tree)| tree.root()).collect())
    }

    /// A record that a scan could not read is in no tree. A change that replaces this record
    /// without reading its value still names an old state. The trees are then built again, with the
    /// new record in them.
    #[test]
    fn unreadable_record_enters_the_tree_after_it_is_replaced() {
        let expected = {
            let (trees, key) = empty_trees();
            trees.finish(
                PARTITION,
                ScannedPartition { held: vec![(key, held(2))], ..ScannedPartition::default() },
            );
            roots(&trees).unwrap()
        };
        for old in [held(1), held(2)] {
            for finished_first in [true, false] {
                let (trees, key) = empty_trees();
                let unreadable =
                    || ScannedPartition { unreadable: vec![key.clone()], ..ScannedPartition::default() };
                let change = TreeChange { key: key.clone(), old: Some(old), new: Some(held(2)) };
                if finished_first {
                    trees.finish(PARTITION, unreadable());
                    trees.apply(&change);
                    assert_eq!(roots(&trees), None, "the trees must be built again");
                    trees.finish(
                        PARTITION,
                        ScannedPartition {
                            held: vec![(key.clone(), held(2))],
                            ..ScannedPartition::default()
                        },
                    );
                } else {
                    trees.apply(&change);
                    trees.finish(PARTITION, unreadable());
                }
                assert_eq!(roots(&trees).as_ref(), Some(&expected));
            }
        }
    }
}
