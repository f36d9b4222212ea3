//! From updates to the disk: an update is applied at once, to memory, and two threads bring it from there to where it lasts.
//!
//! What is newer than the tree is in up to four parts, each older than the one before: `gathered` and `logging` are on their way
//! into the log, `settled` and `committing` into the tree. Updates see all of it, readers see what is settled, and the tree.
//!
//! - `logging.rs`, under "fsync": what has gathered goes to the log, as soon as it can, as one batch: then it is settled,
//!   and its updates are finished. Under "interval" an update is settled when it is applied, and finished when it is in the tree.
//! - `committing.rs`: what is settled goes to the tree, when the interval is over or much has gathered.
//!
//! The tree notes how much of the log it holds, and the log has what is settled since: under "fsync" a kill never leaves a part of
//! a batch. Under "interval" it may leave a part of the last commit, and counts as a lost disk.
//!
//! Source: Dynamo §6.1 ("object buffer"); write-ahead logging with a checkpoint every interval.

mod committing;
mod logging;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use quorate_core::storage::{Change, Page, Range, StorageError, Update};

use crate::log::{self, Log};
use crate::map::{LogMark, Map, Room, growth};
use crate::newer::{Part, Settled, Size};
use crate::{Durability, MAX_QUEUED_UPDATES};

/// Updates are refused while this much is newer than the tree.
const MAX_OVERLAY_BYTES: usize = 256 * 1024 * 1024;
/// The lock is given up after this many updates, so that other event loops get their turn.
const APPLIED_TOGETHER: usize = 64;

/// Takes updates, and shows readers what is settled.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    logger: Option<JoinHandle<()>>,
    committer: Option<JoinHandle<()>>,
}

struct Shared {
    map: Arc<Map>,
    folder: PathBuf,
    /// Updates are finished when they are in the log.
    logs: bool,
    /// None before it has begun.
    log: Mutex<Option<Log>>,
    interval: Duration,
    /// Held while pieces of one commit follow each other.
    commits: Mutex<()>,
    state: Mutex<State>,
    /// Taken after `state` where both are.
    settled: RwLock<Settled>,
    wake_logger: Condvar,
    wake_committer: Condvar,
    /// The tree has more than before, or a commit failed.
    committed: Condvar,
    #[cfg(test)]
    trouble: tests::Trouble,
}

#[derive(Default)]
struct State {
    gathered: Part,
    logging: Arc<Part>,
    settled: Size,
    committing: Size,
    /// Updates that want to hear that they are durable: in the log, or without one in the tree.
    waiting: Vec<Box<dyn Update>>,
    /// Updates whose batch or commit is under way.
    under_way: usize,
    /// When that was last looked at; what is newer than the tree must fit.
    room: Room,
    stopped: Option<Stopped>,
    /// What the next batch belongs to. Its file is written over by the generation after next.
    generation: u64,
    /// What the generation before the last held is in the tree.
    older_is_committed: bool,
    /// How far the log goes that is settled, and of it what is on its way into the tree.
    settled_through: LogMark,
    committing_through: LogMark,
    /// How often something was settled, and how much of that is in the tree.
    settled_times: u64,
    committing_times: u64,
    committed_times: u64,
    logger: Logger,
    committer: Committer,
    /// Commit now, not when the interval is over.
    hurry: bool,
    /// Somebody waits for the commit that is under way.
    hurried: bool,
    closing: bool,
}

/// Why updates are refused now.
#[derive(Clone)]
enum Stopped {
    /// By what the last commit failed with. If nothing but room was missing, what makes the tree no larger is still taken.
    Commit(StorageError),
    /// The log can't be written to before it has begun afresh, when the tree has all that is settled.
    Log(StorageError),
}

impl Stopped {
    fn error(&self) -> &StorageError {
        let (Stopped::Commit(error) | Stopped::Log(error)) = self;
        error
    }
}

#[derive(Default, PartialEq)]
enum Logger {
    #[default]
    Busy,
    Asleep,
}

#[derive(Default, PartialEq)]
enum Committer {
    #[default]
    Busy,
    Asleep,
    /// For the batch that is being written, since it belongs to the file that the commit lets go of.
    Waits,
}

impl State {
    fn unsettled(&self, key: &[u8]) -> Option<&Option<Bytes>> {
        [&self.gathered, &*self.logging].into_iter().find_map(|part| part.changes.get(key))
    }

    fn size(&self) -> Size {
        self.gathered.size + self.logging.size + self.settled + self.committing
    }

    fn unfinished(&self) -> usize {
        self.waiting.len() + self.under_way
    }

    fn nothing_newer(&self) -> bool {
        let parts = [self.gathered.size, self.logging.size, self.settled, self.committing];
        parts.iter().all(|part| part.records == 0)
    }
}

impl Writer {
    /// Takes over what a log holds, and begins.
    ///
    /// # Errors
    /// If something acked is damaged, or the disk fails. If it is only full, reads are served.
    pub(crate) fn start(
        map: Arc<Map>,
        folder: PathBuf,
        durability: Durability,
        interval_ms: u64,
    ) -> Result<Writer, StorageError> {
        let logged = log::read(&folder, map.held()?)?;
        let logs = durability == Durability::Fsync;
        let state = State {
            settled: logged.changes.size,
            settled_through: logged.through,
            settled_times: 1,
            generation: logged.through.generation + 1,
            hurry: true,
            stopped: Some(Stopped::Log(StorageError::Io { detail: "the log has not begun".into() })),
            ..State::default()
        };
        let shared = Arc::new(Shared {
            map,
            folder,
            logs,
            log: Mutex::default(),
            interval: Duration::from_millis(interval_ms),
            commits: Mutex::default(),
            state: Mutex::new(state),
            settled: RwLock::new(Settled { newest: logged.changes, ..Settled::default() }),
            wake_logger: Condvar::new(),
            wake_committer: Condvar::new(),
            committed: Condvar::new(),
            #[cfg(test)]
            trouble: tests::Trouble::default(),
        });
        shared.take_over()?;
        let thread = |name: &str, step: fn(&Shared) -> bool| {
            let theirs = shared.clone();
            std::thread::Builder::new()
                .name(name.into())
                .spawn(move || while step(&theirs) {})
                .expect("a thread can be started")
        };
        let logger = logs.then(|| thread("quorate-log", Shared::wait_and_log));
        let committer = Some(thread("quorate-lmdb", Shared::wait_and_commit));
        Ok(Writer { shared, logger, committer })
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        if let Some(newer) = self.shared.read_settled().get(key) {
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
        if !self.shared.logs {
            self.shared.lock().hurry = true;
            self.shared.wake_committer.notify_one();
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.shared.lock().unfinished()
    }

    /// Waits until all that is durable by now is in the tree.
    pub(crate) fn commit_all(&self) -> Result<(), StorageError> {
        let mut state = self.shared.lock();
        let all = state.settled_times;
        while state.committed_times < all {
            if let Some(stopped) = &state.stopped {
                return Err(stopped.error().clone());
            }
            state.hurry = true;
            self.shared.wake_committer.notify_one();
            state = self.shared.committed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Copies the tree, with all that is durable by now and no part of a commit.
    pub(crate) fn copy_to(&self, folder: &Path) -> Result<(), StorageError> {
        self.commit_all()?;
        let _whole = self.shared.commits.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.map.copy_to(folder)
    }

    pub(crate) fn scan(&self, range: Range<'_>) -> Result<Page, StorageError> {
        // All parts belong to one moment; the page is read without the lock.
        let settled = self.shared.read_settled();
        let newest = settled.newest_in(&range);
        let committing = settled.committing.clone();
        let tree = self.shared.map.snapshot()?;
        drop(settled);
        tree.scan(range, [&newest, &committing.changes])
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
        if self.shared.lock().nothing_newer() {
            // If they stay, the next start finds that the tree has all of it.
            let _ = log::remove(&self.shared.folder);
        }
    }
}

impl Shared {
    /// Brings what a log held into the tree, and begins a new one. Without room the committer goes on trying.
    fn take_over(&self) -> Result<(), StorageError> {
        let mut state = self.lock();
        self.begin_commit(&mut state);
        self.commit_what_was_taken(state);
        match &self.lock().stopped {
            Some(stopped) if !matches!(stopped.error(), StorageError::Full { .. }) => {
                Err(stopped.error().clone())
            }
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_settled(&self) -> RwLockReadGuard<'_, Settled> {
        self.settled.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_settled(&self) -> RwLockWriteGuard<'_, Settled> {
        self.settled.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes who has something to do now.
    fn wake(&self, mut state: MutexGuard<'_, State>) {
        let logger = state.logger == Logger::Asleep && state.must_log();
        let committer = state.committer == Committer::Asleep && self.must_commit(&state);
        if logger {
            state.logger = Logger::Busy;
        }
        if committer {
            state.committer = Committer::Busy;
        }
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
        if let Some(stopped) = &state.stopped
            && !matches!(stopped, Stopped::Commit(StorageError::Full { .. }))
        {
            return Err(stopped.error().clone());
        }
        for (size, limit) in
            [(state.unfinished(), MAX_QUEUED_UPDATES), (state.size().bytes, MAX_OVERLAY_BYTES)]
        {
            if size >= limit {
                return Err(StorageError::QueueFull { limit: limit as u64 });
            }
        }
        let key = update.key().to_bytes();
        let newer = state.unsettled(&key).cloned().or_else(|| self.read_settled().get(&key).cloned());
        let stored = match newer {
            Some(newer) => newer,
            None => self.map.get(&key)?,
        };
        let stored_bytes = stored.as_ref().map(Bytes::len);
        let (newer, pages) = match update.change(stored)? {
            Change::Keep => return Ok(()),
            Change::Remove => (None, 0),
            Change::Put(value) => {
                let pages = growth(key.len(), stored_bytes, value.len());
                self.check_room(state, pages, key.len() + value.len())?;
                (Some(value), pages)
            }
        };
        if self.logs {
            state.gathered.insert(key, newer, pages);
        } else {
            let mut settled = self.write_settled();
            settled.newest.insert(key, newer, pages);
            state.settled = settled.newest.size;
            state.settled_times += 1;
        }
        Ok(())
    }

    /// Room is known from the last commit, and looked at afresh before anything is refused.
    fn check_room(&self, state: &mut State, pages: usize, bytes: usize) -> Result<(), StorageError> {
        if let Some(stopped) = state.stopped.as_ref().filter(|_| pages > 0) {
            return Err(stopped.error().clone());
        }
        let newer = state.size();
        // What makes the tree no larger has room in it, however full that is, but the log takes it on the disk.
        let pages = if pages > 0 { newer.pages + pages } else { 0 };
        let bytes = newer.bytes + bytes;
        if state.room.fits(pages, bytes) {
            return Ok(());
        }
        state.room = self.map.room()?;
        if state.room.fits(pages, bytes) {
            return Ok(());
        }
        // What it really takes is known once it is in the tree.
        state.hurry |= state.settled.records + state.committing.records > 0;
        Err(self.map.full(state.room, pages))
    }
}

fn finish(updates: Vec<Box<dyn Update>>, outcome: Result<(), StorageError>) {
    for update in updates {
        update.finished(outcome.clone());
    }
}
