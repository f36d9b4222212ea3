//! A scheduler that runs the scans of one worker one after the other.
//!
//! Peers may ask for many pages at once. Clients would wait for milliseconds if an event loop read
//! all pages without a pause, so other tasks run between the scans.

use std::cell::Cell;

use bytes::Bytes;
use tokio::sync::Semaphore;

/// Bytes that are scanned before other tasks run: one page of large records, or a few hundred small
/// records.
const BYTES_A_TURN: usize = 128 * 1024;
/// Extra cost, in bytes, of each record and of each scan.
const BYTES_A_RECORD: usize = 256;

/// The scans of one worker.
pub(crate) struct ScanScheduler {
    turns: Semaphore,
    /// Bytes that were scanned since other tasks last ran.
    scanned: Cell<usize>,
}

impl Default for ScanScheduler {
    fn default() -> ScanScheduler {
        ScanScheduler { turns: Semaphore::new(1), scanned: Cell::new(0) }
    }
}

impl ScanScheduler {
    /// Runs `scan` when its turn comes. `scan` returns its result and its cost in bytes.
    pub(crate) async fn run<T>(&self, scan: impl FnOnce() -> Scanned<T>) -> T {
        let _turn = self.turns.acquire().await;
        let Scanned { found, cost } = scan();
        self.scanned.set(self.scanned.get() + cost);
        if self.scanned.get() >= BYTES_A_TURN {
            self.scanned.set(0);
            tokio::task::yield_now().await;
        }
        found
    }
}

/// The result of a scan, and its cost in bytes.
pub(crate) struct Scanned<T> {
    pub(crate) found: T,
    pub(crate) cost: usize,
}

/// Returns the cost of scanning these records, in bytes.
pub(crate) fn cost_of(records: &[(Bytes, Bytes)]) -> usize {
    let bytes = records.iter().map(|(key, object)| key.len() + object.len() + BYTES_A_RECORD);
    bytes.sum::<usize>() + BYTES_A_RECORD
}
