//! The times of a run, and the pace of an open loop.

use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::plan::Plan;

/// The times of a run, the same for all threads.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    begin: Instant,
    /// End of the warm-up. Only operations that are due after it are measured.
    pub(super) measure: Instant,
    pub(super) end: Instant,
}

/// Time that an open loop has to begin late operations, after its last operation has become due.
/// Operations that have not begun by then count as `NotSent`.
const MAX_OVERRUN: Duration = Duration::from_secs(10);
/// Shortest sleep of the thread that paces an open loop. Operations that become due during one
/// sleep may begin together.
const STEP: Duration = Duration::from_micros(200);

impl Clock {
    /// Begins the run: computes the times at which the warm-up and the measurement end.
    pub(super) fn start(plan: &Plan) -> Clock {
        let begin = Instant::now();
        let measure = begin + plan.warm_up;
        Clock { begin, measure, end: measure + plan.measured }
    }

    /// Returns the time at which operation `number`, from 0, is due.
    pub(super) fn due_at(&self, number: u64, rate: f64) -> Instant {
        self.begin + Duration::from_secs_f64(number as f64 / rate)
    }

    /// Returns the number of operations that are due before the end of the run.
    pub(super) fn due(&self, rate: f64) -> u64 {
        ((self.end - self.begin).as_secs_f64() * rate) as u64
    }

    /// Adds a permit to `due` for each operation when it becomes due. Sleeps at least `STEP` in
    /// between, because shorter sleeps are not exact. Blocks until the run is over.
    pub(super) fn pace(&self, due: &Semaphore, rate: f64) {
        let total = self.due(rate);
        let mut announced = 0;
        while announced < total {
            let now_due = ((self.begin.elapsed().as_secs_f64() * rate) as u64 + 1).min(total);
            if now_due > announced {
                due.add_permits((now_due - announced) as usize);
                announced = now_due;
            }
            let next = self.due_at(announced, rate);
            std::thread::sleep(next.saturating_duration_since(Instant::now()).max(STEP));
        }
        // Late operations may still begin for `MAX_OVERRUN`. Closing the semaphore then wakes the
        // tasks that wait for a permit, and ends them.
        std::thread::sleep(MAX_OVERRUN);
        due.close();
    }
}
