//! Copying data when the layout changes: what this node's partitions must hold by the newest one. (What is not its own any more:
//! `leftovers.rs`.)
//!
//! Copying asks N - W + 1 replicas of each layout that may hold acked writes, this node included where it is one, and all of
//! them as far as they can be reached: an empty partition is streamed from one replica first, and then trees are compared
//! with each. Nothing remembers "already sent": what breaks off begins again, and finds most of it there.
//!
//! Source: Dynamo §6.2 (whole partitions move); Garage's rule that a new set syncs from a quorum of the old one.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use quorate_core::event::EventKind;
use quorate_core::planted::{Bug, planted};
use quorate_core::recovery::sources_needed;
use quorate_core::request::{PeerError, PeerReply, PeerRequest, ScanPartition};
use quorate_core::{Layout, NodeId, PartitionId, StorageKey};
use tokio::time::Instant;

use super::bucket_backfill::backfill_bucket;
use super::give::{PAGE_TIMEOUT, PAUSE, bounded, give, readable, size};
use super::throttle::Throttle;
use crate::membership::layout_exchange::agree;
use crate::node::Node;
use crate::repair::merkle_sync::{Direction, sync};

/// One page of a partition that is streamed.
const PAGE_RECORDS: u32 = 256;

const PAGE_BYTES: u32 = 128 * 1024;

/// What a partition of the newest layout must still be merged with.
struct PendingPartition {
    partition: PartitionId,
    /// With whom it was merged, and whether they were recovering.
    merged: BTreeMap<NodeId, bool>,
}

/// Merges what this node's partitions of the newest layout must hold. False if a newer layout came meanwhile.
pub(crate) async fn copy(node: &Rc<Node>) -> bool {
    let shared = &node.shared;
    let this = shared.node();
    let (newest, sources, redefined) = shared
        .layouts
        .with(|layouts| (layouts.newest().clone(), layouts.sources().to_vec(), layouts.redefined_buckets()));
    for bucket in redefined.iter().filter(|_| !planted(Bug::RedefinedKeysStay)) {
        if !backfill_bucket(node, &newest, bucket).await {
            return false;
        }
    }
    let changed = |partition: &PartitionId| {
        let then = newest.replicas_of(*partition, u8::MAX);
        then.contains(&this) && sources.iter().any(|source| source.replicas_of(*partition, u8::MAX) != then)
    };
    let mut wanted: Vec<PendingPartition> = shared
        .all_partitions()
        .filter(changed)
        .map(|partition| PendingPartition { partition, merged: BTreeMap::new() })
        .collect();
    shared.progress.transfer().begin(wanted.len(), shared.environment.monotonic_ms());
    let all = wanted.len();
    let mut throttle = Throttle::new(shared, &newest, &sources);
    // Partitions that need not be compared key by key with what this node had: it had nothing.
    let mut fresh: BTreeSet<PartitionId> = wanted
        .iter()
        .map(|one| one.partition)
        .filter(|&partition| !sources.iter().any(|source| source.holds(this, partition)))
        .collect();
    loop {
        let mut troubled = false;
        let holders: BTreeSet<NodeId> = sources
            .iter()
            .flat_map(|source| source.members().iter().map(|member| member.id))
            .filter(|&member| member != this && !newest.is_lost(member))
            .collect();
        for &peer in holders.iter().filter(|&&peer| node.is_live(peer)) {
            let theirs: Vec<PartitionId> = wanted
                .iter()
                .filter(|one| one.merged.get(&peer).is_none_or(|recovering| *recovering))
                .map(|one| one.partition)
                .filter(|&partition| sources.iter().any(|source| source.holds(peer, partition)))
                .collect();
            if theirs.is_empty() {
                continue;
            }
            match merge_with(node, peer, &theirs, &sources, &mut fresh, &mut throttle).await {
                Ok(merged) => {
                    for one in &mut wanted {
                        if let Some(recovering) = merged.get(&one.partition) {
                            one.merged.insert(peer, *recovering);
                        }
                    }
                }
                Err(error) => {
                    troubled = true;
                    let (peer, reason) = (shared.view().name_of(peer), error.to_string());
                    shared.emit(None, EventKind::RepairFailed { peer, reason });
                }
            }
            if shared.layouts.with(|layouts| layouts.newest().digest()) != newest.digest() {
                return false;
            }
            wanted.retain(|one| !is_copied(node, &newest, &sources, one));
            shared.progress.transfer().set_done(all - wanted.len());
        }
        wanted.retain(|one| !is_copied(node, &newest, &sources, one));
        if wanted.is_empty() {
            shared.progress.transfer().end(shared.environment.monotonic_ms());
            return true;
        }
        if shared.layouts.with(|layouts| layouts.newest().digest()) != newest.digest() {
            return false;
        }
        tokio::time::sleep(if troubled { 2 * PAUSE } else { PAUSE }).await;
    }
}

/// True if the partition was merged with enough of every source, for each size of bucket, and with everybody of them who can
/// be reached: what W = 1 acked may be anywhere.
fn is_copied(node: &Node, newest: &Layout, sources: &[Arc<Layout>], wanted: &PendingPartition) -> bool {
    let shared = &node.shared;
    let (this, partition) = (shared.node(), wanted.partition);
    shared.sizes().into_iter().all(|n| {
        let then = newest.replicas_of(partition, n);
        let has_part = |source: &&Arc<Layout>| {
            let now = source.replicas_of(partition, n);
            then.contains(&this) && now != then
        };
        sources.iter().filter(has_part).all(|source| {
            let kept = |replica: &&NodeId| !newest.is_lost(**replica);
            let replicas: Vec<NodeId> =
                source.replicas_of(partition, n).iter().filter(kept).copied().collect();
            let own = replicas.contains(&this) && !shared.is_recovering(partition);
            let whole = |replica: &&NodeId| wanted.merged.get(*replica) == Some(&false);
            let have = replicas.iter().filter(whole).count() + usize::from(own);
            let needed = sources_needed(n.min(source.replicas()), shared.smallest_w(n, source.replicas()));
            if planted(Bug::SyncedFromOne) {
                return have >= 1;
            }
            let others = || replicas.iter().filter(|&&replica| replica != this);
            let everybody = others().all(|replica| wanted.merged.contains_key(replica));
            let reachable = others().filter(|&&replica| node.is_live(replica));
            let all_reachable = reachable.clone().all(|replica| wanted.merged.contains_key(replica));
            everybody || (have >= needed && all_reachable)
        })
    })
}

/// Merges this node's part of some partitions with a peer's. Which were merged wholly, and whether the peer may itself have
/// forgotten something of them.
async fn merge_with(
    node: &Rc<Node>,
    peer: NodeId,
    partitions: &[PartitionId],
    sources: &[Arc<Layout>],
    fresh: &mut BTreeSet<PartitionId>,
    throttle: &mut Throttle,
) -> Result<BTreeMap<PartitionId, bool>, PeerError> {
    // From here on the peer takes no write of a coordinator that does not know what this node knows.
    agree(node, peer).await?;
    let newest = || node.shared.layouts.with(|layouts| layouts.newest().digest());
    let begun = newest();
    for &partition in partitions {
        if newest() != begun {
            return Ok(BTreeMap::new());
        }
        if fresh.contains(&partition) {
            stream(node, peer, partition, sources, throttle).await?;
            fresh.remove(&partition);
            // For people: what is streamed is nearly done. Who it was compared with is counted when it was.
            node.shared.progress.transfer().add_done(1);
        }
    }
    let synced =
        sync(node, peer, partitions, Direction::Pull, node.shared.settings.repair.max_keys_per_second)
            .await?;
    let whole = partitions.iter().filter(|partition| !synced.unknown.contains(partition));
    Ok(whole.map(|&partition| (partition, synced.recovering.contains(&partition))).collect())
}

/// Copies a partition of which this node holds nothing, page by page.
async fn stream(
    node: &Rc<Node>,
    peer: NodeId,
    partition: PartitionId,
    sources: &[Arc<Layout>],
    throttle: &mut Throttle,
) -> Result<(), PeerError> {
    let Some(source) = sources.iter().find(|source| source.holds(peer, partition)) else { return Ok(()) };
    let newest = node.shared.layouts.with(|layouts| layouts.newest().clone());
    let mut after = Bytes::new();
    loop {
        let scan = ScanPartition {
            partition,
            prefix: StorageKey::partition_start(partition).into(),
            after: after.clone(),
            limit: PAGE_RECORDS,
            max_bytes: PAGE_BYTES,
            layout: source.digest(),
        };
        let valid_until_ms = node.shared.valid_until_ms(PAGE_TIMEOUT);
        let page = match node.ask(peer, PeerRequest::ScanPartition(scan)).await {
            Ok(PeerReply::Page(page)) => page,
            // What it can't show as a whole is compared key by key.
            Ok(_) | Err(PeerError::Recovering | PeerError::Storage { .. } | PeerError::StaleLayout) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let ours = |(key, object): &(Bytes, Bytes)| {
            let this = node.shared.node();
            // A record that is damaged there is for the comparison to find.
            let key = readable(key, object).filter(|key| key.partition() == partition)?;
            // Keys of a bucket with fewer replicas may be for others.
            let is_own = newest.replicas_for(partition, key.bucket()).contains(&this);
            is_own.then(|| (this, key, object.clone()))
        };
        let objects: Vec<(NodeId, StorageKey, Bytes)> = page.records.iter().filter_map(ours).collect();
        let mut rest = &objects[..];
        while !rest.is_empty() {
            let some = rest.split_at(bounded(rest)).0;
            let begun = Instant::now();
            give(node, some, valid_until_ms).await.map_err(|(_, error)| error)?;
            throttle.took(&node.shared, some.iter().map(size).sum(), begun.elapsed()).await;
            rest = &rest[some.len()..];
        }
        match page.records.last() {
            Some((last, _)) if page.more && *last > after => after = last.clone(),
            _ => return Ok(()),
        }
    }
}
