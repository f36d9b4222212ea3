//! Transfer: copies the data that this node's partitions must hold in the newest layout. (The
//! opposite direction: `range_handoff.rs`.)
//!
//! A source is an older layout whose replicas may hold acked writes. A partition is merged with
//! N - W + 1 replicas of each source: every set of W replicas contains one of them. Replicas that
//! recover do not count, because they may have forgotten a write. This node counts if it is a
//! replica of the source and does not recover. The partition is also merged with all other replicas
//! that can be reached. It is enough, too, if the partition was merged with all replicas whose
//! disks are not declared lost.
//!
//! If this node holds nothing of a partition, it first copies the whole partition from one replica.
//! Then it compares hash trees with all replicas.
//!
//! No node remembers which records were sent already. A transfer that was interrupted begins again,
//! and finds most records in place.
//!
//! Source: Dynamo §6.2 (whole partitions move); Garage's rule that a new replica set syncs from a
//! quorum of the old one.

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
use super::give::{PAGE_TIMEOUT, PAUSE, batch_len, give, key_if_readable, size_of};
use super::throttle::Throttle;
use crate::membership::layout_exchange::agree;
use crate::node::Node;
use crate::repair::merkle_sync::{Direction, sync};

/// Largest number of records of one page, when a whole partition is copied.
const PAGE_RECORDS: u32 = 256;
/// Largest number of bytes of one page, when a whole partition is copied.
const PAGE_BYTES: u32 = 128 * 1024;

/// A partition of the newest layout that is not merged with enough replicas of the sources yet.
struct PendingPartition {
    partition: PartitionId,
    /// The nodes with which the partition was merged. The value is true if the node was recovering
    /// then.
    merged: BTreeMap<NodeId, bool>,
}

/// Copies everything that this node must hold in the newest layout. False if a newer layout arrived
/// meanwhile, or if a bucket is not backfilled yet.
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
        let new_replicas = newest.replicas_of(*partition, u8::MAX);
        new_replicas.contains(&this)
            && sources.iter().any(|source| source.replicas_of(*partition, u8::MAX) != new_replicas)
    };
    let mut pending: Vec<PendingPartition> = shared
        .all_partitions()
        .filter(changed)
        .map(|partition| PendingPartition { partition, merged: BTreeMap::new() })
        .collect();
    shared.progress.transfer().begin(pending.len(), shared.environment.monotonic_ms());
    let all = pending.len();
    let mut throttle = Throttle::new(shared, &newest, &sources);
    // Partitions of which this node is a replica in no source, so that it holds nothing of them
    // yet. They are copied as a whole before keys are compared.
    let mut to_copy_whole: BTreeSet<PartitionId> = pending
        .iter()
        .map(|one| one.partition)
        .filter(|&partition| !sources.iter().any(|source| source.holds(this, partition)))
        .collect();
    loop {
        let mut has_failed = false;
        let source_members: BTreeSet<NodeId> = sources
            .iter()
            .flat_map(|source| source.members().iter().map(|member| member.id))
            .filter(|&member| member != this && !newest.is_lost(member))
            .collect();
        for &peer in source_members.iter().filter(|&&peer| node.is_live(peer)) {
            let partitions: Vec<PartitionId> = pending
                .iter()
                .filter(|one| one.merged.get(&peer).is_none_or(|recovering| *recovering))
                .map(|one| one.partition)
                .filter(|&partition| sources.iter().any(|source| source.holds(peer, partition)))
                .collect();
            if partitions.is_empty() {
                continue;
            }
            match merge_with(node, peer, &partitions, &sources, &mut to_copy_whole, &mut throttle).await {
                Ok(merged) => {
                    for one in &mut pending {
                        if let Some(recovering) = merged.get(&one.partition) {
                            one.merged.insert(peer, *recovering);
                        }
                    }
                }
                Err(error) => {
                    has_failed = true;
                    let (peer, reason) = (shared.view().name_of(peer), error.to_string());
                    shared.emit(None, EventKind::RepairFailed { peer, reason });
                }
            }
            if shared.layouts.with(|layouts| layouts.newest().digest()) != newest.digest() {
                return false;
            }
            pending.retain(|one| !is_copied(node, &newest, &sources, one));
            shared.progress.transfer().set_done(all - pending.len());
        }
        pending.retain(|one| !is_copied(node, &newest, &sources, one));
        if pending.is_empty() {
            shared.progress.transfer().end(shared.environment.monotonic_ms());
            return true;
        }
        if shared.layouts.with(|layouts| layouts.newest().digest()) != newest.digest() {
            return false;
        }
        tokio::time::sleep(if has_failed { 2 * PAUSE } else { PAUSE }).await;
    }
}

/// True if the partition was merged with enough replicas of every source, for each n that a bucket
/// has, and with all replicas that can be reached. Enough replicas alone do not suffice, because a
/// request may ask for a smaller W than its bucket's. True also if the partition was merged with
/// all replicas whose disks are not declared lost.
fn is_copied(node: &Node, newest: &Layout, sources: &[Arc<Layout>], pending: &PendingPartition) -> bool {
    let shared = &node.shared;
    let (this, partition) = (shared.node(), pending.partition);
    shared.sizes().into_iter().all(|n| {
        let new_replicas = newest.replicas_of(partition, n);
        let must_copy_from = |source: &&Arc<Layout>| {
            let old_replicas = source.replicas_of(partition, n);
            new_replicas.contains(&this) && old_replicas != new_replicas
        };
        sources.iter().filter(must_copy_from).all(|source| {
            let not_lost = |replica: &&NodeId| !newest.is_lost(**replica);
            let replicas: Vec<NodeId> =
                source.replicas_of(partition, n).iter().filter(not_lost).copied().collect();
            let own = replicas.contains(&this) && !shared.is_recovering(partition);
            let remembers_all = |replica: &&NodeId| pending.merged.get(*replica) == Some(&false);
            let have = replicas.iter().filter(remembers_all).count() + usize::from(own);
            let needed = sources_needed(n.min(source.replicas()), shared.smallest_w(n, source.replicas()));
            if planted(Bug::SyncedFromOne) {
                return have >= 1;
            }
            let others = || replicas.iter().filter(|&&replica| replica != this);
            let all_merged = others().all(|replica| pending.merged.contains_key(replica));
            let reachable = others().filter(|&&replica| node.is_live(replica));
            let all_reachable = reachable.clone().all(|replica| pending.merged.contains_key(replica));
            all_merged || (have >= needed && all_reachable)
        })
    })
}

/// Merges partitions of a peer into this node's. Returns the partitions that were merged
/// completely. A value is true if the peer is recovering, so that it may itself have forgotten
/// records of the partition.
async fn merge_with(
    node: &Rc<Node>,
    peer: NodeId,
    partitions: &[PartitionId],
    sources: &[Arc<Layout>],
    to_copy_whole: &mut BTreeSet<PartitionId>,
    throttle: &mut Throttle,
) -> Result<BTreeMap<PartitionId, bool>, PeerError> {
    // After this the peer knows that all nodes have acked the newest layout. From then on it
    // refuses writes of coordinators that do not use that layout. So no such write is missed below.
    agree(node, peer).await?;
    let newest_digest = || node.shared.layouts.with(|layouts| layouts.newest().digest());
    let digest_before = newest_digest();
    for &partition in partitions {
        if newest_digest() != digest_before {
            return Ok(BTreeMap::new());
        }
        if to_copy_whole.contains(&partition) {
            copy_partition(node, peer, partition, sources, throttle).await?;
            to_copy_whole.remove(&partition);
            // Only for reports: a partition that was copied as a whole is nearly done. The caller
            // sets the exact number after the comparison.
            node.shared.progress.transfer().add_done(1);
        }
    }
    let synced =
        sync(node, peer, partitions, Direction::Pull, node.shared.settings.repair.max_keys_per_second)
            .await?;
    let complete = partitions.iter().filter(|partition| !synced.unknown.contains(partition));
    Ok(complete.map(|&partition| (partition, synced.recovering.contains(&partition))).collect())
}

/// Copies a whole partition of which this node holds nothing, page by page.
async fn copy_partition(
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
            // The peer cannot send the partition as a whole. The comparison of keys copies it.
            Ok(_) | Err(PeerError::Recovering | PeerError::Storage { .. } | PeerError::StaleLayout) => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let own_object = |(key, object): &(Bytes, Bytes)| {
            let this = node.shared.node();
            // A record that is damaged on the peer is left to the comparison of keys.
            let key = key_if_readable(key, object).filter(|key| key.partition() == partition)?;
            // A bucket may have a smaller n than the cluster. Its replicas perhaps do not include
            // this node.
            let is_own = newest.replicas_for(partition, key.bucket()).contains(&this);
            is_own.then(|| (this, key, object.clone()))
        };
        let objects: Vec<(NodeId, StorageKey, Bytes)> = page.records.iter().filter_map(own_object).collect();
        let mut rest = &objects[..];
        while !rest.is_empty() {
            let batch = rest.split_at(batch_len(rest)).0;
            let begun = Instant::now();
            give(node, batch, valid_until_ms).await.map_err(|(_, error)| error)?;
            throttle.wait_after(&node.shared, batch.iter().map(size_of).sum(), begun.elapsed()).await;
            rest = &rest[batch.len()..];
        }
        match page.records.last() {
            Some((last, _)) if page.more && *last > after => after = last.clone(),
            _ => return Ok(()),
        }
    }
}
