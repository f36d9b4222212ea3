//! The progress of background tasks, for reports and metrics.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Mutex, MutexGuard, PoisonError};

use quorate_core::report::{RepairStatus, TransferReport};

/// Counters and flags that the node's tasks share.
#[derive(Default)]
pub(crate) struct Progress {
    /// Number of times that an operator asked for a round of anti-entropy with every peer.
    pub(crate) repairs_requested: AtomicU64,
    repair: Mutex<RepairProgress>,
    tombstone_gc: Mutex<TombstoneGcProgress>,
    transfer: Mutex<TransferProgress>,
    /// True if clients' requests are refused, because an operator is about to stop this node.
    pub(crate) drained: AtomicBool,
    /// Number of clients' requests that are being served, on all workers.
    pub(crate) in_flight: AtomicUsize,
}

impl Progress {
    pub(crate) fn repair(&self) -> MutexGuard<'_, RepairProgress> {
        self.repair.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tombstone_gc(&self) -> MutexGuard<'_, TombstoneGcProgress> {
        self.tombstone_gc.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn transfer(&self) -> MutexGuard<'_, TransferProgress> {
        self.transfer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The progress of anti-entropy.
#[derive(Default)]
pub(crate) struct RepairProgress {
    pub(crate) status: RepairStatus,
    /// End of the last round, in milliseconds of the monotonic clock.
    pub(crate) last_ended_ms: Option<u64>,
}

/// The progress of tombstone collection.
#[derive(Default)]
pub(crate) struct TombstoneGcProgress {
    /// Number of tombstones that were collected on this node's orders since it started.
    pub(crate) collected: u64,
    /// The reason why the last search could not collect some tombstones. `None`: no reason was
    /// found.
    pub(crate) blocked_by: Option<String>,
}

/// The progress of the transfer, or of the range handoff, of a layout change.
#[derive(Default)]
pub(crate) struct TransferProgress {
    partitions: u32,
    done: u32,
    bytes: u64,
    begun_ms: u64,
    ended_ms: Option<u64>,
}

impl TransferProgress {
    pub(crate) fn begin(&mut self, partitions: usize, now_ms: u64) {
        *self = TransferProgress {
            partitions: partitions as u32,
            begun_ms: now_ms,
            ..TransferProgress::default()
        };
    }

    /// Adds to the number of partitions whose transfer or handoff is done.
    pub(crate) fn add_done(&mut self, partitions: usize) {
        self.done = (self.done + partitions as u32).min(self.partitions);
    }

    /// Sets the number of partitions whose transfer or handoff is done.
    pub(crate) fn set_done(&mut self, partitions: usize) {
        self.done = partitions as u32;
    }

    pub(crate) fn add_bytes(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    pub(crate) fn end(&mut self, now_ms: u64) {
        self.done = self.partitions;
        self.ended_ms = Some(now_ms);
    }

    pub(crate) fn report(&self, now_ms: u64) -> TransferReport {
        let elapsed = self.ended_ms.unwrap_or(now_ms).saturating_sub(self.begun_ms).max(1);
        let left = u64::from(self.partitions - self.done.min(self.partitions));
        TransferReport {
            partitions: self.partitions,
            done: self.done,
            bytes: self.bytes,
            bytes_per_s: self.bytes * 1_000 / elapsed,
            left_ms: (self.done > 0).then(|| left * elapsed / u64::from(self.done)),
        }
    }
}
