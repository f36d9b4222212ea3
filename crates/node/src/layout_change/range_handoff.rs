//! Range handoff: at the end of a layout change, a node gives surplus records to their replicas,
//! and drops them.
//!
//! Surplus records are records that a node holds although it is not a replica of their key. During
//! a layout change they are dropped only after they were compared with all of their replicas.

use std::rc::Rc;

use quorate_core::event::EventKind;
use quorate_core::planted::{Bug, planted};
use quorate_core::request::TreeName;
use quorate_core::storage::StorageError;
use quorate_core::{Layout, NodeId, PartitionId, StorageKey};
use tokio::time::Instant;

use super::throttle::leave_time_for_clients;
use crate::membership::layout_exchange::agree;
use crate::node::Node;
use crate::repair::merkle_sync::{Direction, sync};
use crate::state::commit_barrier::all_committed;
use crate::state::scan_pages::{PageBounds, ScanPages};
use crate::state::scan_scheduler::{Scanned, cost_of};
use crate::state::shared::Shared;

/// Records that are dropped together.
const PAGE: PageBounds = PageBounds { records: 32, bytes: 128 * 1024 };
/// Partitions whose surplus records are dropped at the same time.
const PARTITIONS_TOGETHER: usize = 4;

/// Surplus records of one partition.
struct SurplusRange {
    partition: PartitionId,
    /// Values of n. The records of buckets with such an n are surplus on this node.
    sizes: Vec<u8>,
}

/// Finds the records that this node holds although it is not a replica of their keys in `layout`.
/// `None` while hash trees are being built, because they are needed to find the records.
fn surplus_ranges(shared: &Shared, layout: &Layout) -> Option<Vec<SurplusRange>> {
    let this = shared.node();
    let sizes = shared.sizes();
    let mut surplus = Vec::new();
    for partition in shared.all_partitions() {
        let mut surplus_sizes = Vec::new();
        for &n in sizes.iter().filter(|&&n| !layout.replicas_of(partition, n).contains(&this)) {
            if shared.trees.root(TreeName { partition, n })? != 0 {
                surplus_sizes.push(n);
            }
        }
        if !surplus_sizes.is_empty() {
            surplus.push(SurplusRange { partition, sizes: surplus_sizes });
        }
    }
    Some(surplus)
}

/// Gives the surplus records to their replicas in the newest layout, and drops them. False if the
/// caller must call this again.
pub(crate) async fn hand_over(node: &Rc<Node>) -> bool {
    let shared = &node.shared;
    let newest = shared.layouts.with(|layouts| layouts.newest().clone());
    // Records that were accepted under older layouts may still be uncommitted. Wait for the commit,
    // so that the hash trees contain them.
    all_committed(&*shared.engine).await;
    let Some(surplus) = surplus_ranges(shared, &newest) else { return false };
    shared.progress.transfer().begin(surplus.len(), shared.environment.monotonic_ms());
    if !planted(Bug::LeftoversDropped) && !merge_with_replicas(node, &newest, &surplus).await {
        return false;
    }
    if !drop_all(node, &newest, &surplus).await {
        return false;
    }
    if surplus_ranges(shared, &newest).is_none_or(|surplus| !surplus.is_empty()) {
        return false;
    }
    shared.progress.transfer().end(shared.environment.monotonic_ms());
    // A node that leaves must deliver its hints before it is done.
    let stays = newest.member(shared.node()).is_some();
    stays || shared.hints.targets().is_empty()
}

/// Sends the surplus records to all of their replicas. False if a replica could not be reached, or
/// could not merge all records of which it is a replica.
async fn merge_with_replicas(node: &Rc<Node>, newest: &Layout, surplus: &[SurplusRange]) -> bool {
    let shared = &node.shared;
    let has_replica = |range: &SurplusRange, peer: NodeId| {
        range.sizes.iter().any(|&n| newest.replicas_of(range.partition, n).contains(&peer))
    };
    for peer in newest.members().iter().map(|member| member.id) {
        let partitions: Vec<PartitionId> =
            surplus.iter().filter(|range| has_replica(range, peer)).map(|range| range.partition).collect();
        if partitions.is_empty() {
            continue;
        }
        if !node.is_live(peer) || agree(node, peer).await.is_err() {
            return false;
        }
        match sync(node, peer, &partitions, Direction::Push, u64::MAX).await {
            Ok(synced) if partitions.iter().all(|partition| !synced.unknown.contains(partition)) => {}
            Ok(_) => return false,
            Err(error) => {
                let (peer, reason) = (shared.view().name_of(peer), error.to_string());
                shared.emit(None, EventKind::RepairFailed { peer, reason });
                return false;
            }
        }
    }
    true
}

/// Drops surplus records while no layout change is under way. They are copies that this node
/// received, or fetched, before it knew the newest layout.
pub(crate) async fn drop_surplus(node: &Rc<Node>) {
    let shared = &node.shared;
    let view = shared.view();
    let newest = view.newest().clone();
    let surplus = surplus_ranges(shared, &newest).unwrap_or_default();
    if view.removed {
        return;
    }
    drop(view);
    drop_all(node, &newest, &surplus).await;
}

/// Drops the surplus records, several partitions at the same time. False if a newer layout arrives
/// meanwhile, or the engine fails.
async fn drop_all(node: &Node, newest: &Layout, surplus: &[SurplusRange]) -> bool {
    let shared = &node.shared;
    for chunk in surplus.chunks(PARTITIONS_TOGETHER) {
        // A newer layout may make this node a replica of the records again. So no layout may be
        // stored while they are being dropped.
        let dropped = shared.without_change(async || {
            if shared.layouts.with(|layouts| layouts.newest().digest()) != newest.digest() {
                return false;
            }
            let all = chunk.iter().map(|range| drop_records(node, newest, range));
            futures::future::join_all(all).await.iter().all(Result::is_ok)
        });
        if !dropped.await {
            return false;
        }
        shared.progress.transfer().add_done(chunk.len());
    }
    true
}

/// Drops the surplus records of one partition, and the partition's actor. Ends the partition's
/// recovery if this node is not its replica for any bucket.
async fn drop_records(node: &Node, layout: &Layout, range: &SurplusRange) -> Result<(), StorageError> {
    let shared = &node.shared;
    let mut pages = ScanPages::under(StorageKey::partition_start(range.partition), PAGE);
    loop {
        let mut removed = Vec::new();
        let mut begun = Instant::now();
        let remove_page = || {
            // The measured time begins here. The time in which the scan waited for its turn took
            // nothing from clients.
            begun = Instant::now();
            let page = match pages.next(&*shared.engine) {
                Ok(Some(page)) => page,
                ended => return Scanned { found: ended.map(|_| None), cost: 0 },
            };
            let keys = page.records.iter().filter_map(|(key, _)| StorageKey::from_peer(key));
            let is_surplus = |key: &StorageKey| range.sizes.contains(&shared.n_of(key.bucket()));
            removed = node.replica.remove(keys.filter(is_surplus));
            Scanned { cost: cost_of(&page.records), found: Ok(Some(page)) }
        };
        if node.replica.scans.run(remove_page).await?.is_none() {
            break;
        }
        for outcome in removed {
            let lost = |_| StorageError::Io { detail: "the storage engine did not finish a write".into() };
            outcome.await.map_err(lost)??;
        }
        leave_time_for_clients(begun.elapsed()).await;
    }
    // This node may have minted some of the dropped writes under the partition's actor. An actor
    // whose writes may be forgotten must not mint again.
    shared.actors.forget(range.partition);
    if !layout.holds(shared.node(), range.partition) {
        shared.recovery.forget(range.partition);
    }
    Ok(())
}
