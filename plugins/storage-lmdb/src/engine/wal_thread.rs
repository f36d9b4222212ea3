//! WAL thread, under "fsync": writes pending changes to the log, then to the write buffer.
//!
//! While one batch is being written, the changes of the next one become pending. If a batch cannot
//! be written, its updates fail. All updates that were applied after them fail too, because they
//! may build on the lost changes. Then updates are refused until the tree has the whole write
//! buffer and a new WAL exists.

use std::sync::{Arc, MutexGuard, PoisonError};

use quorate_core::storage::{StorageError, Update};

use super::engine_core::{EngineCore, finish_updates};
use super::state::{CheckpointerState, Failure, State, WalThreadState};
use crate::wal::WalPosition;
use crate::write_buffer::{BufferPart, Changes};

/// Largest number of times that the WAL thread yields to other threads before it writes a batch.
const MAX_YIELDS: usize = 16;

impl EngineCore {
    /// Waits for updates, and writes their changes as a batch. Returns false after the last batch.
    pub(super) fn write_next_batch(&self) -> bool {
        // This runs again after each wake-up. If no batch is due any more, it sets `Idle` again:
        // `unlock_and_notify` wakes only an idle thread.
        let is_idle = |state: &mut State| {
            let is_idle = !state.wal_batch_due();
            if is_idle {
                state.wal_thread = WalThreadState::Idle;
            }
            is_idle
        };
        let state = self.wal_thread_wakeup.wait_while(self.lock(), is_idle);
        let mut state = self.yield_to_callers(state.unwrap_or_else(PoisonError::into_inner));
        state.wal_thread = WalThreadState::Running;
        let closing = state.closing;
        let updates = std::mem::take(&mut state.queued_updates);
        if state.pending.changes.is_empty() {
            drop(state);
            // These updates changed nothing. All changes that they read are in earlier batches,
            // which are durable.
            finish_updates(updates, Ok(()));
            return !closing;
        }
        state.in_flight_updates = updates.len();
        state.wal_batch = Arc::new(std::mem::take(&mut state.pending));
        let (batch, generation) = (state.wal_batch.clone(), state.wal_generation);
        drop(state);

        let outcome = self.append_to_wal(generation, &batch.changes);
        drop(batch);
        match outcome {
            Ok(through) => self.batch_written(updates, through),
            Err(error) => self.batch_failed(updates, error),
        }
        !closing
    }

    /// Moves the written batch to the write buffer, where readers see it, and finishes its updates.
    fn batch_written(&self, updates: Vec<Box<dyn Update>>, through: WalPosition) {
        let mut state = self.lock();
        state.in_flight_updates = 0;
        let batch = std::mem::take(&mut state.wal_batch);
        let mut buffer = self.lock_buffer();
        buffer.active.extend(Arc::unwrap_or_clone(batch));
        state.active_size = buffer.active.size;
        drop(buffer);
        state.active_through = through;
        state.active_seqno += 1;
        if state.checkpointer == CheckpointerState::WaitingForWal {
            // The checkpoint begins here, before the next batch, which thus gets the new
            // generation.
            self.begin_checkpoint(&mut state);
            self.checkpointer_wakeup.notify_one();
        }
        self.unlock_and_notify(state);
        finish_updates(updates, Ok(()));
    }

    /// Fails the updates of the batch and all updates that were applied after them.
    fn batch_failed(&self, updates: Vec<Box<dyn Update>>, error: StorageError) {
        let mut state = self.lock();
        state.in_flight_updates = 0;
        state.wal_batch = Arc::default();
        // Pending changes may build on the batch that failed.
        state.pending = BufferPart::default();
        state.failure = Some(Failure::Wal(error.clone()));
        state.checkpoint_requested = true;
        // The updates fail under the lock, so that no later update begins before they have failed.
        finish_updates(updates, Err(error.clone()));
        finish_updates(std::mem::take(&mut state.queued_updates), Err(error));
        if state.checkpointer == CheckpointerState::WaitingForWal {
            self.checkpointer_wakeup.notify_one();
        }
        self.unlock_and_notify(state);
    }

    fn append_to_wal(&self, generation: u64, changes: &Changes) -> Result<WalPosition, StorageError> {
        #[cfg(test)]
        self.faults.before_append.pass()?;
        let mut wal = self.wal.lock().unwrap_or_else(PoisonError::into_inner);
        let wal = wal.as_mut().expect("no update is accepted before the WAL exists");
        let through = wal.append(generation, changes)?;
        #[cfg(test)]
        self.faults.after_append.pass()?;
        Ok(through)
    }

    /// Yields to the event loops that share this CPU core, as long as they bring more updates.
    ///
    /// On a machine with few CPU cores, a larger batch is worth more than an earlier one. With many
    /// cores, yielding costs a microsecond.
    fn yield_to_callers<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        for _ in 0..MAX_YIELDS {
            let queued = state.queued_updates.len();
            drop(state);
            std::thread::yield_now();
            state = self.lock();
            if state.queued_updates.len() == queued {
                break;
            }
        }
        state
    }
}
