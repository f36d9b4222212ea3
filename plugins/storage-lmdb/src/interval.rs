//! Buffered writes: acked from a memory overlay, which is committed every interval as one.
//!
//! The file always holds a whole prefix of the commits, so a kill loses at most the last interval, never a part of a
//! batch. A commit that fails (disk full) loses nothing: the overlay is kept and tried again, and until it succeeds new
//! updates are refused.
//!
//! Source: Dynamo §6.1, "object buffer".

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use quorate_core::storage::{Change, Page, Range, StorageError, Update};

use crate::MAX_QUEUED_UPDATES;
use crate::fsync::refuse;
use crate::map::{Map, Overlay};

/// The overlay is committed early when it is this large.
const COMMIT_EARLY_BYTES: usize = 32 * 1024 * 1024;
/// Updates are refused while the overlay is this large.
const MAX_OVERLAY_BYTES: usize = 256 * 1024 * 1024;

pub(crate) struct IntervalWriter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    map: Arc<Map>,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    /// Changes since the last commit began.
    active: Overlay,
    /// Changes that are being committed.
    committing: Arc<Overlay>,
    bytes: usize,
    /// Updates in `active` that want to hear when they are durable.
    waiting: Vec<Box<dyn Update>>,
    /// Bytes that the file has room for, as of the last commit; what is buffered must fit.
    room: u64,
    /// What the last commit failed with.
    failing: Option<StorageError>,
    /// Commit now, not when the interval is over.
    hurry: bool,
    closing: bool,
}

impl State {
    fn newer(&self, key: &[u8]) -> Option<&Option<Bytes>> {
        self.active.get(key).or_else(|| self.committing.get(key))
    }
}

impl IntervalWriter {
    pub(crate) fn start(map: Arc<Map>, interval_ms: u64) -> IntervalWriter {
        let state = State { room: map.room().unwrap_or(0), ..State::default() };
        let shared = Arc::new(Shared { map, state: Mutex::new(state), wake: Condvar::new() });
        let theirs = shared.clone();
        let interval = Duration::from_millis(interval_ms);
        let thread = std::thread::Builder::new()
            .name("quorate-lmdb".into())
            .spawn(move || while theirs.wait_and_commit(interval) {})
            .expect("a thread can be started");
        IntervalWriter { shared, thread: Some(thread) }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        if let Some(newer) = self.shared.lock().newer(key) {
            return Ok(newer.clone());
        }
        self.shared.map.get(key)
    }

    pub(crate) fn update(&self, batch: Vec<Box<dyn Update>>) {
        for mut update in batch {
            let mut state = self.shared.lock();
            match self.apply(&mut state, &mut *update) {
                Ok(()) => {
                    update.applied();
                    state.waiting.push(update);
                    if state.bytes > COMMIT_EARLY_BYTES {
                        self.shared.wake.notify_one();
                    }
                }
                Err(error) => {
                    drop(state);
                    update.finished(Err(error));
                }
            }
        }
    }

    /// The lock is held from the read to the write: that makes the update atomic.
    fn apply(&self, state: &mut State, update: &mut dyn Update) -> Result<(), StorageError> {
        if let Some(error) = &state.failing {
            return Err(error.clone());
        }
        if state.waiting.len() >= MAX_QUEUED_UPDATES || state.bytes >= MAX_OVERLAY_BYTES {
            return Err(StorageError::QueueFull { limit: MAX_QUEUED_UPDATES as u64 });
        }
        let key = update.key().clone();
        let stored = match state.newer(key.as_bytes()) {
            Some(newer) => newer.clone(),
            None => self.shared.map.get(key.as_bytes())?,
        };
        let newer = match update.change(stored)? {
            Change::Keep => return Ok(()),
            Change::Put(value) => {
                // A B+ tree of pages takes about twice what is in it.
                let bytes = state.bytes + key.as_bytes().len() + value.len();
                if bytes as u64 * 2 > state.room {
                    return Err(self.shared.map.room().err().unwrap_or_else(|| self.shared.map.map_full()));
                }
                Some(value)
            }
            Change::Remove => None,
        };
        state.bytes += key.as_bytes().len() + newer.as_ref().map_or(0, Bytes::len);
        state.active.insert(Bytes::copy_from_slice(key.as_bytes()), newer);
        Ok(())
    }

    pub(crate) fn flush(&self) {
        self.shared.lock().hurry = true;
        self.shared.wake.notify_one();
    }

    pub(crate) fn scan(&self, range: Range<'_>) -> Result<Page, StorageError> {
        // Held until the page is read: overlay and file belong to one moment. Pages are bounded.
        let state = self.shared.lock();
        let mut overlay = Overlay::new();
        for part in [&*state.committing, &state.active] {
            let from = std::ops::Bound::Included(range.start);
            let to = range.end.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
            if range.end.is_none_or(|end| end > range.start) {
                overlay.extend(
                    part.range::<[u8], _>((from, to)).map(|(key, value)| (key.clone(), value.clone())),
                );
            }
        }
        self.shared.map.scan(range, Some(&overlay))
    }
}

impl Drop for IntervalWriter {
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

    /// Waits for the interval, or for reasons to hurry, and commits. False when closing: after a last commit.
    fn wait_and_commit(&self, interval: Duration) -> bool {
        let state = self.lock();
        let idle = |state: &mut State| {
            !state.closing && !state.hurry && (state.bytes < COMMIT_EARLY_BYTES || state.failing.is_some())
        };
        let (mut state, _) =
            self.wake.wait_timeout_while(state, interval, idle).unwrap_or_else(PoisonError::into_inner);
        let closing = state.closing;
        state.hurry = false;
        if state.active.is_empty() && state.failing.is_none() {
            let waiting = std::mem::take(&mut state.waiting);
            drop(state);
            finish(waiting);
            return !closing;
        }
        state.committing = Arc::new(std::mem::take(&mut state.active));
        let waiting = std::mem::take(&mut state.waiting);
        let bytes = std::mem::take(&mut state.bytes);
        let committing = state.committing.clone();
        drop(state);

        let outcome = self.commit(&committing);
        drop(committing);
        let room = self.map.room().unwrap_or(0);
        let mut state = self.lock();
        state.room = room;
        let committed = std::mem::take(&mut state.committing);
        match outcome {
            Ok(()) => {
                state.failing = None;
                drop(state);
                finish(waiting);
            }
            Err(error) => {
                // What came meanwhile is newer than what could not be committed.
                let mut all = Arc::unwrap_or_clone(committed);
                all.append(&mut state.active);
                state.active = all;
                state.bytes += bytes;
                let newer = std::mem::replace(&mut state.waiting, waiting);
                state.waiting.extend(newer);
                state.failing = Some(error.clone());
                if closing {
                    let lost = std::mem::take(&mut state.waiting);
                    drop(state);
                    refuse(lost, &error);
                }
            }
        }
        !closing
    }

    fn commit(&self, changes: &Overlay) -> Result<(), StorageError> {
        if changes.values().any(Option::is_some) {
            self.map.check_room()?;
        }
        let mut batch = self.map.begin()?;
        for (key, value) in changes {
            let change = value.clone().map_or(Change::Remove, Change::Put);
            batch.apply(key, &change)?;
        }
        batch.commit()
    }
}

fn finish(updates: Vec<Box<dyn Update>>) {
    for update in updates {
        update.finished(Ok(()));
    }
}
