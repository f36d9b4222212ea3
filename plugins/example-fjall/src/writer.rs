//! Updates and their commits. An update sees all earlier changes, also those that are not committed
//! yet. A thread commits all changes that gathered during its previous commit.
//!
//! If a commit fails, its updates fail, and so do the updates that were applied while it ran. After
//! that the engine accepts no writes, because the contents of the journal are unknown until the
//! next start reads it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use quorate_core::storage::{RecordAction, StorageError, Update};

use crate::store::{Changes, Store};

/// Largest number of updates that wait for a commit. Further ones fail with `QueueFull`.
const MAX_QUEUED_UPDATES: usize = 65_536;
/// Largest number of bytes that wait for a commit. Beyond it, updates fail with `QueueFull`.
const MAX_QUEUED_BYTES: usize = 256 * 1024 * 1024;

pub(crate) struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    store: Arc<Store>,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    /// Changes that were applied since the last commit began.
    gathered: Changes,
    /// Bytes of `gathered`: keys and values.
    bytes: usize,
    /// Changes that are being committed.
    committing: Arc<Changes>,
    /// Updates whose changes are in `gathered`.
    waiting: Vec<Box<dyn Update>>,
    /// Error of the commit that failed, after which the engine accepts no writes.
    broken: Option<StorageError>,
    closing: bool,
}

impl Writer {
    pub(crate) fn start(store: Arc<Store>) -> Writer {
        let shared = Arc::new(Shared { store, state: Mutex::default(), wake: Condvar::new() });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("quorate-fjall".into())
            .spawn(move || while theirs.commit_next() {})
            .expect("the operating system starts a thread");
        Writer { shared, thread: Some(thread) }
    }

    pub(crate) fn update(&self, batch: Vec<Box<dyn Update>>) {
        let mut refused = Vec::new();
        let mut state = self.shared.lock();
        for mut update in batch {
            match self.shared.apply(&mut state, &mut *update) {
                Ok(()) => {
                    update.applied();
                    state.waiting.push(update);
                }
                Err(error) => refused.push((update, error)),
            }
        }
        drop(state);
        self.shared.wake.notify_one();
        for (update, error) in refused {
            update.finished(Err(error));
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies one update. The caller holds the lock from the read to the write, which makes the
    /// update atomic.
    fn apply(&self, state: &mut State, update: &mut dyn Update) -> Result<(), StorageError> {
        if let Some(error) = &state.broken {
            return Err(error.clone());
        }
        for (size, limit) in [(state.waiting.len(), MAX_QUEUED_UPDATES), (state.bytes, MAX_QUEUED_BYTES)] {
            if size >= limit {
                return Err(StorageError::QueueFull { limit: limit as u64 });
            }
        }
        let key = update.key().to_bytes();
        let stored = match state.gathered.get(&key).or_else(|| state.committing.get(&key)) {
            Some(newer) => newer.clone(),
            None => self.store.get(&key)?,
        };
        let newer = match update.change(stored)? {
            RecordAction::Keep => return Ok(()),
            RecordAction::Put(value) => Some(value),
            RecordAction::Remove => None,
        };
        state.bytes += key.len() + newer.as_ref().map_or(0, Bytes::len);
        state.gathered.insert(key, newer);
        Ok(())
    }

    /// Waits for updates and commits them. Returns `false` after the last commit, once the writer
    /// is dropped.
    fn commit_next(&self) -> bool {
        let idle = |state: &mut State| state.waiting.is_empty() && !state.closing;
        let mut state = self.wake.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        let closing = state.closing;
        let waiting = std::mem::take(&mut state.waiting);
        state.committing = Arc::new(std::mem::take(&mut state.gathered));
        state.bytes = 0;
        let committing = state.committing.clone();
        drop(state);

        let outcome = if committing.is_empty() { Ok(()) } else { self.store.commit(&committing) };
        let mut state = self.lock();
        state.committing = Arc::default();
        match outcome {
            Ok(()) => {
                drop(state);
                finish(waiting, &Ok(()));
            }
            Err(error) => {
                // All failed updates are finished under the lock, so that no later update begins
                // before they have failed.
                state.gathered.clear();
                state.broken = Some(error.clone());
                finish(waiting, &Err(error.clone()));
                finish(std::mem::take(&mut state.waiting), &Err(error));
            }
        }
        !closing
    }
}

fn finish(updates: Vec<Box<dyn Update>>, outcome: &Result<(), StorageError>) {
    for update in updates {
        update.finished(outcome.clone());
    }
}
