//! Looks at many records take turns, so that what comes meanwhile comes between them: an event loop that looked at all that
//! peers ask for at once would let clients wait for milliseconds.

use std::cell::Cell;

use bytes::Bytes;
use tokio::sync::Semaphore;

/// What is looked at before others have their turn: a page of large records, or some hundred small ones.
const BYTES_A_TURN: usize = 128 * 1024;
/// What a record counts besides its bytes, and a look besides its records.
const BYTES_A_RECORD: usize = 256;

/// One worker's.
pub(crate) struct Turns {
    one: Semaphore,
    /// Since others last had their turn.
    looked_at: Cell<usize>,
}

impl Default for Turns {
    fn default() -> Turns {
        Turns { one: Semaphore::new(1), looked_at: Cell::new(0) }
    }
}

impl Turns {
    /// Looks, once it is this one's turn; the look tells what it cost.
    pub(crate) async fn look<T>(&self, look: impl FnOnce() -> (T, usize)) -> T {
        let _turn = self.one.acquire().await;
        let (found, cost) = look();
        self.looked_at.set(self.looked_at.get() + cost);
        if self.looked_at.get() >= BYTES_A_TURN {
            self.looked_at.set(0);
            tokio::task::yield_now().await;
        }
        found
    }
}

/// What it costs to look at these.
pub(crate) fn cost_of(records: &[(Bytes, Bytes)]) -> usize {
    let bytes = records.iter().map(|(key, object)| key.len() + object.len() + BYTES_A_RECORD);
    bytes.sum::<usize>() + BYTES_A_RECORD
}
