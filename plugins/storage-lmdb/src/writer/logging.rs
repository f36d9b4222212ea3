//! The thread that writes what has gathered to the log, and so settles it.
//!
//! While one batch is being written the next gathers. A batch that can't be written fails its updates, and with them those that
//! were applied on top of it; then nothing is taken until the tree has all that is settled, and the log begins afresh.

use std::sync::{Arc, MutexGuard, PoisonError};

use quorate_core::storage::StorageError;

use super::{Committer, Logger, Shared, State, Stopped, finish};
use crate::map::LogMark;
use crate::newer::{Overlay, Part};

/// How often a batch lets others run first at most.
const MOST_YIELDS: usize = 16;

impl State {
    pub(super) fn must_log(&self) -> bool {
        let behind = self.settled.is_too_large() && self.stopped.is_none();
        self.closing || (!self.waiting.is_empty() && !behind)
    }
}

impl Shared {
    /// Waits until something has gathered, and writes it to the log. False when closing: after the last batch.
    pub(super) fn wait_and_log(&self) -> bool {
        // Also where it is woken for what is over by then.
        let rests = |state: &mut State| {
            let rests = !state.must_log();
            if rests {
                state.logger = Logger::Asleep;
            }
            rests
        };
        let state = self.wake_logger.wait_while(self.lock(), rests);
        let mut state = self.let_more_gather(state.unwrap_or_else(PoisonError::into_inner));
        state.logger = Logger::Busy;
        let closing = state.closing;
        let waiting = std::mem::take(&mut state.waiting);
        if state.gathered.changes.is_empty() {
            drop(state);
            // What they read was settled by the batch before.
            finish(waiting, Ok(()));
            return !closing;
        }
        state.under_way = waiting.len();
        state.logging = Arc::new(std::mem::take(&mut state.gathered));
        let (logging, generation) = (state.logging.clone(), state.generation);
        drop(state);

        let outcome = self.append(generation, &logging.changes);
        drop(logging);
        let mut state = self.lock();
        state.under_way = 0;
        let logged = std::mem::take(&mut state.logging);
        match outcome {
            Ok(through) => {
                let mut settled = self.write_settled();
                settled.newest.extend(Arc::unwrap_or_clone(logged));
                state.settled = settled.newest.size;
                drop(settled);
                state.settled_through = through;
                state.settled_times += 1;
                if state.committer == Committer::Waits {
                    self.begin_commit(&mut state);
                    self.wake_committer.notify_one();
                }
                self.wake(state);
                finish(waiting, Ok(()));
            }
            Err(error) => {
                // What was applied meanwhile may stand on what is no more. All hear of it before the lock is given up,
                // so that nothing later begins first.
                state.gathered = Part::default();
                state.stopped = Some(Stopped::Log(error.clone()));
                state.hurry = true;
                finish(waiting, Err(error.clone()));
                finish(std::mem::take(&mut state.waiting), Err(error));
                if state.committer == Committer::Waits {
                    self.wake_committer.notify_one();
                }
                self.wake(state);
            }
        }
        !closing
    }

    fn append(&self, generation: u64, changes: &Overlay) -> Result<LogMark, StorageError> {
        #[cfg(test)]
        self.trouble.before_log.stop_here()?;
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let log = log.as_mut().expect("nothing is taken before the log has begun");
        let through = log.append(generation, changes)?;
        #[cfg(test)]
        self.trouble.after_log.stop_here()?;
        Ok(through)
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
}
