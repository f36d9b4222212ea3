//! A node's memory for tombstone collection: when it last deleted a hint, and which tombstones it
//! collected recently. Without this memory, delayed messages could bring back a deleted value or a
//! collected tombstone.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use quorate_core::{Digest, PartitionId, StorageKey};

/// Hints that were deleted recently, and tombstones that were collected recently.
pub(crate) struct GcGuard {
    /// Per partition: 1 + the time of the last deletion of a hint, in milliseconds of the monotonic
    /// clock. Zero: no hint was deleted.
    hint_deleted: Vec<AtomicU64>,
    /// Collected tombstones by key. Each has its digest, and the time after which the order that
    /// deleted it is void, in milliseconds since 1970.
    collected: Mutex<BTreeMap<StorageKey, (Digest, u64)>>,
}

impl GcGuard {
    pub(crate) fn new(partitions: u32) -> GcGuard {
        GcGuard {
            hint_deleted: (0..partitions).map(|_| AtomicU64::new(0)).collect(),
            collected: Mutex::default(),
        }
    }

    pub(crate) fn note_hint_deleted(&self, partition: PartitionId, now_ms: u64) {
        self.hint_deleted[partition.0 as usize].fetch_max(now_ms + 1, Ordering::AcqRel);
    }

    /// True if this node deleted a hint of the partition within the last `period_ms`.
    pub(crate) fn deleted_hint_within(&self, partition: PartitionId, now_ms: u64, period_ms: u64) -> bool {
        let deleted = self.hint_deleted[partition.0 as usize].load(Ordering::Acquire);
        deleted != 0 && now_ms.saturating_sub(deleted - 1) <= period_ms
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<StorageKey, (Digest, u64)>> {
        self.collected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers the tombstones that an order collects, given as (key, digest). The order is void
    /// after `until_ms`. Forgets the tombstones of orders that were void before `ended_before_ms`.
    /// Both times are milliseconds since 1970.
    pub(crate) fn note_collected(
        &self,
        entries: &[(StorageKey, Digest)],
        until_ms: u64,
        ended_before_ms: u64,
    ) {
        let mut collected = self.lock();
        collected.retain(|_, (_, until)| *until >= ended_before_ms);
        collected.extend(entries.iter().map(|(key, digest)| (key.clone(), (*digest, until_ms))));
    }

    /// Finds the order that collected the key's tombstone with this digest. Returns the time after
    /// which that order is void, in milliseconds since 1970. `None`: there was no such order
    /// recently.
    pub(crate) fn collected_until(&self, key: &StorageKey, digest: Digest) -> Option<u64> {
        self.lock().get(key).filter(|(gone, _)| *gone == digest).map(|(_, until)| *until)
    }
}
