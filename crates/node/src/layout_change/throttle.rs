//! The throttle of a layout change's copies. Clients' requests keep most of the time.

use std::sync::Arc;
use std::time::Duration;

use quorate_core::{Layout, NodeId};
use tokio::time::Instant;

use crate::state::shared::Shared;

/// Longest delay that copies may make up for. After a longer delay, they exceed the limit only
/// until this part of it is made up for.
const LARGEST_BURST: Duration = Duration::from_millis(50);
/// Copies use at most 1 / `SHARE` of the time. The rest is for clients' requests.
const SHARE: u32 = 4;
/// Longest pause for clients' requests after a copy. A copy so slow that it would need a longer
/// pause was delayed by a faulty peer, not by clients' requests.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Limit of this node's copies, in bytes per second. A copy that fell behind does not catch up in a
/// burst of more than [`LARGEST_BURST`].
pub(super) struct Throttle {
    due: Instant,
    bytes_per_s: u64,
    /// Number of copying nodes that may delay one client's request. At most the number of replicas
    /// of a key, because a request needs only these.
    copying: u32,
}

impl Throttle {
    pub(super) fn new(shared: &Shared, newest: &Layout, sources: &[Arc<Layout>]) -> Throttle {
        let copying =
            count_copying(shared, newest, sources).clamp(1, usize::from(newest.replicas()).max(1)) as u32;
        Throttle { due: Instant::now(), bytes_per_s: shared.settings.transfer.bytes_per_s.max(1), copying }
    }

    /// Waits after a copy of `bytes` bytes that took `elapsed`, until the next copy may begin.
    ///
    /// The wait keeps the limit of bytes per second. It is also so long that the copies of all
    /// copying nodes, one after the other, would use one part in [`SHARE`] of the time. The rest is
    /// for clients' requests.
    pub(super) async fn wait_after(&mut self, shared: &Shared, bytes: u64, elapsed: Duration) {
        shared.progress.transfer().add_bytes(bytes);
        let earliest = Instant::now().checked_sub(LARGEST_BURST).unwrap_or(self.due);
        self.due = self.due.max(earliest) + Duration::from_micros(bytes * 1_000_000 / self.bytes_per_s);
        tokio::time::sleep_until(self.due.max(Instant::now() + pause_for_clients(self.copying, elapsed)))
            .await;
    }
}

/// Returns the pause after work that took `elapsed`, while `copying` nodes copy.
fn pause_for_clients(copying: u32, elapsed: Duration) -> Duration {
    ((SHARE * copying - 1) * elapsed).min(LONGEST_PAUSE)
}

/// Waits after work of this node alone that took `elapsed`. Such work then uses at most one part
/// in [`SHARE`] of the time.
pub(super) async fn leave_time_for_clients(elapsed: Duration) {
    tokio::time::sleep(pause_for_clients(1, elapsed)).await;
}

/// Returns the number of members that gain a partition.
fn count_copying(shared: &Shared, newest: &Layout, sources: &[Arc<Layout>]) -> usize {
    let gains = |member: NodeId| {
        let had = |partition| sources.iter().any(|source| source.holds(member, partition));
        shared.all_partitions().any(|partition| newest.holds(member, partition) && !had(partition))
    };
    newest.members().iter().filter(|member| gains(member.id)).count()
}
