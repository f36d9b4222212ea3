//! The recently deleted hints and recently collected tombstones of this node. Tombstone collection
//! is safe only if these are remembered.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use quorate_core::{Digest, PartitionId, StorageKey};

/// Hints that were deleted recently, and tombstones that were collected recently.
pub(crate) struct GcGuard {
    /// Per partition: the time of the last deletion of a hint, in milliseconds of the monotonic
    /// clock plus one. Zero: never.
    hint_deleted: Vec<AtomicU64>,
    /// Collected tombstones: the digest, and the end of the order in milliseconds since 1970.
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

    /// True if a hint of the partition was deleted within the last `period_ms`.
    pub(crate) fn deleted_hint_within(&self, partition: PartitionId, now_ms: u64, period_ms: u64) -> bool {
        let deleted = self.hint_deleted[partition.0 as usize].load(Ordering::Acquire);
        deleted != 0 && now_ms.saturating_sub(deleted - 1) <= period_ms
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<StorageKey, (Digest, u64)>> {
        self.collected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers the states of keys that are being collected, until the order ends. Forgets those
    /// whose order ended before `ended_before_ms`. Times are milliseconds since 1970.
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

    /// Returns the end of the order by which this state of a key was collected, in milliseconds
    /// since 1970. `None`: it was not collected recently.
    pub(crate) fn collected_until(&self, key: &StorageKey, digest: Digest) -> Option<u64> {
        self.lock().get(key).filter(|(gone, _)| *gone == digest).map(|(_, until)| *until)
    }
}
