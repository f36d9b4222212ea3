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
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate_core::codec::decode_object;
use quorate_core::event::EventKind;
use quorate_core::planted::{Bug, planted};
use quorate_core::recovery::sources_needed;
use quorate_core::request::{
    PeerError, PeerReply, PeerRequest, PeerWrite, ScanPartition, TransferReport, WritePurpose,
};
use quorate_core::{Layout, NodeId, PartitionId, StorageKey};
use tokio::time::Instant;

use crate::gather::Gather;
use crate::node::Node;
use crate::shared::Shared;
use crate::spread::spread_bucket;
use crate::sync::{Way, ask, sync};
use crate::transition::agree;

pub(crate) const PAUSE: Duration = Duration::from_millis(200);
/// One page of a partition that is streamed.
pub(crate) const PAGE_RECORDS: u32 = 256;
pub(crate) const PAGE_BYTES: u32 = 128 * 1024;
/// What is stored of it at a time: clients' writes that come meanwhile wait for its commit.
const GIVEN_RECORDS: usize = 32;
const GIVEN_BYTES: usize = 32 * 1024;
pub(crate) const PAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of its time a copy that was held up may make good.
const LARGEST_BURST: Duration = Duration::from_millis(50);
/// Copies take one part in so many of the time.
const SHARE: u32 = 4;
/// What takes longer than this has to do with a peer in trouble, not with clients that wait.
const LONGEST_FOR_OTHERS: Duration = Duration::from_secs(2);

/// What is copied or handed over, for people.
#[derive(Default)]
pub(crate) struct TransferProgress {
    partitions: u32,
    done: u32,
    bytes: u64,
    begun_ms: u64,
    ended_ms: Option<u64>,
}

impl TransferProgress {
    pub(crate) fn report(&self, now_ms: u64) -> TransferReport {
        let elapsed = self.ended_ms.unwrap_or(now_ms).saturating_sub(self.begun_ms).max(1);
        let left = u64::from(self.partitions - self.done.min(self.partitions));
        TransferReport {
            partitions: self.partitions,
            done: self.done,
            bytes: self.bytes,
            bytes_per_s: self.bytes * 1_000 / elapsed,
            left_ms: (self.done > 0).then(|| left * elapsed / u64::from(self.done)),
        }
    }
}

fn with_progress(shared: &Shared, change: impl FnOnce(&mut TransferProgress)) {
    change(&mut shared.transfer.lock().unwrap_or_else(PoisonError::into_inner));
}

/// So many partitions more are done.
pub(crate) fn add_progress(shared: &Shared, partitions: usize) {
    with_progress(shared, |progress| {
        progress.done = (progress.done + partitions as u32).min(progress.partitions)
    });
}

pub(crate) fn begin_progress(shared: &Shared, partitions: usize) {
    let begun_ms = shared.environment.monotonic_ms();
    let fresh = TransferProgress { partitions: partitions as u32, begun_ms, ..TransferProgress::default() };
    with_progress(shared, |progress| *progress = fresh);
}

pub(crate) fn end_progress(shared: &Shared) {
    let now = shared.environment.monotonic_ms();
    with_progress(shared, |progress| {
        progress.done = progress.partitions;
        progress.ended_ms = Some(now);
    });
}

/// Holds copying back to so many bytes a second. What it once fell behind it does not catch up on in a burst.
struct Throttle {
    due: Instant,
    bytes_per_s: u64,
    /// How many nodes one request may meet that copy now.
    copying: u32,
}

impl Throttle {
    fn new(shared: &Shared, newest: &Layout, sources: &[Arc<Layout>]) -> Throttle {
        let copying = copying(shared, newest, sources).clamp(1, usize::from(newest.replicas()).max(1)) as u32;
        Throttle { due: Instant::now(), bytes_per_s: shared.settings.transfer.bytes_per_s.max(1), copying }
    }

    /// Waits as long as these bytes may take, and so much longer than they took that all who copy, in turn, would take one
    /// part in [`SHARE`] of the time: where copies meet clients' requests, the rest of it is theirs.
    async fn took(&mut self, shared: &Shared, bytes: u64, took: Duration) {
        with_progress(shared, |progress| progress.bytes += bytes);
        let earliest = Instant::now().checked_sub(LARGEST_BURST).unwrap_or(self.due);
        self.due = self.due.max(earliest) + Duration::from_micros(bytes * 1_000_000 / self.bytes_per_s);
        tokio::time::sleep_until(self.due.max(Instant::now() + for_clients(self.copying, took))).await;
    }
}

fn for_clients(copying: u32, took: Duration) -> Duration {
    ((SHARE * copying - 1) * took).min(LONGEST_FOR_OTHERS)
}

/// After what a node does by itself: so much longer than it took that it takes one part in [`SHARE`] of the time.
pub(crate) async fn leave_time_for_clients(took: Duration) {
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

/// What a partition of the newest layout must still be merged with.
struct Wanted {
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
        .look(|layouts| (layouts.newest().clone(), layouts.sources().to_vec(), layouts.redefined_buckets()));
    for bucket in redefined.iter().filter(|_| !planted(Bug::RedefinedKeysStay)) {
        if !spread_bucket(node, &newest, bucket).await {
            return false;
        }
    }
    let changed = |partition: &PartitionId| {
        let then = newest.replicas_of(*partition, u8::MAX);
        then.contains(&this) && sources.iter().any(|source| source.replicas_of(*partition, u8::MAX) != then)
    };
    let mut wanted: Vec<Wanted> = shared
        .all_partitions()
        .filter(changed)
        .map(|partition| Wanted { partition, merged: BTreeMap::new() })
        .collect();
    begin_progress(shared, wanted.len());
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
            if shared.layouts.look(|layouts| layouts.newest().digest()) != newest.digest() {
                return false;
            }
            wanted.retain(|one| !is_copied(node, &newest, &sources, one));
            with_progress(shared, |progress| progress.done = (all - wanted.len()) as u32);
        }
        wanted.retain(|one| !is_copied(node, &newest, &sources, one));
        if wanted.is_empty() {
            end_progress(shared);
            return true;
        }
        if shared.layouts.look(|layouts| layouts.newest().digest()) != newest.digest() {
            return false;
        }
        tokio::time::sleep(if troubled { 2 * PAUSE } else { PAUSE }).await;
    }
}

/// The record's key, unless the record is damaged: that others have to mend.
pub(crate) fn readable(key: &Bytes, object: &Bytes) -> Option<StorageKey> {
    decode_object(object).ok()?;
    StorageKey::from_peer(key)
}

fn size((_, key, object): &(NodeId, StorageKey, Bytes)) -> u64 {
    (key.as_bytes().len() + object.len()) as u64
}

/// How many of some objects are stored together.
fn bounded(objects: &[(NodeId, StorageKey, Bytes)]) -> usize {
    let mut bytes = 0;
    let fits = |object: &&(NodeId, StorageKey, Bytes)| {
        bytes += size(object) as usize;
        bytes <= GIVEN_BYTES
    };
    objects.iter().take(GIVEN_RECORDS).take_while(fits).count().max(1)
}

/// Sends objects, each to one node, and waits until all are stored durably. `valid_until_ms`: as of when they were read.
///
/// # Errors
/// Who did not take one, and why.
pub(crate) async fn give(
    node: &Rc<Node>,
    objects: &[(NodeId, StorageKey, Bytes)],
    valid_until_ms: u64,
) -> Result<(), (NodeId, PeerError)> {
    let acked = Gather::default();
    for (to, key, object) in objects.iter().cloned() {
        let write = PeerWrite { key, object, purpose: WritePurpose::HandOff, valid_until_ms, layout: 0 };
        node.send_write(to, write, PAGE_TIMEOUT, acked.slot(to));
    }
    let deadline = Instant::now() + PAGE_TIMEOUT;
    for _ in objects {
        match acked.next(deadline).await {
            Some((_, Ok(_))) => {}
            Some((from, Err(error))) => return Err((from, error)),
            None => return Err((objects[0].0, PeerError::Expired)),
        }
    }
    Ok(())
}

/// True if the partition was merged with enough of every source, for each size of bucket, and with everybody of them who can
/// be reached: what W = 1 acked may be anywhere.
fn is_copied(node: &Node, newest: &Layout, sources: &[Arc<Layout>], wanted: &Wanted) -> bool {
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
    let newest = || node.shared.layouts.look(|layouts| layouts.newest().digest());
    let begun = newest();
    for &partition in partitions {
        if newest() != begun {
            return Ok(BTreeMap::new());
        }
        if fresh.contains(&partition) {
            stream(node, peer, partition, sources, throttle).await?;
            fresh.remove(&partition);
            // For people: what is streamed is nearly done. Who it was compared with is counted when it was.
            add_progress(&node.shared, 1);
        }
    }
    let synced =
        sync(node, peer, partitions, Way::Here, node.shared.settings.repair.max_keys_per_second).await?;
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
    let newest = node.shared.layouts.look(|layouts| layouts.newest().clone());
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
        let page = match ask(node, peer, PeerRequest::ScanPartition(scan)).await {
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
