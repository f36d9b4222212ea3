//! Tombstone collection: deletes a tombstone once all replicas have it and no node can bring back
//! an older version.
//!
//! The key's first replica does the work. It checks twice, a grace period apart, that all replicas
//! durably hold exactly the same object. Then it asks every member for objections. A member objects
//! if it keeps a hint for the key or deleted one recently. If no member objects, each replica
//! deletes the object, unless the object has changed since. A node that is down blocks the
//! collection; `quorate status` names that node.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quorate_core::codec::decode_object;
use quorate_core::event::EventKind;
use quorate_core::planted::{Bug, planted};
use quorate_core::request::{CollectTombstones, PeerError, PeerReply, PeerRequest};
use quorate_core::tombstone_gc::Candidates;
use quorate_core::{Digest, Layout, NodeId, StorageKey};
use tokio::time::Instant;

use crate::gather::Gather;
use crate::node::Node;
use crate::state::shared::Shared;

/// Keys that are checked together.
const KEYS_TOGETHER: usize = 256;
/// Timeout of each request, and time for which an order to delete tombstones is valid.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Searches for tombstones to collect, at intervals. Runs until the node stops.
pub(crate) async fn run(node: Rc<Node>) {
    let settings = node.shared.settings.tombstone_gc.clone();
    let mut candidates = Candidates::default();
    if !settings.enabled {
        return;
    }
    loop {
        tokio::time::sleep(Duration::from_millis(settings.interval_ms)).await;
        let mut blocked = None;
        let mut collected = 0;
        if let Some(problem) = node.shared.clock_problem() {
            blocked = Some(problem);
        } else if !node.shared.view().is_settled() {
            blocked = Some("a layout change that is under way".into());
        } else {
            for partition in node.shared.all_partitions() {
                let mut after = None;
                loop {
                    let keys = node.shared.trees.tombstones(partition, after.as_ref(), KEYS_TOGETHER);
                    after = keys.last().cloned();
                    let ended = keys.len() < KEYS_TOGETHER;
                    match check(&node, keys, &mut candidates).await {
                        Ok(count) => collected += count,
                        Err(reason) => blocked = Some(reason),
                    }
                    if ended {
                        break;
                    }
                }
            }
        }
        let mut progress = node.shared.progress.tombstone_gc();
        progress.blocked_by = blocked;
        progress.collected += collected as u64;
        drop(progress);
        if collected > 0 {
            node.shared.emit(None, EventKind::TombstonesCollected { keys: collected });
        }
    }
}

/// Collects tombstones among some keys of one partition. Returns the number of tombstones that it
/// ordered the replicas to delete.
///
/// # Errors
/// The reason why tombstones cannot be collected, if none was collected.
async fn check(node: &Rc<Node>, keys: Vec<StorageKey>, candidates: &mut Candidates) -> Result<usize, String> {
    let shared = &node.shared;
    // This function keeps the view until the order is sent. A layout change waits for older views,
    // so it copies no records meanwhile.
    let view = shared.view();
    if !view.is_settled() || view.removed {
        return Err("a layout change that is under way".into());
    }
    let layout = view.newest().clone();
    // The keys are grouped by n, because keys of buckets with different n have different replicas.
    let mut by_n: BTreeMap<u8, Vec<StorageKey>> = BTreeMap::new();
    for key in keys {
        let n = layout.buckets().get(key.bucket()).n;
        let replicas = layout.replicas_of(key.partition(), n);
        if replicas.first() != Some(&shared.node()) {
            continue;
        }
        match is_tombstone(shared, &key) {
            true => by_n.entry(n).or_default().push(key),
            false => candidates.disagreed(&key),
        }
    }
    let mut collected = 0;
    let mut blocked = None;
    for (n, keys) in by_n {
        let replicas = layout.replicas_of(keys[0].partition(), n).to_vec();
        match agreed_digests(node, &replicas, &keys).await {
            Err(reason) => {
                keys.iter().for_each(|key| candidates.disagreed(key));
                blocked = Some(reason);
            }
            Ok(digests) => {
                let now = shared.environment.monotonic_ms();
                let grace = shared.settings.tombstone_gc.grace_ms;
                let mut ready = Vec::new();
                for (key, digest) in keys.into_iter().zip(digests) {
                    match digest {
                        Some(digest) if candidates.agreed(&key, digest, layout.digest(), now, grace) => {
                            ready.push((key, digest));
                        }
                        Some(_) => {}
                        None => {
                            candidates.disagreed(&key);
                            blocked = Some("replicas that differ and are not repaired yet".into());
                        }
                    }
                }
                match order_collection(node, &layout, &replicas, ready, candidates).await {
                    Ok(count) => collected += count,
                    Err(reason) => blocked = Some(reason),
                }
            }
        }
    }
    match blocked {
        Some(reason) if collected == 0 => Err(reason),
        _ => Ok(collected),
    }
}

fn is_tombstone(shared: &Shared, key: &StorageKey) -> bool {
    let record = shared.engine.get(key).ok().flatten().and_then(|object| decode_object(&object).ok());
    record.is_some_and(|record| record.object.is_tombstone())
}

/// Returns, for each key, the digest of the object that all replicas durably hold. `None` if their
/// objects differ or one of them has none.
///
/// # Errors
/// The reason why a replica did not answer.
async fn agreed_digests(
    node: &Rc<Node>,
    replicas: &[NodeId],
    keys: &[StorageKey],
) -> Result<Vec<Option<Digest>>, String> {
    let answers = ask_all(node, replicas, PeerRequest::DurableDigests(keys.to_vec())).await?;
    let mut by_replica = Vec::with_capacity(answers.len());
    for (from, answer) in answers {
        match answer {
            PeerReply::DurableDigests(held) if held.len() == keys.len() => by_replica.push(held),
            _ => return Err(blocked_by(node, from, "its answer does not fit the request")),
        }
    }
    let agreed = |at: usize| -> Option<Digest> {
        let first = by_replica.first()?[at]?;
        by_replica.iter().all(|held| held[at] == Some(first)).then_some(first)
    };
    Ok((0..keys.len()).map(agreed).collect())
}

/// Asks every member for objections. Orders the replicas to delete the tombstones to which no
/// member objects. Returns the number of tombstones in the order.
///
/// # Errors
/// The reason, if no tombstone can be collected.
async fn order_collection(
    node: &Rc<Node>,
    layout: &Layout,
    replicas: &[NodeId],
    ready: Vec<(StorageKey, Digest)>,
    candidates: &mut Candidates,
) -> Result<usize, String> {
    if ready.is_empty() {
        return Ok(0);
    }
    let shared = &node.shared;
    let members: Vec<NodeId> = layout.members().iter().map(|member| member.id).collect();
    let mut allowed = vec![true; ready.len()];
    let mut blocked = None;
    if !planted(Bug::GcIgnoresHints) {
        let keys = ready.iter().map(|(key, _)| key.clone()).collect();
        let request = PeerRequest::MayCollect { keys, layout: layout.digest() };
        for (from, answer) in ask_all(node, &members, request).await? {
            let PeerReply::MayCollect(theirs) = answer else {
                return Err(blocked_by(node, from, "its answer does not fit the request"));
            };
            for (at, allowed) in allowed.iter_mut().enumerate() {
                if !theirs.get(at).copied().unwrap_or(false) {
                    *allowed = false;
                    blocked = Some(blocked_by(
                        node,
                        from,
                        "it holds a hint for the key, deleted one recently, has just started, or has a wrong clock",
                    ));
                }
            }
        }
    }
    let entries: Vec<(StorageKey, Digest)> =
        ready.into_iter().zip(allowed).filter(|(_, allowed)| *allowed).map(|(entry, _)| entry).collect();
    if entries.is_empty() {
        return blocked.map_or(Ok(0), Err);
    }
    let order = CollectTombstones { entries, valid_until_ms: shared.valid_until_ms(TIMEOUT) };
    order.entries.iter().for_each(|(key, _)| candidates.disagreed(key));
    let count = order.entries.len();
    // A replica that misses the order keeps the tombstone, and gives it back to the other replicas
    // by repair. The tombstone is then collected again later.
    let _ = ask_all(node, replicas, PeerRequest::CollectTombstones(order)).await;
    Ok(count)
}

/// Formats the reason why a node blocks the collection.
fn blocked_by(node: &Node, from: NodeId, reason: &str) -> String {
    format!("{}: {reason}", node.shared.view().name_of(from))
}

/// Sends a request to several nodes. Returns the answers of all of them.
///
/// # Errors
/// The first node that failed, and the reason.
async fn ask_all(
    node: &Rc<Node>,
    nodes: &[NodeId],
    request: PeerRequest,
) -> Result<Vec<(NodeId, PeerReply)>, String> {
    let gather = Gather::default();
    let mut sent = 0;
    for &to in nodes {
        if !node.is_live(to) && planted(Bug::GcIgnoresTheDead) {
            continue;
        }
        sent += 1;
        node.send(to, request.clone(), TIMEOUT, gather.reply_to(to));
    }
    let deadline = Instant::now() + TIMEOUT;
    let mut answers = Vec::new();
    for _ in 0..sent {
        let Some((from, answer)) = gather.next(deadline).await else {
            return Err("a node that did not answer in time".into());
        };
        match answer {
            Ok(reply) => answers.push((from, reply)),
            Err(PeerError::Disconnected) => return Err(blocked_by(node, from, "it is down")),
            Err(error) => return Err(blocked_by(node, from, &error.to_string())),
        }
    }
    Ok(answers)
}
