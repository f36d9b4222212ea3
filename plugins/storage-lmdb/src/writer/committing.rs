//! The thread that commits what is settled to the tree.
//!
//! A commit that fails loses nothing: it is tried again, and until that succeeds updates that need room are refused.

use std::sync::{Arc, MutexGuard, PoisonError};

use bytes::Bytes;
use quorate_core::storage::StorageError;

use super::{Committer, Shared, State, Stopped, finish};
use crate::MAX_QUEUED_UPDATES;
use crate::log::{self, Log};
use crate::map::LogMark;
use crate::newer::{Overlay, Settled};

/// A commit is done in about so many pieces, if there is enough for them.
const PIECES: usize = 48;
/// What is always enough for one.
const PIECE_RECORDS: usize = 64;
const PIECE_BYTES: usize = 128 * 1024;

impl Shared {
    pub(super) fn must_commit(&self, state: &State) -> bool {
        let many_wait = !self.logs && state.waiting.len() >= MAX_QUEUED_UPDATES / 2;
        // What it really takes is found out before anything must be refused for want of room.
        let newer = state.size();
        let some = state.settled.records + state.committing.records > 0;
        let is_tight = some && !state.room.fits(2 * newer.pages, newer.bytes);
        let is_due = state.settled.is_large() || many_wait || is_tight;
        state.closing || state.hurry || (is_due && state.stopped.is_none())
    }

    /// Takes what is settled: all of the log's generation, which ends with it.
    pub(super) fn begin_commit(&self, state: &mut State) {
        let mut settled = self.write_settled();
        let Settled { newest, committing } = &mut *settled;
        assert!(committing.changes.is_empty(), "one commit at a time");
        *committing = Arc::new(std::mem::take(newest));
        (state.committing, state.settled) = (committing.size, newest.size);
        state.committer = Committer::Busy;
        state.committing_times = state.settled_times;
        state.committing_through = state.settled_through;
        if state.older_is_committed && state.committing.records > 0 {
            state.generation += 1;
            state.older_is_committed = false;
        }
    }

    /// Waits until a commit is due, and commits. False when closing: after a last commit.
    pub(super) fn wait_and_commit(&self) -> bool {
        // Also where it is woken for what is over by then.
        let rests = |state: &mut State| {
            let rests = !self.must_commit(state);
            if rests {
                state.committer = Committer::Asleep;
            }
            rests
        };
        let waited = self.wake_committer.wait_timeout_while(self.lock(), self.interval, rests);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.committer = Committer::Waits;
        let logging =
            |state: &mut State| state.committer == Committer::Waits && !state.logging.changes.is_empty();
        state = self.wake_committer.wait_while(state, logging).unwrap_or_else(PoisonError::into_inner);
        if state.committer == Committer::Waits {
            self.begin_commit(&mut state);
        }
        self.commit_what_was_taken(state)
    }

    /// One round: commits, and if the log must begin, and all is in the tree, begins it. False after the last one.
    pub(super) fn commit_what_was_taken(&self, mut state: MutexGuard<'_, State>) -> bool {
        let is_all =
            [state.gathered.size, state.logging.size, state.settled].iter().all(|size| size.records == 0);
        let closing = state.closing && is_all;
        let log_stopped = matches!(state.stopped, Some(Stopped::Log(_)));
        let begin_log = log_stopped && is_all;
        state.hurried = state.hurry;
        state.hurry = log_stopped && !is_all;
        let waiting = if self.logs { Vec::new() } else { std::mem::take(&mut state.waiting) };
        if !self.logs {
            state.under_way = waiting.len();
        }
        let through = state.committing_through;
        // The log may have waited for what was taken.
        self.wake(state);

        let committing = self.read_settled().committing.clone();
        let mut outcome = self.commit(&committing.changes, through);
        drop(committing);
        if outcome.is_ok() && begin_log {
            outcome = self.begin_log(through);
        }
        let room = self.map.room().unwrap_or_default();
        let mut state = self.lock();
        state.room = room;
        if !self.logs {
            state.under_way = 0;
        }
        let mut settled = self.write_settled();
        let committed = std::mem::take(&mut settled.committing);
        state.committing = settled.committing.size;
        match outcome {
            Ok(()) => {
                drop(settled);
                state.committed_times = state.committing_times;
                state.older_is_committed = true;
                if begin_log {
                    // Its first batch begins a generation: one that had batches in the log before does not go on in this one.
                    state.generation = through.generation + 1;
                }
                if begin_log || !matches!(state.stopped, Some(Stopped::Log(_))) {
                    state.stopped = None;
                }
                self.wake(state);
                drop(committed);
                finish(waiting, Ok(()));
            }
            Err(error) => {
                // What came meanwhile is newer than what could not be committed.
                let newer = std::mem::replace(&mut settled.newest, Arc::unwrap_or_clone(committed));
                settled.newest.extend(newer);
                state.settled = settled.newest.size;
                drop(settled);
                let newer = std::mem::replace(&mut state.waiting, waiting);
                state.waiting.extend(newer);
                state.stopped = Some(match state.stopped {
                    Some(Stopped::Log(_)) => Stopped::Log(error.clone()),
                    _ => Stopped::Commit(error.clone()),
                });
                let lost = if closing { std::mem::take(&mut state.waiting) } else { Vec::new() };
                // The log no longer waits for a tree that takes nothing.
                self.wake(state);
                finish(lost, Err(error));
            }
        }
        self.committed.notify_all();
        !closing
    }

    /// Brings changes into the tree; with the last of them it notes that it holds the log through there.
    ///
    /// Under "fsync" this is done in pieces, with pauses: while one is being flushed the log's flushes, and with them clients, wait.
    /// What does not fit as one piece is done in ever smaller ones: a commit keeps a copy of each page it changes until the one
    /// after the next.
    fn commit(&self, changes: &Overlay, through: LogMark) -> Result<(), StorageError> {
        let _whole = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        #[cfg(test)]
        self.trouble.before_commit.stop_here()?;
        let mut changes: Vec<Changed<'_>> = changes.iter().collect();
        let mut rest = &mut changes[..];
        let mut together = if self.logs { (rest.len() / PIECES).max(PIECE_RECORDS) } else { rest.len() };
        let bytes: usize = rest.iter().map(size).sum();
        let most_bytes = if self.logs { (bytes / PIECES).max(PIECE_BYTES) } else { bytes };
        let mut pauses = if self.logs { PIECES } else { 0 };
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |changed: &&Changed<'_>| {
                bytes += size(changed);
                bytes <= most_bytes
            };
            let count = rest.iter().take(together).take_while(fits).count().max(1);
            let piece = &rest[..count];
            match self.commit_piece(piece, (count == rest.len()).then_some(through)) {
                Ok(()) => {
                    rest = &mut rest[count..];
                    #[cfg(test)]
                    self.trouble.after_piece.stop_here()?;
                    if !rest.is_empty() && pauses > 0 {
                        pauses -= 1;
                        self.pause();
                    }
                }
                Err(StorageError::Full { .. }) if count > 1 => {
                    // First what is removed, and then what takes least.
                    rest.sort_by_key(|(_, value)| value.as_ref().map(Bytes::len));
                    together = count / 2;
                    pauses = 0;
                }
                Err(error) => return Err(error),
            }
        }
        #[cfg(test)]
        self.trouble.after_commit.stop_here()?;
        Ok(())
    }

    /// Waits a while, unless somebody waits for this commit, or the next one is due already.
    fn pause(&self) {
        let mut state = self.lock();
        state.committer = Committer::Asleep;
        let not_yet =
            |state: &mut State| !state.hurried && state.stopped.is_none() && !self.must_commit(state);
        let waited =
            self.wake_committer.wait_timeout_while(state, self.interval / (2 * PIECES as u32), not_yet);
        waited.unwrap_or_else(PoisonError::into_inner).0.committer = Committer::Busy;
    }

    fn commit_piece(&self, piece: &[Changed<'_>], holds: Option<LogMark>) -> Result<(), StorageError> {
        let mut commit = self.map.begin()?;
        for (key, value) in piece {
            commit.apply(key, value.as_deref())?;
        }
        if let Some(mark) = holds {
            commit.holds(mark)?;
        }
        commit.commit()
    }

    /// The tree has all that was acked: what a failed write left in a log is forgotten with it.
    fn begin_log(&self, held: LogMark) -> Result<(), StorageError> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        *log = None;
        log::remove(&self.folder)?;
        if self.logs {
            *log = Some(Log::create(&self.folder, held)?);
        }
        Ok(())
    }
}

type Changed<'a> = (&'a Bytes, &'a Option<Bytes>);

fn size((key, value): &Changed<'_>) -> usize {
    key.len() + value.as_ref().map_or(0, Bytes::len)
}
