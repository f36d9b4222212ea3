//! The hash trees of what this node holds, kept up in the same step as each write, and built in the background from what
//! was there at the start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use quorate_core::codec::decode_object;
use quorate_core::event::EventKind;
use quorate_core::key::{Table, end_of_prefix};
use quorate_core::request::TreeName;
use quorate_core::storage::{Change, Range, StorageError, Update};
use quorate_core::tree::HashTree;
use quorate_core::{Buckets, Digest, Object, PartitionId, StorageKey};

use crate::shared::Shared;

/// Records read at a time while trees are built: the event loop serves requests in between.
const PAGE_RECORDS: usize = 256;
const PAGE_BYTES: usize = 512 * 1024;
/// How often the node looks for trees that have to be built again.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(200);

/// How often a barrier is tried on an engine that takes nothing; one that has failed takes nothing ever.
const BARRIER_TRIES: usize = 100;
const BARRIER_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// What a tree knows of one record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Held {
    pub(crate) digest: Digest,
    pub(crate) tombstone: bool,
}

impl Held {
    pub(crate) fn of(object: &Object) -> Held {
        Held { digest: object.digest(), tombstone: object.is_tombstone() }
    }
}

/// One record's change.
#[derive(Clone, Debug)]
pub(crate) struct TreeChange {
    pub(crate) key: StorageKey,
    pub(crate) old: Option<Held>,
    pub(crate) new: Option<Held>,
}

impl TreeChange {
    pub(crate) fn undone(&self) -> TreeChange {
        TreeChange { old: self.new, new: self.old, ..self.clone() }
    }
}

/// One of each partition.
pub(crate) struct Trees {
    partitions: Vec<Mutex<Partition>>,
    /// By whose n keys go into one tree or another.
    buckets: Arc<ArcSwap<Buckets>>,
}

#[derive(Default)]
struct Partition {
    built: bool,
    /// What was written before the tree is built: it stands above what the scan finds.
    written: BTreeMap<StorageKey, Option<Held>>,
    trees: Vec<(u8, HashTree)>,
    /// Keys that are deleted.
    tombstones: BTreeSet<StorageKey>,
    /// Keys whose records could not be read: they are in no tree, whatever replaces them says of them.
    unreadable: BTreeSet<StorageKey>,
}

/// What a scan found of a partition.
#[derive(Default)]
struct Scanned {
    held: Vec<(StorageKey, Held)>,
    unreadable: Vec<StorageKey>,
}

impl Scanned {
    fn add(&mut self, key: StorageKey, object: &Bytes) {
        match decode_object(object) {
            Ok(record) => self.held.push((key, Held::of(&record.object))),
            Err(_) => self.unreadable.push(key),
        }
    }
}

impl Partition {
    fn toggle(&mut self, key: &StorageKey, n: u8, held: Held) {
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

    fn add(&mut self, key: StorageKey, n: u8, held: Held) {
        self.toggle(&key, n, held);
        if held.tombstone {
            self.tombstones.insert(key);
        }
    }
}

impl Trees {
    pub(crate) fn new(partitions: u32, buckets: Arc<ArcSwap<Buckets>>) -> Trees {
        Trees { partitions: (0..partitions).map(|_| Mutex::default()).collect(), buckets }
    }

    /// In which of its partition's trees a key is. Asked while the partition is locked: trees that are reset because this
    /// changes are built by what it is then.
    fn n_of(&self, key: &StorageKey) -> u8 {
        self.buckets.load().get(key.bucket()).n
    }

    fn lock(&self, partition: PartitionId) -> MutexGuard<'_, Partition> {
        self.partitions[partition.0 as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called as the engine applies the change: in order for each record.
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

    /// The change could not be committed, and with it all later ones of the record.
    pub(crate) fn undo(&self, change: &TreeChange) {
        let mut partition = self.lock(change.key.partition());
        if partition.built {
            drop(partition);
            return self.apply(&change.undone());
        }
        // What is committed stands, and the scan finds it.
        partition.written.remove(&change.key);
    }

    /// The tree's root; `None` while it is being built.
    pub(crate) fn root(&self, tree: TreeName) -> Option<u64> {
        let partition = self.lock(tree.partition);
        let found = partition.trees.iter().find(|(n, _)| *n == tree.n);
        partition.built.then(|| found.map_or(0, |(_, tree)| tree.root()))
    }

    /// The whole tree; `None` while it is being built.
    pub(crate) fn tree(&self, tree: TreeName) -> Option<HashTree> {
        let partition = self.lock(tree.partition);
        let found = partition.trees.iter().find(|(n, _)| *n == tree.n);
        partition.built.then(|| found.map_or_else(HashTree::default, |(_, tree)| tree.clone()))
    }

    /// Keys of the partition that are deleted, as far as is known, up to `limit` after a key.
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

    /// Forgets the partition's trees: they are built again from what is stored.
    pub(crate) fn reset(&self, partition: PartitionId) {
        self.lock(partition).forget();
    }

    fn is_built(&self, partition: PartitionId) -> bool {
        self.lock(partition).built
    }

    fn finish(&self, partition: PartitionId, scanned: Scanned) {
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

/// Reads all that was there at the start, once, in pages.
async fn build(shared: &Shared) {
    let partitions = shared.partitions();
    let mut next = 0u32;
    let mut scanned = Scanned::default();
    let mut start = vec![Table::Objects as u8];
    let end = end_of_prefix(&start);
    let mut after = false;
    loop {
        let range =
            Range { start: &start, after, end: end.as_deref(), limit: PAGE_RECORDS, max_bytes: PAGE_BYTES };
        let page = match shared.engine.scan(range) {
            Ok(page) => page,
            Err(error) => {
                shared.emit(None, EventKind::StorageFailed { detail: error.to_string() });
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                continue;
            }
        };
        for (key, object) in &page.records {
            let Some(key) = key_of(shared, key) else { continue };
            while next < u32::from(key.partition().0) {
                shared.trees.finish(PartitionId(next as u16), std::mem::take(&mut scanned));
                next += 1;
            }
            scanned.add(key, object);
        }
        match page.records.last() {
            Some((last, _)) if page.more => (start, after) = (last.to_vec(), true),
            _ => break,
        }
        tokio::task::yield_now().await;
    }
    while next < partitions {
        shared.trees.finish(PartitionId(next as u16), std::mem::take(&mut scanned));
        next += 1;
    }
}

/// Builds what was there at the start, and again what is reset later, for as long as the node runs.
pub(crate) async fn keep_built(shared: &Shared) {
    build(shared).await;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        for partition in shared.all_partitions() {
            if !shared.trees.is_built(partition) {
                // What was applied before the trees were reset is in no list: it must be committed, so that the scan finds it.
                all_committed(shared).await;
                rebuild(shared, partition).await;
            }
        }
    }
}

/// Waits until everything that was submitted before is committed.
pub(crate) async fn all_committed(shared: &Shared) {
    for _ in 0..BARRIER_TRIES {
        let (done, committed) = tokio::sync::oneshot::channel();
        let key = StorageKey::of_table(Table::Facts, b"barrier");
        shared.engine.update(vec![Box::new(Barrier { key, done: Some(done) })]);
        shared.engine.flush();
        if let Ok(Ok(())) = committed.await {
            return;
        }
        // A queue that is full took nothing.
        tokio::time::sleep(BARRIER_PAUSE).await;
    }
}

struct Barrier {
    key: StorageKey,
    done: Option<tokio::sync::oneshot::Sender<Result<(), StorageError>>>,
}

impl Update for Barrier {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, _: Option<Bytes>) -> Result<Change, StorageError> {
        Ok(Change::Keep)
    }

    fn applied(&mut self) {}

    fn finished(mut self: Box<Self>, outcome: Result<(), StorageError>) {
        if let Some(done) = self.done.take() {
            let _ = done.send(outcome);
        }
    }
}

async fn rebuild(shared: &Shared, partition: PartitionId) {
    let mut start = StorageKey::partition_start(partition);
    let end = end_of_prefix(&start);
    let mut scanned = Scanned::default();
    let mut after = false;
    loop {
        let range =
            Range { start: &start, after, end: end.as_deref(), limit: PAGE_RECORDS, max_bytes: PAGE_BYTES };
        let Ok(page) = shared.engine.scan(range) else { return };
        for (key, object) in &page.records {
            if let Some(key) = key_of(shared, key) {
                scanned.add(key, object);
            }
        }
        match page.records.last() {
            Some((last, _)) if page.more => (start, after) = (last.to_vec(), true),
            _ => break,
        }
        tokio::task::yield_now().await;
    }
    shared.trees.finish(partition, scanned);
}

/// A damaged record counts as absent: then the others offer theirs, and it is mended.
pub(crate) fn describe(shared: &Shared, key: &Bytes, object: &Bytes) -> Option<(StorageKey, Held)> {
    let key = key_of(shared, key)?;
    let record = decode_object(object).ok()?;
    Some((key, Held::of(&record.object)))
}

fn key_of(shared: &Shared, key: &Bytes) -> Option<StorageKey> {
    StorageKey::from_peer(key).filter(|key| u32::from(key.partition().0) < shared.partitions())
}

#[cfg(test)]
mod tests {
    use quorate_core::Key;

    use super::*;

    const PARTITION: PartitionId = PartitionId(0);

    fn held(digest: u64) -> Held {
        Held { digest: Digest(digest), tombstone: false }
    }

    fn fresh() -> (Trees, StorageKey) {
        let key = StorageKey::of(PARTITION, &Key::new(b"b", b"k").unwrap());
        (Trees::new(1, Arc::new(ArcSwap::from_pointee(Buckets::default()))), key)
    }

    fn roots(trees: &Trees) -> Option<Vec<u64>> {
        let partition = trees.lock(PARTITION);
        partition.built.then(|| partition.trees.iter().map(|(_, tree)| tree.root()).collect())
    }

    /// A record that a scan could not read is in no tree. Who replaces it without reading its value says that it was: the tree
    /// is built again, and says what is there.
    #[test]
    fn a_record_that_was_not_readable_is_counted_once_it_is_replaced() {
        let expected = {
            let (trees, key) = fresh();
            trees.finish(PARTITION, Scanned { held: vec![(key, held(2))], ..Scanned::default() });
            roots(&trees).unwrap()
        };
        for old in [held(1), held(2)] {
            for finished_first in [true, false] {
                let (trees, key) = fresh();
                let unreadable = || Scanned { unreadable: vec![key.clone()], ..Scanned::default() };
                let change = TreeChange { key: key.clone(), old: Some(old), new: Some(held(2)) };
                if finished_first {
                    trees.finish(PARTITION, unreadable());
                    trees.apply(&change);
                    assert_eq!(roots(&trees), None, "it has to be built again");
                    trees.finish(
                        PARTITION,
                        Scanned { held: vec![(key.clone(), held(2))], ..Scanned::default() },
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
