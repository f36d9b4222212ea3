//! State of the engine under its lock: pending changes, progress, failures, requests to threads.

use std::sync::Arc;

use bytes::Bytes;
use quorate_core::storage::{StorageError, Update};

use crate::space::FreeSpace;
use crate::wal::WalPosition;
use crate::write_buffer::{BufferPart, BufferSize};

/// Largest number of unfinished updates. Beyond it, updates fail with `QueueFull`.
pub const MAX_QUEUED_UPDATES: usize = 65_536;

/// State of the engine that callers and both threads share, under one lock.
///
/// Changes pass through four stages, from new to old: `pending`, `wal_batch`, and the active and
/// the frozen part of the write buffer. Only "fsync" uses the first two.
#[derive(Default)]
pub(super) struct State {
    /// Changes for the next WAL batch.
    pub(super) pending: BufferPart,
    /// Changes of the WAL batch that is being written.
    pub(super) wal_batch: Arc<BufferPart>,
    /// Size of the part of the write buffer that takes new changes.
    pub(super) active_size: BufferSize,
    /// Size of the part of the write buffer that the checkpoint is writing.
    pub(super) frozen_size: BufferSize,
    /// Applied updates that wait for the next WAL batch ("fsync") or checkpoint ("interval").
    pub(super) queued_updates: Vec<Box<dyn Update>>,
    /// Number of updates whose WAL batch or checkpoint is being written.
    pub(super) in_flight_updates: usize,
    /// Free space at its last measurement. All changes that the tree lacks must fit into it.
    pub(super) free_space: FreeSpace,
    /// Failure that stops updates until the checkpointer has repaired it.
    pub(super) failure: Option<Failure>,
    /// WAL generation of the next batch. There are two files, so generation g + 2 overwrites the
    /// file of generation g.
    pub(super) wal_generation: u64,
    /// True if the tree has all changes of the WAL generation before `wal_generation`.
    pub(super) previous_generation_in_tree: bool,
    /// WAL position up to which the write buffer or the tree has all changes.
    pub(super) active_through: WalPosition,
    /// Value of `active_through` when the last checkpoint began. The tree has all changes up to
    /// this WAL position once the checkpoint has succeeded.
    pub(super) frozen_through: WalPosition,
    /// Number of additions to the write buffer since the engine was opened.
    pub(super) active_seqno: u64,
    /// Value of `active_seqno` when the last checkpoint began.
    pub(super) frozen_seqno: u64,
    /// Number of these additions that the tree has: `frozen_seqno` of the last checkpoint that
    /// succeeded.
    pub(super) tree_seqno: u64,
    pub(super) wal_thread: WalThreadState,
    pub(super) checkpointer: CheckpointerState,
    /// True if a checkpoint should begin now, not at the end of its interval.
    pub(super) checkpoint_requested: bool,
    /// True if the running checkpoint was requested. It makes no pauses then.
    pub(super) checkpoint_urgent: bool,
    pub(super) closing: bool,
}

/// Failure that stops updates.
#[derive(Clone)]
pub(super) enum Failure {
    /// The last checkpoint failed. If it only lacked space, changes that do not make the tree
    /// larger are still accepted.
    Checkpoint(StorageError),
    /// The WAL cannot be written. The checkpointer replaces it once the tree has the whole write
    /// buffer.
    Wal(StorageError),
}

impl Failure {
    pub(super) fn error(&self) -> &StorageError {
        let (Failure::Checkpoint(error) | Failure::Wal(error)) = self;
        error
    }
}

#[derive(Default, PartialEq)]
pub(super) enum WalThreadState {
    #[default]
    Running,
    /// Waits for updates, and must be notified of them.
    Idle,
}

#[derive(Default, PartialEq)]
pub(super) enum CheckpointerState {
    #[default]
    Running,
    /// Waits until a checkpoint is due, and must be notified of it.
    Idle,
    /// Waits for the WAL batch that is being written, and then begins the checkpoint. The batch
    /// still belongs to the WAL generation that ends when the checkpoint begins.
    WaitingForWal,
}

impl State {
    /// Returns the newest change of a record that the write buffer does not have yet.
    pub(super) fn unbuffered(&self, key: &[u8]) -> Option<&Option<Bytes>> {
        [&self.pending, &*self.wal_batch].into_iter().find_map(|part| part.changes.get(key))
    }

    /// Returns the size of all changes that the tree lacks.
    pub(super) fn size(&self) -> BufferSize {
        self.pending.size + self.wal_batch.size + self.active_size + self.frozen_size
    }

    pub(super) fn unfinished_updates(&self) -> usize {
        self.queued_updates.len() + self.in_flight_updates
    }

    /// Returns true if the tree lacks no changes except those of the frozen part.
    pub(super) fn only_frozen_is_left(&self) -> bool {
        [self.pending.size, self.wal_batch.size, self.active_size].iter().all(|size| size.records == 0)
    }

    /// Returns true if the tree has all changes.
    pub(super) fn all_is_in_tree(&self) -> bool {
        self.only_frozen_is_left() && self.frozen_size.records == 0
    }

    /// Returns true if the write buffer has changes.
    pub(super) fn has_buffered_changes(&self) -> bool {
        self.active_size.records + self.frozen_size.records > 0
    }

    /// Returns true if the WAL thread should write a batch.
    pub(super) fn wal_batch_due(&self) -> bool {
        let is_stalled = self.active_size.stalls_wal() && self.failure.is_none();
        self.closing || (!self.queued_updates.is_empty() && !is_stalled)
    }
}
