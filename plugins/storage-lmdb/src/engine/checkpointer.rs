//! Checkpointer: the thread that writes the write buffer to the tree.
//!
//! A failed checkpoint loses nothing: its changes stay in the buffer, and the next checkpoint tries
//! again. Until one succeeds, updates are refused. If only space was lacking, updates that do not
//! make the tree larger are still accepted.

use std::sync::{MutexGuard, PoisonError};

use bytes::Bytes;
use quorate_core::storage::{StorageError, Update};

use super::engine_core::{EngineCore, finish_updates};
use super::state::{CheckpointerState, Failure, State};
use crate::wal::{self, Wal, WalPosition};
use crate::write_buffer::{BufferSize, Changes};

/// Approximate number of pieces of a large checkpoint under "fsync". Each piece is one commit.
const PIECES: usize = 48;
/// Lower bound of a piece's limit of records. A small checkpoint thus has fewer than `PIECES`
/// pieces. Only lack of space makes the limit smaller.
const MIN_PIECE_RECORDS: usize = 64;
/// Lower bound of a piece's limit of bytes. A piece ends at the limit that it reaches first.
const MIN_PIECE_BYTES: usize = 128 * 1024;

/// Plan of a checkpoint, decided when it begins.
struct Checkpoint {
    /// WAL position up to which the tree has all changes once this checkpoint has succeeded.
    through: WalPosition,
    /// True if the WAL is replaced at the end of the checkpoint. The WAL failed, and with this
    /// checkpoint the tree has all changes.
    replaces_wal: bool,
    /// True for the last checkpoint before the engine closes.
    is_last: bool,
    /// Updates that the checkpoint finishes. Empty under "fsync", where the WAL thread finishes
    /// them.
    updates: Vec<Box<dyn Update>>,
}

impl EngineCore {
    /// Waits until a checkpoint is due, and runs it. Returns false after the last one.
    pub(super) fn run_next_checkpoint(&self) -> bool {
        // This runs again after each wake-up. If no checkpoint is due any more, it sets `Idle`
        // again: `unlock_and_notify` wakes only an idle thread.
        let is_idle = |state: &mut State| {
            let is_idle = !self.checkpoint_due(state);
            if is_idle {
                state.checkpointer = CheckpointerState::Idle;
            }
            is_idle
        };
        let waited = self.checkpointer_wakeup.wait_timeout_while(self.lock(), self.interval, is_idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.checkpointer = CheckpointerState::WaitingForWal;
        let batch_is_written = |state: &mut State| {
            state.checkpointer == CheckpointerState::WaitingForWal && !state.wal_batch.changes.is_empty()
        };
        state = self
            .checkpointer_wakeup
            .wait_while(state, batch_is_written)
            .unwrap_or_else(PoisonError::into_inner);
        // If the WAL thread has written a batch meanwhile, it has also begun the checkpoint.
        if state.checkpointer == CheckpointerState::WaitingForWal {
            self.begin_checkpoint(&mut state);
        }
        self.run_checkpoint(state)
    }

    /// Writes the frozen part of the buffer to the tree, then replaces the WAL if it failed.
    ///
    /// The WAL is replaced only once the tree has all changes, because its files are removed.
    /// Returns false after the last checkpoint.
    pub(super) fn run_checkpoint(&self, mut state: MutexGuard<'_, State>) -> bool {
        let has_all = state.only_frozen_is_left();
        let wal_failed = matches!(state.failure, Some(Failure::Wal(_)));
        let updates = if self.uses_wal { Vec::new() } else { std::mem::take(&mut state.queued_updates) };
        let checkpoint = Checkpoint {
            through: state.frozen_through,
            replaces_wal: wal_failed && has_all,
            is_last: state.closing && has_all,
            updates,
        };
        state.checkpoint_urgent = state.checkpoint_requested;
        state.checkpoint_requested = wal_failed && !has_all;
        if !self.uses_wal {
            state.in_flight_updates = checkpoint.updates.len();
        }
        // The WAL thread may have waited because the active part was too large. It is empty now.
        self.unlock_and_notify(state);

        let frozen = self.read_buffer().frozen.clone();
        let mut outcome = self.write_to_tree(&frozen.changes, checkpoint.through);
        drop(frozen);
        if outcome.is_ok() && checkpoint.replaces_wal {
            outcome = self.replace_wal(checkpoint.through);
        }
        let free_space = self.tree.free_space().unwrap_or_default();
        let mut state = self.lock();
        state.free_space = free_space;
        if !self.uses_wal {
            state.in_flight_updates = 0;
        }
        let is_last = checkpoint.is_last;
        match outcome {
            Ok(()) => self.checkpoint_succeeded(state, checkpoint),
            Err(error) => self.checkpoint_failed(state, checkpoint, error),
        }
        self.checkpoint_ended.notify_all();
        !is_last
    }

    fn checkpoint_succeeded(&self, mut state: MutexGuard<'_, State>, checkpoint: Checkpoint) {
        let frozen = self.lock_buffer().take_frozen();
        state.frozen_size = BufferSize::default();
        state.tree_seqno = state.frozen_seqno;
        state.previous_generation_in_tree = true;
        if checkpoint.replaces_wal {
            // The first batch of the new WAL must begin a generation. A generation that had batches
            // in the old WAL cannot go on in the new one.
            state.wal_generation = checkpoint.through.generation + 1;
        }
        if checkpoint.replaces_wal || !matches!(state.failure, Some(Failure::Wal(_))) {
            state.failure = None;
        }
        self.unlock_and_notify(state);
        // Dropped after the lock is released, because freeing many records takes long.
        drop(frozen);
        finish_updates(checkpoint.updates, Ok(()));
    }

    fn checkpoint_failed(
        &self,
        mut state: MutexGuard<'_, State>,
        checkpoint: Checkpoint,
        error: StorageError,
    ) {
        let mut buffer = self.lock_buffer();
        buffer.unfreeze();
        (state.frozen_size, state.active_size) = (buffer.frozen.size, buffer.active.size);
        drop(buffer);
        // Updates that were queued during the checkpoint are newer than its own, so they come last.
        let newer = std::mem::replace(&mut state.queued_updates, checkpoint.updates);
        state.queued_updates.extend(newer);
        state.failure = Some(match state.failure {
            Some(Failure::Wal(_)) => Failure::Wal(error.clone()),
            _ => Failure::Checkpoint(error.clone()),
        });
        let lost = if checkpoint.is_last { std::mem::take(&mut state.queued_updates) } else { Vec::new() };
        // While there is a failure, the WAL thread does not wait for the checkpointer, so it may
        // have work now.
        self.unlock_and_notify(state);
        finish_updates(lost, Err(error));
    }

    /// Writes changes to the tree, and with the last of them the WAL position `through`.
    ///
    /// Under "fsync" it commits them in pieces with pauses. While a piece is being flushed, flushes
    /// of the WAL wait, and clients with them. If space is lacking for a piece, it is committed in
    /// ever smaller pieces. These need less space at a time: when a commit changes a page, LMDB
    /// keeps the old copy of the page until the commit after the next.
    fn write_to_tree(&self, changes: &Changes, through: WalPosition) -> Result<(), StorageError> {
        let _guard = self.checkpoint_lock.lock().unwrap_or_else(PoisonError::into_inner);
        #[cfg(test)]
        self.faults.before_checkpoint.pass()?;
        let mut changes: Vec<RecordChange<'_>> = changes.iter().collect();
        let mut rest = &mut changes[..];
        let mut piece_records =
            if self.uses_wal { (rest.len() / PIECES).max(MIN_PIECE_RECORDS) } else { rest.len() };
        let total_bytes: usize = rest.iter().map(change_bytes).sum();
        let piece_bytes =
            if self.uses_wal { (total_bytes / PIECES).max(MIN_PIECE_BYTES) } else { total_bytes };
        let mut pauses = if self.uses_wal { PIECES } else { 0 };
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |change: &&RecordChange<'_>| {
                bytes += change_bytes(change);
                bytes <= piece_bytes
            };
            let count = rest.iter().take(piece_records).take_while(fits).count().max(1);
            let piece = &rest[..count];
            match self.commit_piece(piece, (count == rest.len()).then_some(through)) {
                Ok(()) => {
                    rest = &mut rest[count..];
                    #[cfg(test)]
                    self.faults.after_piece.pass()?;
                    if !rest.is_empty() && pauses > 0 {
                        pauses -= 1;
                        self.pause();
                    }
                }
                Err(StorageError::Full { .. }) if count > 1 => {
                    // Removals come first, because they free space, then the smallest values.
                    rest.sort_by_key(|(_, value)| value.as_ref().map(Bytes::len));
                    piece_records = count / 2;
                    pauses = 0;
                }
                Err(error) => return Err(error),
            }
        }
        #[cfg(test)]
        self.faults.after_checkpoint.pass()?;
        Ok(())
    }

    /// Pauses between two pieces, unless this checkpoint is urgent or the next one is due.
    fn pause(&self) {
        let mut state = self.lock();
        state.checkpointer = CheckpointerState::Idle;
        let may_pause = |state: &mut State| {
            !state.checkpoint_urgent && state.failure.is_none() && !self.checkpoint_due(state)
        };
        // All pauses of a checkpoint together last at most half of `interval_ms`.
        let pause = self.interval / (2 * PIECES as u32);
        let waited = self.checkpointer_wakeup.wait_timeout_while(state, pause, may_pause);
        waited.unwrap_or_else(PoisonError::into_inner).0.checkpointer = CheckpointerState::Running;
    }

    /// Commits a piece. For the last piece, `through` is the WAL position to store with it.
    fn commit_piece(
        &self,
        piece: &[RecordChange<'_>],
        through: Option<WalPosition>,
    ) -> Result<(), StorageError> {
        let mut transaction = self.tree.begin_write()?;
        for (key, value) in piece {
            transaction.apply(key, value.as_deref())?;
        }
        if let Some(position) = through {
            transaction.set_wal_position(position)?;
        }
        transaction.commit()
    }

    /// Removes the WAL, and under "fsync" creates a new one.
    ///
    /// Call it only when the tree has all acknowledged changes, up to `through`. The old files may
    /// also have a part of a batch that failed. It is removed with them.
    fn replace_wal(&self, through: WalPosition) -> Result<(), StorageError> {
        let mut wal = self.wal.lock().unwrap_or_else(PoisonError::into_inner);
        *wal = None;
        wal::remove(&self.folder)?;
        if self.uses_wal {
            *wal = Some(Wal::create(&self.folder, through)?);
        }
        Ok(())
    }
}

type RecordChange<'a> = (&'a Bytes, &'a Option<Bytes>);

fn change_bytes((key, value): &RecordChange<'_>) -> usize {
    key.len() + value.as_ref().map_or(0, Bytes::len)
}
