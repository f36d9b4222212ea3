//! Throttles the copies of a layout change, so that clients keep most of the time.

use std::sync::Arc;
use std::time::Duration;

use quorate_core::{Layout, NodeId};
use tokio::time::Instant;

use crate::state::shared::Shared;

/// Longest delay that a throttled copy may catch up in one burst.
const LARGEST_BURST: Duration = Duration::from_millis(50);
/// Copies use at most 1 / `SHARE` of the time.
const SHARE: u32 = 4;
/// Longest pause for clients. A copy that took longer than this met a peer in trouble, not waiting clients.
const LONGEST_FOR_CLIENTS: Duration = Duration::from_secs(2);

/// Holds copying back to so many bytes a second. What it once fell behind it does not catch up on in a burst.
pub(super) struct Throttle {
    due: Instant,
    bytes_per_s: u64,
    /// How many nodes one request may meet that copy now.
    copying: u32,
}

impl Throttle {
    pub(super) fn new(shared: &Shared, newest: &Layout, sources: &[Arc<Layout>]) -> Throttle {
        let copying = copying(shared, newest, sources).clamp(1, usize::from(newest.replicas()).max(1)) as u32;
        Throttle { due: Instant::now(), bytes_per_s: shared.settings.transfer.bytes_per_s.max(1), copying }
    }

    /// Waits as long as these bytes may take, and so much longer than they took that all who copy, in turn, would take one
    /// part in [`SHARE`] of the time: where copies meet clients' requests, the rest of it is theirs.
    pub(super) async fn took(&mut self, shared: &Shared, bytes: u64, took: Duration) {
        shared.progress.transfer().add_bytes(bytes);
        let earliest = Instant::now().checked_sub(LARGEST_BURST).unwrap_or(self.due);
        self.due = self.due.max(earliest) + Duration::from_micros(bytes * 1_000_000 / self.bytes_per_s);
        tokio::time::sleep_until(self.due.max(Instant::now() + for_clients(self.copying, took))).await;
    }
}

fn for_clients(copying: u32, took: Duration) -> Duration {
    ((SHARE * copying - 1) * took).min(LONGEST_FOR_CLIENTS)
}

/// After what a node does by itself: so much longer than it took that it takes one part in [`SHARE`] of the time.
pub(super) async fn leave_time_for_clients(took: Duration) {
    tokio::time::sleep(for_clients(1, took)).await;
}

/// How many members have to hold a partition that they did not hold before.
fn copying(shared: &Shared, newest: &Layout, sources: &[Arc<Layout>]) -> usize {
    let gains = |member: NodeId| {
        let had = |partition| sources.iter().any(|source| source.holds(member, partition));
        shared.all_partitions().any(|partition| newest.holds(member, partition) && !had(partition))
    };
    newest.members().iter().filter(|member| gains(member.id)).count()
}
