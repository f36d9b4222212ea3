//! The environment of a simulated node: a wall clock that can be wrong, and randomness from the
//! seed.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use quorate_core::environment::Environment;
use tokio::time::Instant;

use crate::random::Random;

/// Reading of a correct wall clock when a run begins, in milliseconds since 1970.
const EPOCH_MS: u64 = 1_800_000_000_000;

/// Clocks and randomness of one node's process.
pub(super) struct SimEnvironment {
    run_start: Instant,
    /// Difference of the wall clock from the true time. The node's machine shares this number, so
    /// that a fault can change it while the process runs.
    skew_ms: Arc<AtomicI64>,
    random: Mutex<Random>,
}

impl SimEnvironment {
    pub(super) fn new(run_start: Instant, skew_ms: Arc<AtomicI64>, random: Random) -> SimEnvironment {
        SimEnvironment { run_start, skew_ms, random: Mutex::new(random) }
    }
}

impl Environment for SimEnvironment {
    fn wall_ms(&self) -> u64 {
        (EPOCH_MS + self.monotonic_ms()).saturating_add_signed(self.skew_ms.load(Ordering::Relaxed))
    }

    fn monotonic_ms(&self) -> u64 {
        self.run_start.elapsed().as_millis() as u64
    }

    fn random(&self) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).draw()
    }
}
