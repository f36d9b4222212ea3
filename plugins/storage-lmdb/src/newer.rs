//! What is newer than the tree, in memory.

use std::collections::BTreeMap;
use std::ops::{Add, Bound};
use std::sync::Arc;

use bytes::Bytes;
use quorate_core::storage::Range;

/// Changes by key; `None`: removed.
pub(crate) type Overlay = BTreeMap<Bytes, Option<Bytes>>;

/// A commit begins when so much is settled, whatever the interval.
pub(crate) const COMMIT_EARLY_BYTES: usize = 32 * 1024 * 1024;
pub(crate) const COMMIT_EARLY_RECORDS: usize = 32_768;
/// The log waits for the tree when this much is settled.
const BEHIND_BYTES: usize = 4 * COMMIT_EARLY_BYTES;
const BEHIND_RECORDS: usize = 4 * COMMIT_EARLY_RECORDS;

/// How much a part holds.
#[derive(Clone, Copy, Default)]
pub(crate) struct Size {
    pub(crate) records: usize,
    /// Of keys and values, each time a record was changed.
    pub(crate) bytes: usize,
    /// By which the tree grows at most.
    pub(crate) pages: usize,
}

impl Size {
    pub(crate) fn is_large(self) -> bool {
        self.bytes >= COMMIT_EARLY_BYTES || self.records >= COMMIT_EARLY_RECORDS
    }

    pub(crate) fn is_too_large(self) -> bool {
        self.bytes >= BEHIND_BYTES || self.records >= BEHIND_RECORDS
    }
}

impl Add for Size {
    type Output = Size;

    fn add(self, other: Size) -> Size {
        Size {
            records: self.records + other.records,
            bytes: self.bytes + other.bytes,
            pages: self.pages + other.pages,
        }
    }
}

/// Changes that go one way together, and how large they are.
#[derive(Clone, Default)]
pub(crate) struct Part {
    pub(crate) changes: Overlay,
    pub(crate) size: Size,
}

impl Part {
    /// `pages`: by which the tree may grow.
    pub(crate) fn insert(&mut self, key: Bytes, value: Option<Bytes>, pages: usize) {
        self.size.bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
        self.size.pages += pages;
        self.changes.insert(key, value);
        self.size.records = self.changes.len();
    }

    /// Lays newer changes over these.
    pub(crate) fn extend(&mut self, newer: Part) {
        self.size = self.size + newer.size;
        self.changes.extend(newer.changes);
        self.size.records = self.changes.len();
    }
}

/// What readers see over the tree. Whoever changes it holds the writer's lock, too; reading it takes no other lock.
#[derive(Default)]
pub(crate) struct Settled {
    pub(crate) newest: Part,
    /// Older, and on its way into the tree.
    pub(crate) committing: Arc<Part>,
}

impl Settled {
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Option<Bytes>> {
        self.newest.changes.get(key).or_else(|| self.committing.changes.get(key))
    }

    /// What a page of the range can need of the newest: as many records as fill it, and what is removed between them.
    pub(crate) fn newest_in(&self, range: &Range<'_>) -> Overlay {
        if range.end.is_some_and(|end| end <= range.start) {
            return Overlay::new();
        }
        let to = range.end.map_or(Bound::Unbounded, Bound::Excluded);
        let newest = self.newest.changes.range::<[u8], _>((Bound::Included(range.start), to));
        let (mut records, mut bytes, mut is_full) = (0, 0, false);
        let fill = |(key, value): &(&Bytes, &Option<Bytes>)| {
            let wanted = !is_full;
            if let Some(value) = value
                && !(range.after && key.as_ref() == range.start)
            {
                // It is the one that tells that there is more.
                is_full = records >= range.limit || (bytes >= range.max_bytes && records > 0);
                (records, bytes) = (records + 1, bytes + key.len() + value.len());
            }
            wanted
        };
        newest.take_while(fill).map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}
