//! What a node holds and should not, once a change of layout is done: handed over to those whose it is, and dropped.
//!
//! Nothing is dropped before it was compared with its owners.

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

/// Records dropped together, and partitions side by side.
const PAGE: PageBounds = PageBounds { records: 32, bytes: 128 * 1024 };
const DROPPED_TOGETHER: usize = 4;

/// What a node holds of a partition and should not: of buckets with these numbers of replicas.
struct Leftover {
    partition: PartitionId,
    sizes: Vec<u8>,
}

/// What this node holds that is not its own in a layout. `None`: it does not know yet, trees are being built.
fn leftovers(shared: &Shared, layout: &Layout) -> Option<Vec<Leftover>> {
    let this = shared.node();
    let sizes = shared.sizes();
    let mut left = Vec::new();
    for partition in shared.all_partitions() {
        let mut of_it = Vec::new();
        for &n in sizes.iter().filter(|&&n| !layout.replicas_of(partition, n).contains(&this)) {
            if shared.trees.root(TreeName { partition, n })? != 0 {
                of_it.push(n);
            }
        }
        if !of_it.is_empty() {
            left.push(Leftover { partition, sizes: of_it });
        }
    }
    Some(left)
}

/// Hands over what is not this node's own in the newest layout, and drops it. False if it has to be done again.
pub(crate) async fn hand_over(node: &Rc<Node>) -> bool {
    let shared = &node.shared;
    let newest = shared.layouts.with(|layouts| layouts.newest().clone());
    // What was taken before everybody had let go of the older layouts is in the trees once it is committed.
    all_committed(&*shared.engine).await;
    let Some(left) = leftovers(shared, &newest) else { return false };
    shared.progress.transfer().begin(left.len(), shared.environment.monotonic_ms());
    if !planted(Bug::LeftoversDropped) && !all_handed_over(node, &newest, &left).await {
        return false;
    }
    if !drop_all(node, &newest, &left).await {
        return false;
    }
    if leftovers(shared, &newest).is_none_or(|left| !left.is_empty()) {
        return false;
    }
    shared.progress.transfer().end(shared.environment.monotonic_ms());
    // What a node that goes keeps for others goes first.
    let stays = newest.member(shared.node()).is_some();
    stays || shared.hints.targets().is_empty()
}

/// Merges what is left here with every one of its owners.
async fn all_handed_over(node: &Rc<Node>, newest: &Layout, left: &[Leftover]) -> bool {
    let shared = &node.shared;
    let owned_by = |leftover: &Leftover, peer: NodeId| {
        leftover.sizes.iter().any(|&n| newest.replicas_of(leftover.partition, n).contains(&peer))
    };
    for peer in newest.members().iter().map(|member| member.id) {
        let theirs: Vec<PartitionId> =
            left.iter().filter(|one| owned_by(one, peer)).map(|one| one.partition).collect();
        if theirs.is_empty() {
            continue;
        }
        if !node.is_live(peer) || agree(node, peer).await.is_err() {
            return false;
        }
        match sync(node, peer, &theirs, Direction::Push, u64::MAX).await {
            Ok(synced) if theirs.iter().all(|partition| !synced.unknown.contains(partition)) => {}
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

/// Drops what this node holds of partitions that are not its own while no change is under way: copies that it was sent, or
/// fetched, before it knew better.
pub(crate) async fn drop_copies(node: &Rc<Node>) {
    let shared = &node.shared;
    let view = shared.view();
    let newest = view.newest().clone();
    let left = leftovers(shared, &newest).unwrap_or_default();
    if view.removed {
        return;
    }
    drop(view);
    drop_all(node, &newest, &left).await;
}

/// Drops what is left, some partitions side by side. False if a newer layout comes meanwhile, or the engine fails.
async fn drop_all(node: &Node, newest: &Layout, left: &[Leftover]) -> bool {
    let shared = &node.shared;
    for some in left.chunks(DROPPED_TOGETHER) {
        // A newer layout may make it this node's own again: not while it is being dropped.
        let dropped = shared.without_change(async || {
            if shared.layouts.with(|layouts| layouts.newest().digest()) != newest.digest() {
                return false;
            }
            let all = some.iter().map(|leftover| drop_records(node, newest, leftover));
            futures::future::join_all(all).await.iter().all(Result::is_ok)
        });
        if !dropped.await {
            return false;
        }
        shared.progress.transfer().add_done(some.len());
    }
    true
}

/// Drops what is left of a partition, and if that is all of it, its actor.
async fn drop_records(node: &Node, layout: &Layout, leftover: &Leftover) -> Result<(), StorageError> {
    let shared = &node.shared;
    let mut pages = ScanPages::under(StorageKey::partition_start(leftover.partition), PAGE);
    loop {
        let mut removed = Vec::new();
        let mut begun = Instant::now();
        let remove_page = || {
            // The time that the scan waited for its turn is no time that it takes from clients.
            begun = Instant::now();
            let page = match pages.next(&*shared.engine) {
                Ok(Some(page)) => page,
                ended => return Scanned { found: ended.map(|_| None), cost: 0 },
            };
            let keys = page.records.iter().filter_map(|(key, _)| StorageKey::from_peer(key));
            let is_left = |key: &StorageKey| leftover.sizes.contains(&shared.n_of(key.bucket()));
            removed = node.replica.remove(keys.filter(is_left));
            Scanned { cost: cost_of(&page.records), found: Ok(Some(page)) }
        };
        if node.replica.scans.run(remove_page).await?.is_none() {
            break;
        }
        for gone in removed {
            let lost = |_| StorageError::Io { detail: "the engine dropped a write".into() };
            gone.await.map_err(lost)??;
        }
        leave_time_for_clients(begun.elapsed()).await;
    }
    // What is forgotten is forgotten of all sizes of buckets: one actor names them all.
    shared.actors.forget(leftover.partition);
    if !layout.holds(shared.node(), leftover.partition) {
        shared.recovery.forget(leftover.partition);
    }
    Ok(())
}
