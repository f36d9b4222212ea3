//! From updates to the disk: an update is applied at once, to memory, and two threads bring it from there to where it lasts.
//!
//! What is newer than the tree is in up to four parts, each older than the one before: `gathered` and `logging` are on their way
//! into the log, `settled` and `committing` into the tree. Updates see all of it, readers see what is settled, and the tree.
//!
//! Under "fsync" one thread writes what has gathered to the log, as soon as it can, as one batch: then it is settled, and its
//! updates are finished. While one batch is being written the next gathers. A batch that can't be written fails its updates, and
//! with them those that were applied on top of it; then nothing is taken until the tree has all that is settled, and the log
//! begins afresh. Under "interval" an update is settled when it is applied, and finished when it is in the tree.
//!
//! The other thread commits what is settled to the tree, when the interval is over or much has gathered. A commit that
//! fails (disk full) loses nothing: it is tried again, and until that succeeds new updates are refused.
//!
//! The tree always holds a whole prefix of the commits, and what is settled since is in the log: a kill never leaves a part of
//! a batch.
//!
//! Source: Dynamo §6.1 ("object buffer"); write-ahead logging with a checkpoint every interval.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use quorate_core::storage::{Change, Page, Range, StorageError, Update};

use crate::log::{self, Log};
use crate::map::{Map, Overlay};
use crate::{Durability, MAX_QUEUED_UPDATES};

/// A commit begins when so much is settled, whatever the interval.
const COMMIT_EARLY_BYTES: usize = 32 * 1024 * 1024;
const COMMIT_EARLY_RECORDS: usize = 32_768;
/// The log waits for the tree when this much is settled.
const BEHIND_BYTES: usize = 4 * COMMIT_EARLY_BYTES;
const BEHIND_RECORDS: usize = 4 * COMMIT_EARLY_RECORDS;
/// Updates are refused while this much is newer than the tree.
const MAX_OVERLAY_BYTES: usize = 256 * 1024 * 1024;

/// The lock is given up after this many updates, so that other event loops get their turn.
const APPLIED_TOGETHER: usize = 64;
/// How often a batch lets others run first at most.
const MOST_YIELDS: usize = 16;

pub(crate) struct Writer {
    shared: Arc<Shared>,
    logger: Option<JoinHandle<()>>,
    committer: Option<JoinHandle<()>>,
}

struct Shared {
    map: Arc<Map>,
    folder: PathBuf,
    /// Under "fsync".
    log: Option<Mutex<Log>>,
    interval: Duration,
    state: Mutex<State>,
    wake_logger: Condvar,
    wake_committer: Condvar,
    /// The tree has more than before, or a commit failed.
    committed: Condvar,
    #[cfg(test)]
    trouble: tests::Trouble,
}

/// Changes, and how large they are.
#[derive(Clone, Default)]
struct Part {
    changes: Overlay,
    bytes: usize,
}

impl Part {
    fn insert(&mut self, key: Bytes, value: Option<Bytes>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
        self.changes.insert(key, value);
    }

    /// Lays newer changes over these.
    fn extend(&mut self, newer: Part) {
        self.bytes += newer.bytes;
        self.changes.extend(newer.changes);
    }

    fn is_large(&self) -> bool {
        self.bytes >= COMMIT_EARLY_BYTES || self.changes.len() >= COMMIT_EARLY_RECORDS
    }

    fn is_too_large(&self) -> bool {
        self.bytes >= BEHIND_BYTES || self.changes.len() >= BEHIND_RECORDS
    }
}

#[derive(Default)]
struct State {
    gathered: Part,
    logging: Arc<Part>,
    settled: Part,
    committing: Arc<Part>,
    /// Updates that want to hear that they are durable: in the log, or without one in the tree.
    waiting: Vec<Box<dyn Update>>,
    /// Bytes that the map had room for when that was last looked at; what is newer than the tree must fit.
    room: u64,
    /// Why nothing is taken now: what the last commit failed with, or the log.
    failing: Option<StorageError>,
    /// The log can't be written to before it has begun afresh.
    log_failed: bool,
    /// What the next batch belongs to. Its file is written over by the generation after next.
    generation: u64,
    /// What the generation before the last held is in the tree.
    older_is_committed: bool,
    /// The committer waits for the batch that is being written, since it belongs to the file that the commit lets go of.
    wanted: bool,
    /// How often something was settled, and how much of that is in the tree.
    settled_times: u64,
    committing_times: u64,
    committed_times: u64,
    /// Commit now, not when the interval is over.
    hurry: bool,
    closing: bool,
    /// The threads sleep.
    logger_idle: bool,
    committer_idle: bool,
    /// Updates are finished when they are in the log.
    logs: bool,
}

impl State {
    fn newer(&self, key: &[u8]) -> Option<&Option<Bytes>> {
        let unsettled = [&self.gathered, &*self.logging].into_iter().find_map(|part| part.changes.get(key));
        unsettled.or_else(|| self.newer_settled(key))
    }

    fn newer_settled(&self, key: &[u8]) -> Option<&Option<Bytes>> {
        [&self.settled, &*self.committing].into_iter().find_map(|part| part.changes.get(key))
    }

    fn bytes(&self) -> usize {
        self.gathered.bytes + self.logging.bytes + self.settled.bytes + self.committing.bytes
    }

    fn must_commit(&self) -> bool {
        let many_wait = !self.logs && self.waiting.len() >= MAX_QUEUED_UPDATES / 2;
        self.closing || self.hurry || ((self.settled.is_large() || many_wait) && self.failing.is_none())
    }

    fn must_log(&self) -> bool {
        let behind = self.settled.is_too_large() && self.failing.is_none();
        self.closing || (!self.waiting.is_empty() && !behind)
    }

    /// Takes what is settled: all of the log's generation, which ends with it.
    fn begin_commit(&mut self) {
        self.wanted = false;
        self.committing_times = self.settled_times;
        self.committing = Arc::new(std::mem::take(&mut self.settled));
        if self.older_is_committed && !self.committing.changes.is_empty() {
            self.generation += 1;
            self.older_is_committed = false;
        }
    }
}

impl Writer {
    /// Brings what a log holds into the tree, and begins.
    pub(crate) fn start(
        map: Arc<Map>,
        folder: PathBuf,
        durability: Durability,
        interval_ms: u64,
    ) -> Result<Writer, StorageError> {
        replay(&map, &log::read(&folder)?)?;
        log::remove(&folder)?;
        let log = match durability {
            Durability::Fsync => Some(Mutex::new(Log::create(&folder)?)),
            Durability::Interval => None,
        };
        let room = map.room().unwrap_or(0);
        let logs = log.is_some();
        let state = State { room, generation: 1, older_is_committed: true, logs, ..State::default() };
        let shared = Arc::new(Shared {
            map,
            folder,
            log,
            interval: Duration::from_millis(interval_ms),
            state: Mutex::new(state),
            wake_logger: Condvar::new(),
            wake_committer: Condvar::new(),
            committed: Condvar::new(),
            #[cfg(test)]
            trouble: tests::Trouble::default(),
        });
        let thread = |name: &str, step: fn(&Shared) -> bool| {
            let theirs = shared.clone();
            std::thread::Builder::new()
                .name(name.into())
                .spawn(move || while step(&theirs) {})
                .expect("a thread can be started")
        };
        let logger = shared.log.is_some().then(|| thread("quorate-log", Shared::wait_and_log));
        let committer = Some(thread("quorate-lmdb", Shared::wait_and_commit));
        Ok(Writer { shared, logger, committer })
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        if let Some(newer) = self.shared.lock().newer_settled(key) {
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
            self.shared.wake(state);
            for (update, error) in refused {
                update.finished(Err(error));
            }
        }
    }

    /// Commits what waits for a commit. What waits for the log does not wait for long.
    pub(crate) fn flush(&self) {
        if self.shared.log.is_none() {
            self.shared.lock().hurry = true;
            self.shared.wake_committer.notify_one();
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.shared.lock().waiting.len()
    }

    /// Waits until all that is durable by now is in the tree.
    pub(crate) fn commit_all(&self) -> Result<(), StorageError> {
        let mut state = self.shared.lock();
        let all = state.settled_times;
        while state.committed_times < all {
            if let Some(error) = &state.failing {
                return Err(error.clone());
            }
            state.hurry = true;
            self.shared.wake_committer.notify_one();
            state = self.shared.committed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    pub(crate) fn scan(&self, range: Range<'_>) -> Result<Page, StorageError> {
        // Overlay and tree belong to one moment; the page is read without the lock.
        let state = self.shared.lock();
        let mut overlay = Overlay::new();
        for part in [&*state.committing, &state.settled] {
            let from = std::ops::Bound::Included(range.start);
            let to = range.end.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
            if range.end.is_none_or(|end| end > range.start) {
                let newer = part.changes.range::<[u8], _>((from, to));
                overlay.extend(newer.map(|(key, value)| (key.clone(), value.clone())));
            }
        }
        let snapshot = self.shared.map.snapshot()?;
        drop(state);
        snapshot.scan(range, &overlay)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.wake_logger.notify_one();
        // The last batch is settled before the last commit begins.
        for thread in [self.logger.take(), self.committer.take()].into_iter().flatten() {
            self.shared.wake_committer.notify_one();
            let _ = thread.join();
        }
        let state = self.shared.lock();
        if state.logs && state.settled.changes.is_empty() && state.committing.changes.is_empty() {
            // If they stay, the next start brings them into the tree once more.
            let _ = log::remove(&self.shared.folder);
        }
    }
}

/// Stores what was in a log, a commit for about as much as one commit has at other times.
fn replay(map: &Map, batches: &[Overlay]) -> Result<(), StorageError> {
    let mut rest = batches;
    while !rest.is_empty() {
        let mut records = 0;
        let fits = |batch: &&Overlay| {
            records += batch.len();
            records <= COMMIT_EARLY_RECORDS
        };
        let together = rest.iter().take_while(fits).count().max(1);
        let mut commit = map.begin()?;
        for (key, value) in rest[..together].iter().flatten() {
            commit.apply(key, value.as_deref())?;
        }
        commit.commit()?;
        rest = &rest[together..];
    }
    Ok(())
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes who has something to do now.
    fn wake(&self, mut state: MutexGuard<'_, State>) {
        let logger = state.logger_idle && state.must_log();
        let committer = state.committer_idle && state.must_commit();
        (state.logger_idle, state.committer_idle) =
            (state.logger_idle && !logger, state.committer_idle && !committer);
        drop(state);
        if logger {
            self.wake_logger.notify_one();
        }
        if committer {
            self.wake_committer.notify_one();
        }
    }

    /// The lock is held from the read to the write: that makes the update atomic.
    fn apply(&self, state: &mut State, update: &mut dyn Update) -> Result<(), StorageError> {
        if let Some(error) = &state.failing {
            return Err(error.clone());
        }
        for (size, limit) in [(state.waiting.len(), MAX_QUEUED_UPDATES), (state.bytes(), MAX_OVERLAY_BYTES)] {
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
        if self.log.is_some() {
            state.gathered.insert(key, newer);
        } else {
            state.settled.insert(key, newer);
            state.settled_times += 1;
        }
        Ok(())
    }

    /// A B+ tree of pages takes about twice what is in it. Looked at afresh for the first update of a batch, since others
    /// fill the disk, too, and before anything is refused.
    fn check_room(&self, state: &mut State, bytes: usize) -> Result<(), StorageError> {
        let needed = (state.bytes() + bytes) as u64 * 2;
        if needed > state.room || state.waiting.is_empty() {
            state.room = self.map.room()?;
        }
        if needed > state.room {
            // What it really takes is known once it is in the tree.
            state.hurry |= !state.settled.changes.is_empty();
            return Err(self.map.map_full());
        }
        Ok(())
    }

    /// Waits until something has gathered, and writes it to the log. False when closing: after the last batch.
    fn wait_and_log(&self) -> bool {
        let mut state = self.lock();
        state.logger_idle = !state.must_log();
        let state = self.wake_logger.wait_while(state, |state| !state.must_log());
        let mut state = self.let_more_gather(state.unwrap_or_else(PoisonError::into_inner));
        state.logger_idle = false;
        let closing = state.closing;
        let waiting = std::mem::take(&mut state.waiting);
        if state.gathered.changes.is_empty() {
            drop(state);
            // What they read was settled by the batch before.
            finish(waiting, Ok(()));
            return !closing;
        }
        state.logging = Arc::new(std::mem::take(&mut state.gathered));
        let (logging, generation) = (state.logging.clone(), state.generation);
        drop(state);

        let outcome = self.append(generation, &logging.changes);
        drop(logging);
        let mut state = self.lock();
        let logged = std::mem::take(&mut state.logging);
        match outcome {
            Ok(()) => {
                state.settled.extend(Arc::unwrap_or_clone(logged));
                state.settled_times += 1;
                if state.wanted {
                    state.begin_commit();
                    self.wake_committer.notify_one();
                }
                self.wake(state);
                finish(waiting, Ok(()));
            }
            Err(error) => {
                // What was applied meanwhile may stand on what is no more. All hear of it before the lock is given up,
                // so that nothing later begins first.
                state.gathered = Part::default();
                state.failing = Some(error.clone());
                (state.log_failed, state.hurry) = (true, true);
                finish(waiting, Err(error.clone()));
                finish(std::mem::take(&mut state.waiting), Err(error));
                // It may be waiting for this batch, not asleep.
                self.wake_committer.notify_one();
                self.wake(state);
            }
        }
        !closing
    }

    fn append(&self, generation: u64, changes: &Overlay) -> Result<(), StorageError> {
        #[cfg(test)]
        self.trouble.before_log.stop_here()?;
        let log = self.log.as_ref().expect("only with a log is there a logger");
        log.lock().unwrap_or_else(PoisonError::into_inner).append(generation, changes)?;
        #[cfg(test)]
        self.trouble.after_log.stop_here()?;
        Ok(())
    }

    /// Waits until a commit is due, and commits. False when closing: after a last commit.
    fn wait_and_commit(&self) -> bool {
        let mut state = self.lock();
        state.committer_idle = !state.must_commit();
        let waited =
            self.wake_committer.wait_timeout_while(state, self.interval, |state| !state.must_commit());
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.committer_idle = false;
        state.wanted = true;
        let logging = |state: &mut State| state.wanted && !state.logging.changes.is_empty();
        state = self.wake_committer.wait_while(state, logging).unwrap_or_else(PoisonError::into_inner);
        if state.wanted {
            state.begin_commit();
        }
        let nothing_newer =
            [&state.gathered, &*state.logging, &state.settled].iter().all(|part| part.changes.is_empty());
        let closing = state.closing && nothing_newer;
        let begin_log_afresh = state.log_failed && nothing_newer;
        state.hurry = state.log_failed && !begin_log_afresh;
        let waiting = if state.logs { Vec::new() } else { std::mem::take(&mut state.waiting) };
        let committing = state.committing.clone();
        drop(state);

        let mut outcome = self.commit(&committing.changes);
        drop(committing);
        if outcome.is_ok() && begin_log_afresh {
            outcome = self.begin_log_afresh();
        }
        let room = self.map.room().unwrap_or(0);
        let mut state = self.lock();
        state.room = room;
        let committed = std::mem::take(&mut state.committing);
        match outcome {
            Ok(()) => {
                state.committed_times = state.committing_times;
                state.older_is_committed = true;
                state.log_failed &= !begin_log_afresh;
                if !state.log_failed {
                    state.failing = None;
                }
                self.wake(state);
                drop(committed);
                finish(waiting, Ok(()));
            }
            Err(error) => {
                // What came meanwhile is newer than what could not be committed.
                let newer = std::mem::replace(&mut state.settled, Arc::unwrap_or_clone(committed));
                state.settled.extend(newer);
                let newer = std::mem::replace(&mut state.waiting, waiting);
                state.waiting.extend(newer);
                state.failing = Some(error.clone());
                let lost = if closing { std::mem::take(&mut state.waiting) } else { Vec::new() };
                // The log no longer waits for a tree that takes nothing.
                self.wake(state);
                finish(lost, Err(error));
            }
        }
        self.committed.notify_all();
        !closing
    }

    /// Lets the event loops that share this core run first, as long as they bring more: where cores are few a larger batch
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
        self.trouble.before_commit.stop_here()?;
        if changes.is_empty() {
            return Ok(());
        }
        if changes.values().any(Option::is_some) {
            self.map.check_room()?;
        }
        let mut batch = self.map.begin()?;
        for (key, value) in changes {
            batch.apply(key, value.as_deref())?;
        }
        batch.commit()?;
        #[cfg(test)]
        self.trouble.after_commit.stop_here()?;
        Ok(())
    }

    /// The tree has all that was acked: what a failed write left in the log is forgotten with it.
    fn begin_log_afresh(&self) -> Result<(), StorageError> {
        let Some(log) = &self.log else { return Ok(()) };
        log::remove(&self.folder)?;
        *log.lock().unwrap_or_else(PoisonError::into_inner) = Log::create(&self.folder)?;
        Ok(())
    }
}

fn finish(updates: Vec<Box<dyn Update>>, outcome: Result<(), StorageError>) {
    for update in updates {
        update.finished(outcome.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use quorate_core::StorageKey;
    use quorate_core::key::Table;

    use super::*;
    use crate::Config;

    /// Where something can go wrong.
    #[derive(Default)]
    pub(super) struct Trouble {
        pub(super) before_log: Spot,
        pub(super) after_log: Spot,
        pub(super) before_commit: Spot,
        pub(super) after_commit: Spot,
    }

    /// Holds a thread back, or lets a step fail: the next one, or all.
    #[derive(Default)]
    pub(super) struct Spot {
        gate: Mutex<()>,
        takes: Mutex<Duration>,
        fail: Mutex<Option<(StorageError, bool)>>,
    }

    impl Spot {
        pub(super) fn stop_here(&self) -> Result<(), StorageError> {
            drop(self.gate.lock().unwrap());
            let takes = *self.takes.lock().unwrap();
            std::thread::sleep(takes);
            let mut fail = self.fail.lock().unwrap();
            let Some((error, always)) = fail.take() else { return Ok(()) };
            *fail = always.then(|| (error.clone(), true));
            Err(error)
        }

        fn fails(&self, always: bool) {
            let detail = "the disk is gone".to_owned();
            *self.fail.lock().unwrap() = Some((StorageError::Io { detail }, always));
        }
    }

    fn key(name: &str) -> StorageKey {
        StorageKey::of_table(Table::Facts, name.as_bytes())
    }

    fn start(folder: &Path, durability: Durability, interval_ms: u64) -> Writer {
        let config = Config { map_size_mib: 64, reserve_mib: 1, ..Config::default() };
        let map = Arc::new(Map::open(&config, folder).unwrap());
        Writer::start(map, folder.to_owned(), durability, interval_ms).unwrap()
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
            // That a batch failed is told under the lock: nothing can be applied before all have heard.
            let locked = self.engine.state.try_lock().is_err();
            let how = if outcome.is_ok() { "durable" } else { "failed" };
            let _ = self.told.send(format!(
                "{} {how}{}",
                self.byte as char,
                if locked { " at once" } else { "" }
            ));
        }
    }

    fn hear(told: &Receiver<String>) -> String {
        told.recv_timeout(Duration::from_secs(30)).expect("each update is told in bounded time")
    }

    /// An update that was applied on top of one that could not be logged goes with it, before anything later begins; then the
    /// record is what it was, in the log, too, and writes go on.
    #[test]
    fn a_failed_batch_takes_with_it_what_stands_on_it() {
        for (after, during_commit) in [(false, false), (true, false), (true, true)] {
            let folder = tempfile::tempdir().unwrap();
            let writer = start(folder.path(), Durability::Fsync, 60_000);
            let (told, heard) = channel();
            let append = |byte: u8| -> Vec<Box<dyn Update>> {
                let (key, told, engine) = (key("k"), told.clone(), writer.shared.clone());
                vec![Box::new(Append { key, byte, told, engine })]
            };
            let stored = || writer.get(key("k").as_bytes()).unwrap().unwrap();
            writer.update(append(b'a'));
            assert_eq!((hear(&heard), hear(&heard)), ("a applied".into(), "a durable".into()));

            let trouble = &writer.shared.trouble;
            let commit = during_commit.then(|| trouble.before_commit.gate.lock().unwrap());
            if during_commit {
                writer.shared.lock().hurry = true;
                writer.shared.wake_committer.notify_one();
                while writer.shared.lock().committing.changes.is_empty() {
                    std::thread::yield_now();
                }
            }
            let spot = if after { &trouble.after_log } else { &trouble.before_log };
            let gate = spot.gate.lock().unwrap();
            spot.fails(false);
            writer.update(append(b'b'));
            while writer.shared.lock().logging.changes.is_empty() {
                std::thread::yield_now();
            }
            writer.update(append(b'c'));
            assert_eq!((hear(&heard), hear(&heard)), ("b applied".into(), "c applied".into()));
            assert_eq!(stored(), "a", "readers see what is durable");
            drop(gate);
            assert_eq!((hear(&heard), hear(&heard)), ("b failed at once".into(), "c failed at once".into()));
            assert_eq!(stored(), "a");
            drop(commit);
            while writer.shared.lock().failing.is_some() {
                std::thread::yield_now();
            }
            assert_eq!(log::read(folder.path()).unwrap(), [], "the log holds nothing that failed");

            writer.update(append(b'd'));
            assert_eq!((hear(&heard), hear(&heard)), ("d applied".into(), "d durable".into()));
            assert_eq!(stored(), "ad");
            assert_eq!(log::read(folder.path()).unwrap().len(), 1);
        }
    }

    /// While the tree takes nothing, what was acked is kept and shown, and new updates are refused; then it goes on.
    #[test]
    fn a_failed_commit_loses_nothing() {
        for durability in [Durability::Fsync, Durability::Interval] {
            let folder = tempfile::tempdir().unwrap();
            let writer = start(folder.path(), durability, 1);
            let (told, heard) = channel();
            let append = |byte: u8| -> Vec<Box<dyn Update>> {
                let (key, told, engine) = (key("k"), told.clone(), writer.shared.clone());
                vec![Box::new(Append { key, byte, told, engine })]
            };
            writer.shared.trouble.before_commit.fails(true);
            writer.update(append(b'a'));
            assert_eq!(hear(&heard), "a applied");
            while writer.shared.lock().failing.is_none() {
                std::thread::yield_now();
            }
            assert_eq!(writer.get(key("k").as_bytes()).unwrap().unwrap(), "a");
            if durability == Durability::Fsync {
                assert_eq!(hear(&heard), "a durable");
            }
            writer.update(append(b'b'));
            assert_eq!(hear(&heard), "b failed");
            assert!(writer.commit_all().is_err());
            *writer.shared.trouble.before_commit.fail.lock().unwrap() = None;
            while writer.shared.lock().failing.is_some() {
                std::thread::yield_now();
            }
            writer.commit_all().unwrap();
            assert_eq!(writer.shared.map.get(key("k").as_bytes()).unwrap().unwrap(), "a");
        }
    }

    struct Set {
        key: StorageKey,
        to: Option<Bytes>,
        number: usize,
        acked: Sender<usize>,
    }

    impl Update for Set {
        fn key(&self) -> &StorageKey {
            &self.key
        }

        fn change(&mut self, _: Option<Bytes>) -> Result<Change, StorageError> {
            Ok(self.to.clone().map_or(Change::Remove, Change::Put))
        }

        fn applied(&mut self) {}

        fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
            if outcome.is_ok() {
                let _ = self.acked.send(self.number);
            }
        }
    }

    /// Killed at any step of log and commit, over and over, with many turns of the log's files between: each record is what it
    /// was last acked to be, or what was asked for later.
    #[test]
    fn a_kill_loses_nothing_acked() {
        let folder = tempfile::tempdir().unwrap();
        let mut word = 7_u64;
        let mut random = |below: usize| {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (word >> 33) as usize % below
        };
        // What was asked for each record, in order, and how much of it was acked for sure.
        let mut asked: BTreeMap<String, (Vec<Option<Bytes>>, usize)> = BTreeMap::new();
        let mut generations = 0;
        for life in 0..200 {
            let writer = start(folder.path(), Durability::Fsync, 1);
            for (name, (values, acked)) in &mut asked {
                let found = writer.get(key(name).as_bytes()).unwrap();
                let possible = &values[*acked..];
                assert!(
                    possible.contains(&found),
                    "life {life}: {name} is {found:?}, and could be {possible:?}"
                );
                (*values, *acked) = (vec![found], 0);
            }
            let mut submitted: Vec<(String, usize)> = Vec::new();
            let (acked, heard) = channel();
            let trouble = &writer.shared.trouble;
            for spot in [&trouble.before_log, &trouble.before_commit] {
                *spot.takes.lock().unwrap() = Duration::from_micros([0, random(3_000) as u64][random(2)]);
            }
            // A clean stop now and then.
            let (submissions, is_killed) = (random(60), random(5) > 0);
            for number in 0..submissions {
                if is_killed && number + 8 == submissions {
                    [&trouble.before_commit, &trouble.after_commit][random(2)].fails(true);
                }
                let mut batch: Vec<Box<dyn Update>> = Vec::new();
                for _ in 0..=random(4) {
                    let name = format!("{}", random(20));
                    let (values, _) = asked.entry(name.clone()).or_insert_with(|| (vec![None], 0));
                    let value = format!("{life} {} {}", submitted.len(), "x".repeat(random(2_000)));
                    let to = (random(4) > 0).then(|| Bytes::from(value));
                    values.push(to.clone());
                    let (key, number) = (key(&name), submitted.len());
                    submitted.push((name, values.len() - 1));
                    batch.push(Box::new(Set { key, to, number, acked: acked.clone() }));
                }
                writer.update(batch);
                std::thread::sleep(Duration::from_micros(random(800) as u64));
            }
            if is_killed {
                [&trouble.before_log, &trouble.after_log][random(2)].fails(true);
            }
            generations += writer.shared.lock().generation;
            drop(writer);
            for number in heard.try_iter() {
                let (name, at) = &submitted[number];
                let (_, acked) = asked.get_mut(name).unwrap();
                *acked = (*acked).max(*at);
            }
        }
        assert!(generations > 300, "{generations}");
    }
}
