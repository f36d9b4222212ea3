//! Write buffer: the changes in memory that readers see and the tree lacks.
//!
//! Its active part receives changes. A checkpoint writes its frozen part to the tree. An LSM tree
//! calls them the active and the immutable memtable.
//!
//! Source: Dynamo §6.1 ("object buffer").

use std::collections::BTreeMap;
use std::ops::{Add, Bound};
use std::sync::Arc;

use bytes::Bytes;
use quorate_core::storage::Range;

/// New values by key. `None` removes the record.
pub(crate) type Changes = BTreeMap<Bytes, Option<Bytes>>;

/// Bytes of the active part from which on a checkpoint begins before its interval is over.
pub(crate) const CHECKPOINT_BYTES: usize = 32 * 1024 * 1024;
/// Records of the active part from which on a checkpoint begins before its interval is over.
pub(crate) const CHECKPOINT_RECORDS: usize = 32_768;
/// Bytes of the active part from which on the WAL thread waits for the checkpointer.
const STALL_BYTES: usize = 4 * CHECKPOINT_BYTES;
/// Records of the active part from which on the WAL thread waits for the checkpointer.
const STALL_RECORDS: usize = 4 * CHECKPOINT_RECORDS;

/// Size of a set of changes.
#[derive(Clone, Copy, Default)]
pub(crate) struct BufferSize {
    pub(crate) records: usize,
    /// Bytes of keys and values. A record that changed twice counts twice.
    pub(crate) bytes: usize,
    /// Largest number of pages by which the changes make the tree larger.
    pub(crate) tree_pages: usize,
}

impl BufferSize {
    /// Returns true if a checkpoint should begin before its interval is over.
    pub(crate) fn needs_checkpoint(self) -> bool {
        self.bytes >= CHECKPOINT_BYTES || self.records >= CHECKPOINT_RECORDS
    }

    /// Returns true if the WAL thread must wait for the checkpointer.
    pub(crate) fn stalls_wal(self) -> bool {
        self.bytes >= STALL_BYTES || self.records >= STALL_RECORDS
    }
}

impl Add for BufferSize {
    type Output = BufferSize;

    fn add(self, other: BufferSize) -> BufferSize {
        BufferSize {
            records: self.records + other.records,
            bytes: self.bytes + other.bytes,
            tree_pages: self.tree_pages + other.tree_pages,
        }
    }
}

/// Changes that move together from one stage to the next, and their size.
#[derive(Clone, Default)]
pub(crate) struct BufferPart {
    pub(crate) changes: Changes,
    pub(crate) size: BufferSize,
}

impl BufferPart {
    /// Adds a change that makes the tree larger by at most `tree_pages`.
    pub(crate) fn insert(&mut self, key: Bytes, value: Option<Bytes>, tree_pages: usize) {
        self.size.bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
        self.size.tree_pages += tree_pages;
        self.changes.insert(key, value);
        self.size.records = self.changes.len();
    }

    /// Adds newer changes, which replace older ones of the same keys.
    pub(crate) fn extend(&mut self, newer: BufferPart) {
        self.size = self.size + newer.size;
        self.changes.extend(newer.changes);
        self.size.records = self.changes.len();
    }
}

/// Changes in memory. A reader that finds a record here does not use the tree's older one.
///
/// A thread that changes the buffer also holds the lock of the engine's state. Reading the buffer
/// needs no other lock.
#[derive(Default)]
pub(crate) struct WriteBuffer {
    /// Part that receives changes. It is newer than `frozen`.
    pub(crate) active: BufferPart,
    /// Part that the running checkpoint writes to the tree.
    pub(crate) frozen: Arc<BufferPart>,
}

impl WriteBuffer {
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Option<Bytes>> {
        self.active.changes.get(key).or_else(|| self.frozen.changes.get(key))
    }

    /// Copies the changes of the active part that a page of `range` can need.
    ///
    /// These are the new values that fill the page, one more, and the removals between them. The
    /// tree and the frozen part can only make the page end earlier.
    pub(crate) fn active_in(&self, range: &Range<'_>) -> Changes {
        if range.end.is_some_and(|end| end <= range.start) {
            return Changes::new();
        }
        let to = range.end.map_or(Bound::Unbounded, Bound::Excluded);
        let active = self.active.changes.range::<[u8], _>((Bound::Included(range.start), to));
        let (mut records, mut bytes, mut is_full) = (0, 0, false);
        let fill = |(key, value): &(&Bytes, &Option<Bytes>)| {
            let wanted = !is_full;
            if let Some(value) = value
                && !(range.after && key.as_ref() == range.start)
            {
                // The record that exceeds the page is copied too: it shows that there are more.
                is_full = records >= range.limit || (bytes >= range.max_bytes && records > 0);
                (records, bytes) = (records + 1, bytes + key.len() + value.len());
            }
            wanted
        };
        active.take_while(fill).map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Freezes the active part for a checkpoint, and starts an empty one.
    pub(crate) fn freeze(&mut self) {
        assert!(self.frozen.changes.is_empty(), "only one checkpoint runs at a time");
        self.frozen = Arc::new(std::mem::take(&mut self.active));
    }

    /// Removes the frozen part, because the tree has it now.
    pub(crate) fn take_frozen(&mut self) -> Arc<BufferPart> {
        std::mem::take(&mut self.frozen)
    }

    /// Merges the frozen part back into the active one, because its checkpoint failed. Changes of
    /// the active part are newer, so they win.
    pub(crate) fn unfreeze(&mut self) {
        let frozen = Arc::unwrap_or_clone(self.take_frozen());
        let newer = std::mem::replace(&mut self.active, frozen);
        self.active.extend(newer);
    }
}
