//! The result of comparing this node's clock with its peers'. A node whose clock is wrong stamps no
//! writes.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use quorate_core::environment::Environment;

/// The result of the latest comparison of clocks.
pub(crate) struct ClockGuard {
    environment: Arc<dyn Environment>,
    max_skew_ms: u64,
    /// The reason to stamp no writes, if the last comparison found one.
    problem: Mutex<Option<String>>,
    has_problem: AtomicBool,
    /// Wall clock minus monotonic clock, in milliseconds, when the peers last agreed with this
    /// node. A different value now means that the wall clock jumped; the next write checks this
    /// before it is stamped.
    base: AtomicI64,
    /// Milliseconds by which this node's clock is ahead of its peers' clocks (the median).
    /// Negative: behind.
    ahead_ms: AtomicI64,
}

impl ClockGuard {
    pub(crate) fn new(environment: Arc<dyn Environment>, max_skew_ms: u64) -> ClockGuard {
        let guard = ClockGuard {
            environment,
            max_skew_ms,
            problem: Mutex::default(),
            has_problem: AtomicBool::new(false),
            base: AtomicI64::new(0),
            ahead_ms: AtomicI64::new(0),
        };
        guard.confirm();
        guard
    }

    /// Returns the reason to stamp no writes, if there is one. A jump of the clock is a reason only
    /// in a cluster of more than one participant, where peers can confirm or correct the new time.
    pub(crate) fn problem(&self, participants: impl FnOnce() -> usize) -> Option<String> {
        if self.has_problem.load(Ordering::Acquire) {
            return self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        }
        let jump = self.offset() - self.base.load(Ordering::Acquire);
        let limit = self.max_skew_ms;
        let is_far = jump.unsigned_abs() > limit && participants() > 1;
        is_far.then(|| {
            format!(
                "this node's clock has just jumped by {jump} ms, the limit is {limit} (max_clock_skew_ms)"
            )
        })
    }

    fn offset(&self) -> i64 {
        self.environment.wall_ms() as i64 - self.environment.monotonic_ms() as i64
    }

    /// Records that the peers agree with this node's clock now.
    pub(crate) fn confirm(&self) {
        self.base.store(self.offset(), Ordering::Release);
    }

    pub(crate) fn set_problem(&self, problem: Option<String>) {
        self.has_problem.store(problem.is_some(), Ordering::Release);
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    /// Returns the milliseconds by which this node's clock is ahead of its peers' clocks (the
    /// median). Negative: behind.
    pub(crate) fn ahead_ms(&self) -> i64 {
        self.ahead_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn set_ahead_ms(&self, ahead_ms: i64) {
        self.ahead_ms.store(ahead_ms, Ordering::Relaxed);
    }
}
