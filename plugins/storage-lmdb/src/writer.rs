//! From updates to commits: an update is applied at once, to a memory overlay over the file, and a thread commits what has
//! gathered in one transaction.
//!
//! Under "fsync" it commits as soon as it can: while one commit is under way the next gathers, and readers see the
//! file. A failed commit fails its updates, and with them those that were applied on top of it. Under "interval" it
//! commits when the interval is over or the overlay is large, and readers see the overlay. A commit that fails then
//! (disk full) loses nothing: the overlay is kept and tried again, and until that succeeds new updates are refused.
//!
//! The file always holds a whole prefix of the commits: a kill never leaves a part of a batch.
//!
//! Source of the overlay: Dynamo §6.1, "object buffer".

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use quorate_core::storage::{Change, Page, Range, StorageError, Update};

use crate::map::{Map, Overlay};
use crate::{Durability, MAX_QUEUED_UPDATES};

/// A commit begins when the overlay is this large, whatever the interval.
const COMMIT_EARLY_BYTES: usize = 32 * 1024 * 1024;
/// So it does when this many updates wait to hear that they are durable.
const COMMIT_EARLY_UPDATES: usize = MAX_QUEUED_UPDATES / 2;
/// Updates are refused while the overlay is this large.
const MAX_OVERLAY_BYTES: usize = 256 * 1024 * 1024;

/// The lock is given up after this many updates, so that other event loops get their turn.
const APPLIED_TOGETHER: usize = 64;
/// How often a commit lets others run first at most.
const MOST_YIELDS: usize = 16;

/// When to commit.
#[derive(Clone, Copy)]
struct Pace {
    durability: Durability,
    interval: Duration,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    map: Arc<Map>,
    pace: Pace,
    state: Mutex<State>,
    wake: Condvar,
    #[cfg(test)]
    trouble: tests::Trouble,
}

#[derive(Default)]
struct State {
    /// Changes since the last commit began.
    active: Overlay,
    /// Changes that are being committed.
    committing: Arc<Overlay>,
    /// Bytes of `active`.
    bytes: usize,
    /// Bytes of `committing`: `room` does not show them before they are committed.
    committing_bytes: usize,
    /// Updates in `active` that want to hear when they are durable.
    waiting: Vec<Box<dyn Update>>,
    /// Bytes that the file had room for when that was last looked at; what is in the overlay must fit.
    room: u64,
    /// What the last commit failed with, while its changes are kept.
    failing: Option<StorageError>,
    /// Commit now, not when the interval is over.
    hurry: bool,
    closing: bool,
    /// The committing thread sleeps.
    idle: bool,
}

impl State {
    fn newer(&self, key: &[u8]) -> Option<&Option<Bytes>> {
        self.active.get(key).or_else(|| self.committing.get(key))
    }

    fn is_due(&self, durability: Durability) -> bool {
        self.closing
            || self.hurry
            || match durability {
                Durability::Fsync => !self.waiting.is_empty(),
                Durability::Interval => {
                    let large =
                        self.bytes >= COMMIT_EARLY_BYTES || self.waiting.len() >= COMMIT_EARLY_UPDATES;
                    large && self.failing.is_none()
                }
            }
    }
}

impl Writer {
    pub(crate) fn start(map: Arc<Map>, durability: Durability, interval_ms: u64) -> Writer {
        let state = State { room: map.room().unwrap_or(0), ..State::default() };
        let pace = Pace { durability, interval: Duration::from_millis(interval_ms) };
        let shared = Arc::new(Shared {
            map,
            pace,
            state: Mutex::new(state),
            wake: Condvar::new(),
            #[cfg(test)]
            trouble: tests::Trouble::default(),
        });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("quorate-lmdb".into())
            .spawn(move || while theirs.wait_and_commit() {})
            .expect("a thread can be started");
        Writer { shared, thread: Some(thread) }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        if self.shared.pace.durability == Durability::Interval
            && let Some(newer) = self.shared.lock().newer(key)
        {
            return Ok(newer.clone());
        }
        self.shared.map.get(key)
    }

    pub(crate) fn update(&self, batch: Vec<Box<dyn Update>>) {
        let mut batch = batch.into_iter();
        while batch.len() > 0 {
            let mut refused = Vec::new();
            let mut state = self.shared.lock();
            for mut update in batch.by_ref().take(APPLIED_TOGETHER) {
                match self.shared.apply(&mut state, &mut *update) {
                    Ok(()) => {
                        update.applied();
                        state.waiting.push(update);
                    }
                    Err(error) => refused.push((update, error)),
                }
            }
            let wake = state.idle && state.is_due(self.shared.pace.durability);
            state.idle &= !wake;
            drop(state);
            if wake {
                self.shared.wake.notify_one();
            }
            for (update, error) in refused {
                update.finished(Err(error));
            }
        }
    }

    pub(crate) fn flush(&self) {
        self.shared.lock().hurry = true;
        self.shared.wake.notify_one();
    }

    pub(crate) fn scan(&self, range: Range<'_>) -> Result<Page, StorageError> {
        if self.shared.pace.durability == Durability::Fsync {
            return self.shared.map.scan(range, None);
        }
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

    /// The lock is held from the read to the write: that makes the update atomic.
    fn apply(&self, state: &mut State, update: &mut dyn Update) -> Result<(), StorageError> {
        if let Some(error) = &state.failing {
            return Err(error.clone());
        }
        for (size, limit) in [(state.waiting.len(), MAX_QUEUED_UPDATES), (state.bytes, MAX_OVERLAY_BYTES)] {
            if size >= limit {
                return Err(StorageError::QueueFull { limit: limit as u64 });
            }
        }
        let key = update.key().to_bytes();
        let stored = match state.newer(&key) {
            Some(newer) => newer.clone(),
            None => self.map.get(&key)?,
        };
        let newer = match update.change(stored)? {
            Change::Keep => return Ok(()),
            Change::Put(value) => {
                self.check_room(state, key.len() + value.len())?;
                Some(value)
            }
            Change::Remove => None,
        };
        state.bytes += key.len() + newer.as_ref().map_or(0, Bytes::len);
        state.active.insert(key, newer);
        Ok(())
    }

    /// A B+ tree of pages takes about twice what is in it. Looked at afresh for the first update of a commit, since others
    /// fill the disk, too, and before anything is refused.
    fn check_room(&self, state: &mut State, bytes: usize) -> Result<(), StorageError> {
        let needed = (state.bytes + state.committing_bytes + bytes) as u64 * 2;
        if needed > state.room || state.waiting.is_empty() {
            state.room = self.map.room()?;
        }
        if needed > state.room {
            return Err(self.map.map_full());
        }
        Ok(())
    }

    /// Waits until a commit is due, and commits. False when closing: after a last commit.
    fn wait_and_commit(&self) -> bool {
        let mut state = self.lock();
        state.idle = !state.is_due(self.pace.durability);
        let idle = |state: &mut State| !state.is_due(self.pace.durability);
        let mut state = match self.pace.durability {
            Durability::Fsync => {
                let state = self.wake.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
                self.let_more_gather(state)
            }
            Durability::Interval => {
                let waited = self.wake.wait_timeout_while(state, self.pace.interval, idle);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.idle = false;
        state.hurry = false;
        let closing = state.closing;
        let waiting = std::mem::take(&mut state.waiting);
        if state.active.is_empty() {
            drop(state);
            finish(waiting, Ok(()));
            return !closing;
        }
        state.committing = Arc::new(std::mem::take(&mut state.active));
        state.committing_bytes = std::mem::take(&mut state.bytes);
        let committing = state.committing.clone();
        drop(state);

        let outcome = self.commit(&committing);
        drop(committing);
        let room = self.map.room().unwrap_or(0);
        let mut state = self.lock();
        state.room = room;
        let bytes = std::mem::take(&mut state.committing_bytes);
        let committed = std::mem::take(&mut state.committing);
        match (outcome, self.pace.durability) {
            (Ok(()), _) => {
                state.failing = None;
                drop(state);
                drop(committed);
                finish(waiting, Ok(()));
            }
            (Err(error), Durability::Fsync) => {
                // What was applied meanwhile may stand on what is no more. All hear of it before the lock is given up,
                // so that nothing later begins first.
                state.active.clear();
                state.bytes = 0;
                finish(waiting, Err(error.clone()));
                finish(std::mem::take(&mut state.waiting), Err(error));
            }
            (Err(error), Durability::Interval) => {
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
                    finish(lost, Err(error));
                }
            }
        }
        !closing
    }

    /// Lets the event loops that share this core run first, as long as they bring more: where cores are few a larger commit
    /// is worth more than an earlier one. Costs a microsecond where they are not.
    fn let_more_gather<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        for _ in 0..MOST_YIELDS {
            let gathered = state.waiting.len();
            drop(state);
            std::thread::yield_now();
            state = self.lock();
            if state.waiting.len() == gathered {
                break;
            }
        }
        state
    }

    fn commit(&self, changes: &Overlay) -> Result<(), StorageError> {
        #[cfg(test)]
        self.trouble.stop_here()?;
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

fn finish(updates: Vec<Box<dyn Update>>, outcome: Result<(), StorageError>) {
    for update in updates {
        update.finished(outcome.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use quorate_core::StorageKey;
    use quorate_core::key::Table;

    use super::*;
    use crate::Config;

    /// Holds commits back, or lets one fail.
    #[derive(Default)]
    pub(super) struct Trouble {
        gate: Mutex<()>,
        fail: Mutex<Option<StorageError>>,
    }

    impl Trouble {
        pub(super) fn stop_here(&self) -> Result<(), StorageError> {
            drop(self.gate.lock().unwrap());
            self.fail.lock().unwrap().take().map_or(Ok(()), Err)
        }
    }

    struct Append {
        key: StorageKey,
        byte: u8,
        told: Sender<String>,
        engine: Arc<Shared>,
    }

    impl Update for Append {
        fn key(&self) -> &StorageKey {
            &self.key
        }

        fn change(&mut self, stored: Option<Bytes>) -> Result<Change, StorageError> {
            let mut value = stored.map_or(Vec::new(), |stored| stored.to_vec());
            value.push(self.byte);
            Ok(Change::Put(value.into()))
        }

        fn applied(&mut self) {
            let _ = self.told.send(format!("{} applied", self.byte as char));
        }

        fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
            // A failure is told under the lock: nothing can be applied before all have heard.
            let locked = self.engine.state.try_lock().is_err();
            let how = if outcome.is_ok() { "durable" } else { "failed" };
            assert!(locked || outcome.is_ok());
            let _ = self.told.send(format!("{} {how}", self.byte as char));
        }
    }

    fn hear(told: &Receiver<String>) -> String {
        told.recv_timeout(Duration::from_secs(30)).expect("each update is told in bounded time")
    }

    /// An update that was applied on top of one whose commit fails goes with it, before anything later begins; then the
    /// record is what it was, and writes go on.
    #[test]
    fn a_failed_commit_takes_with_it_what_stands_on_it() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { map_size_mib: 16, reserve_mib: 1, ..Config::default() };
        let map = Arc::new(Map::open(&config, folder.path()).unwrap());
        let writer = Writer::start(map, Durability::Fsync, 1);
        let (told, heard) = channel();
        let key = StorageKey::of_table(Table::Facts, b"k");
        let append = |byte: u8| -> Vec<Box<dyn Update>> {
            let (key, told, engine) = (key.clone(), told.clone(), writer.shared.clone());
            vec![Box::new(Append { key, byte, told, engine })]
        };
        writer.update(append(b'a'));
        assert_eq!((hear(&heard), hear(&heard)), ("a applied".into(), "a durable".into()));

        let gate = writer.shared.trouble.gate.lock().unwrap();
        let detail = "the disk is gone".to_owned();
        *writer.shared.trouble.fail.lock().unwrap() = Some(StorageError::Io { detail });
        writer.update(append(b'b'));
        while writer.shared.lock().committing.is_empty() {
            std::thread::yield_now();
        }
        writer.update(append(b'c'));
        assert_eq!((hear(&heard), hear(&heard)), ("b applied".into(), "c applied".into()));
        assert_eq!(writer.get(key.as_bytes()).unwrap().unwrap(), "a", "readers see what is committed");
        drop(gate);
        assert_eq!((hear(&heard), hear(&heard)), ("b failed".into(), "c failed".into()));
        assert_eq!(writer.get(key.as_bytes()).unwrap().unwrap(), "a");

        writer.update(append(b'd'));
        assert_eq!((hear(&heard), hear(&heard)), ("d applied".into(), "d durable".into()));
        assert_eq!(writer.get(key.as_bytes()).unwrap().unwrap(), "ad");
    }
}
