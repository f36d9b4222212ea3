//! The part of the engine that callers and both threads share: tree, WAL, write buffer, state.

use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use quorate_core::storage::{StorageError, Update};

#[cfg(test)]
use super::fault_points::FaultPoints;
use super::state::{CheckpointerState, MAX_QUEUED_UPDATES, State, WalThreadState};
use crate::tree::Tree;
use crate::wal::Wal;
use crate::write_buffer::WriteBuffer;

pub(super) struct EngineCore {
    pub(super) tree: Tree,
    pub(super) folder: PathBuf,
    /// True if `durability` is "fsync": an update is finished once its WAL batch is flushed.
    pub(super) uses_wal: bool,
    /// The open WAL. `None` until a checkpoint has created one, and always under "interval".
    pub(super) wal: Mutex<Option<Wal>>,
    pub(super) interval: Duration,
    /// Held from the first to the last commit of a checkpoint.
    pub(super) checkpoint_lock: Mutex<()>,
    pub(super) state: Mutex<State>,
    /// Lock order: `state` before `buffer`.
    pub(super) buffer: RwLock<WriteBuffer>,
    pub(super) wal_thread_wakeup: Condvar,
    pub(super) checkpointer_wakeup: Condvar,
    /// Notified when a checkpoint ends, with or without success.
    pub(super) checkpoint_ended: Condvar,
    #[cfg(test)]
    pub(super) faults: FaultPoints,
}

impl EngineCore {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn read_buffer(&self) -> RwLockReadGuard<'_, WriteBuffer> {
        self.buffer.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock_buffer(&self) -> RwLockWriteGuard<'_, WriteBuffer> {
        self.buffer.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases the lock, and notifies the idle threads that have work now.
    pub(super) fn unlock_and_notify(&self, mut state: MutexGuard<'_, State>) {
        let notify_wal_thread = state.wal_thread == WalThreadState::Idle && state.wal_batch_due();
        let notify_checkpointer =
            state.checkpointer == CheckpointerState::Idle && self.checkpoint_due(&state);
        if notify_wal_thread {
            state.wal_thread = WalThreadState::Running;
        }
        if notify_checkpointer {
            state.checkpointer = CheckpointerState::Running;
        }
        drop(state);
        if notify_wal_thread {
            self.wal_thread_wakeup.notify_one();
        }
        if notify_checkpointer {
            self.checkpointer_wakeup.notify_one();
        }
    }

    /// Returns true if a checkpoint should begin before its interval is over.
    pub(super) fn checkpoint_due(&self, state: &State) -> bool {
        let queue_is_half_full = !self.uses_wal && state.queued_updates.len() >= MAX_QUEUED_UPDATES / 2;
        // Sizes are upper bounds. Only a checkpoint shows how much space the changes really need.
        // With the factor 2 it begins before updates are refused because of a bound that is too
        // high.
        let size = state.size();
        let space_is_low =
            state.has_buffered_changes() && !state.free_space.fits(2 * size.tree_pages, size.bytes);
        let is_due = state.active_size.needs_checkpoint() || queue_is_half_full || space_is_low;
        state.closing || state.checkpoint_requested || (is_due && state.failure.is_none())
    }

    /// Freezes the active part of the write buffer for a checkpoint. The next WAL batch then begins
    /// a new generation, if the file for it can be overwritten.
    pub(super) fn begin_checkpoint(&self, state: &mut State) {
        let mut buffer = self.lock_buffer();
        buffer.freeze();
        (state.frozen_size, state.active_size) = (buffer.frozen.size, buffer.active.size);
        state.checkpointer = CheckpointerState::Running;
        state.frozen_seqno = state.active_seqno;
        state.frozen_through = state.active_through;
        // Generation g + 1 overwrites the file of generation g - 1, which the tree must have first.
        if state.previous_generation_in_tree && state.frozen_size.records > 0 {
            state.wal_generation += 1;
            state.previous_generation_in_tree = false;
        }
    }
}

pub(super) fn finish_updates(updates: Vec<Box<dyn Update>>, outcome: Result<(), StorageError>) {
    for update in updates {
        update.finished(outcome.clone());
    }
}
