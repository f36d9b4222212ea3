//! Updates: applied in the caller's thread, to memory.

use bytes::Bytes;
use quorate_core::storage::{RecordAction, StorageError, Update};

use super::engine_core::EngineCore;
use super::state::{Failure, MAX_QUEUED_UPDATES, State};
use crate::space::page_growth;

/// Largest number of bytes of changes that the tree lacks. From this size on, updates fail with
/// `QueueFull`.
const MAX_BUFFER_BYTES: usize = 256 * 1024 * 1024;
/// Number of updates after which the lock is released, so that other event loops get it.
const UPDATES_PER_LOCK: usize = 64;

impl EngineCore {
    /// Applies updates. The WAL thread finishes them ("fsync"), or the checkpointer ("interval").
    pub(super) fn update(&self, batch: Vec<Box<dyn Update>>) {
        let mut batch = batch.into_iter();
        while batch.len() > 0 {
            let mut refused = Vec::new();
            let mut state = self.lock();
            for mut update in batch.by_ref().take(UPDATES_PER_LOCK) {
                match self.apply(&mut state, &mut *update) {
                    Ok(()) => {
                        update.applied();
                        state.queued_updates.push(update);
                    }
                    Err(error) => refused.push((update, error)),
                }
            }
            self.unlock_and_notify(state);
            for (update, error) in refused {
                update.finished(Err(error));
            }
        }
    }

    /// Applies an update. The caller holds the lock from the read to the write of the record, which
    /// makes the update atomic.
    fn apply(&self, state: &mut State, update: &mut dyn Update) -> Result<(), StorageError> {
        check_limits(state)?;
        let key = update.key().to_bytes();
        let newest = state.unbuffered(&key).cloned().or_else(|| self.read_buffer().get(&key).cloned());
        let stored = match newest {
            Some(newest) => newest,
            None => self.tree.get(&key)?,
        };
        let stored_bytes = stored.as_ref().map(Bytes::len);
        let (value, tree_pages) = match update.change(stored)? {
            RecordAction::Keep => return Ok(()),
            RecordAction::Remove => (None, 0),
            RecordAction::Put(value) => {
                let tree_pages = page_growth(key.len(), stored_bytes, value.len());
                self.check_space(state, tree_pages, key.len() + value.len())?;
                (Some(value), tree_pages)
            }
        };
        if self.uses_wal {
            state.pending.insert(key, value, tree_pages);
        } else {
            let mut buffer = self.lock_buffer();
            buffer.active.insert(key, value, tree_pages);
            state.active_size = buffer.active.size;
            state.active_seqno += 1;
        }
        Ok(())
    }

    /// Checks that LMDB's map and the disk have space for a change. Measures the free space again
    /// before it refuses the change.
    fn check_space(&self, state: &mut State, tree_pages: usize, bytes: usize) -> Result<(), StorageError> {
        if let Some(failure) = state.failure.as_ref().filter(|_| tree_pages > 0) {
            return Err(failure.error().clone());
        }
        let size = state.size();
        // A change that does not make the tree larger fits into a full map. The WAL still needs
        // space on the disk for it.
        let tree_pages = if tree_pages > 0 { size.tree_pages + tree_pages } else { 0 };
        let bytes = size.bytes + bytes;
        if state.free_space.fits(tree_pages, bytes) {
            return Ok(());
        }
        state.free_space = self.tree.free_space()?;
        if state.free_space.fits(tree_pages, bytes) {
            return Ok(());
        }
        // Sizes are upper bounds. A checkpoint shows how much space the changes really need.
        state.checkpoint_requested |= state.has_buffered_changes();
        Err(self.tree.full_error(state.free_space, tree_pages))
    }
}

/// Checks that updates are accepted, and that the queue and the buffer are below their limits.
fn check_limits(state: &State) -> Result<(), StorageError> {
    // If the last checkpoint only lacked space, `check_space` decides for each change.
    if let Some(failure) = &state.failure
        && !matches!(failure, Failure::Checkpoint(StorageError::Full { .. }))
    {
        return Err(failure.error().clone());
    }
    for (size, limit) in
        [(state.unfinished_updates(), MAX_QUEUED_UPDATES), (state.size().bytes, MAX_BUFFER_BYTES)]
    {
        if size >= limit {
            return Err(StorageError::QueueFull { limit: limit as u64 });
        }
    }
    Ok(())
}
