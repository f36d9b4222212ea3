//! Reaping: tombstones go when everybody has them and nobody can bring back what they deleted.
//!
//! The key's first replica looks: all replicas hold durably and exactly the same, twice, a grace period apart; then every
//! member, asked afresh, keeps no hint for the key and let go of none lately. Only then is the object deleted, on each replica
//! if it is still in that state. Whoever is down blocks; `quorate status` names them.

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

/// Keys looked at together.
const TOGETHER: usize = 256;
/// How long each question may take, and how long an order is good.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Looks for tombstones now and then, for as long as the node runs.
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
        if let Some(trouble) = node.shared.clock_problem() {
            blocked = Some(format!("this node: {trouble}"));
        } else if !node.shared.view().is_settled() {
            blocked = Some("a change of layout that is under way".into());
        } else {
            for partition in node.shared.all_partitions() {
                let mut after = None;
                loop {
                    let keys = node.shared.trees.tombstones(partition, after.as_ref(), TOGETHER);
                    after = keys.last().cloned();
                    let ended = keys.len() < TOGETHER;
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

/// Looks at some keys of one partition. Returns how many were collected.
///
/// # Errors
/// Who stands in the way of some of them, and why.
async fn check(node: &Rc<Node>, keys: Vec<StorageKey>, candidates: &mut Candidates) -> Result<usize, String> {
    let shared = &node.shared;
    // Held on to until the order is given: a change of layout waits for it.
    let view = shared.view();
    if !view.is_settled() || view.removed {
        return Err("a change of layout that is under way".into());
    }
    let layout = view.newest().clone();
    // Keys of buckets with different n have different replicas.
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
        match agreed(node, &replicas, &keys).await {
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
                            blocked = Some("replicas that differ: repair has not reached them yet".into());
                        }
                    }
                }
                match give_order(node, &layout, &replicas, ready, candidates).await {
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

/// Per key the state that all replicas durably hold, or `None` where they differ.
async fn agreed(
    node: &Rc<Node>,
    replicas: &[NodeId],
    keys: &[StorageKey],
) -> Result<Vec<Option<Digest>>, String> {
    let answers = ask_all(node, replicas, PeerRequest::DurableDigests(keys.to_vec())).await?;
    let mut agreed: Vec<Option<Option<Digest>>> = vec![None; keys.len()];
    let mut differ = vec![false; keys.len()];
    for (from, answer) in answers {
        let PeerReply::DurableDigests(held) = answer else {
            return Err(refusal(node, from, "an unexpected answer"));
        };
        if held.len() != keys.len() {
            return Err(refusal(node, from, "an unexpected answer"));
        }
        for (at, digest) in held.into_iter().enumerate() {
            differ[at] |= agreed[at].is_some_and(|other| other != digest);
            agreed[at] = Some(digest);
        }
    }
    let one = |(at, digest): (usize, Option<Option<Digest>>)| digest.flatten().filter(|_| !differ[at]);
    Ok(agreed.into_iter().enumerate().map(one).collect())
}

/// Asks every member whether anything stands against it, and if not, gives the order.
async fn give_order(
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
    let mut free = vec![true; ready.len()];
    let mut blocked = None;
    if !planted(Bug::GcIgnoresHints) {
        let keys = ready.iter().map(|(key, _)| key.clone()).collect();
        let asked = PeerRequest::MayCollect { keys, layout: layout.digest() };
        for (from, answer) in ask_all(node, &members, asked).await? {
            let PeerReply::MayCollect(theirs) = answer else {
                return Err(refusal(node, from, "an unexpected answer"));
            };
            for (at, free) in free.iter_mut().enumerate() {
                if !theirs.get(at).copied().unwrap_or(false) {
                    *free = false;
                    blocked = Some(refusal(
                        node,
                        from,
                        "it holds a hint for the key, held one lately, or has just started",
                    ));
                }
            }
        }
    }
    let entries: Vec<(StorageKey, Digest)> =
        ready.into_iter().zip(free).filter(|(_, free)| *free).map(|(entry, _)| entry).collect();
    if entries.is_empty() {
        return blocked.map_or(Ok(0), Err);
    }
    let order = CollectTombstones { entries, valid_until_ms: shared.valid_until_ms(TIMEOUT) };
    order.entries.iter().for_each(|(key, _)| candidates.disagreed(key));
    let count = order.entries.len();
    // Whoever does not hear of it keeps the tombstone, brings it back to the others, and it is collected another time.
    let _ = ask_all(node, replicas, PeerRequest::CollectTombstones(order)).await;
    Ok(count)
}

fn refusal(node: &Node, from: NodeId, why: &str) -> String {
    format!("{}: {why}", node.shared.view().name_of(from))
}

/// The answers of all of them.
///
/// # Errors
/// The first who did not, and why.
async fn ask_all(
    node: &Rc<Node>,
    nodes: &[NodeId],
    request: PeerRequest,
) -> Result<Vec<(NodeId, PeerReply)>, String> {
    let gather = Gather::default();
    let mut asked = 0;
    for &to in nodes {
        if !node.is_live(to) && planted(Bug::GcIgnoresTheDead) {
            continue;
        }
        asked += 1;
        node.send(to, request.clone(), TIMEOUT, gather.reply_to(to));
    }
    let deadline = Instant::now() + TIMEOUT;
    let mut answers = Vec::new();
    for _ in 0..asked {
        let Some((from, answer)) = gather.next(deadline).await else {
            return Err("no answer in time".into());
        };
        match answer {
            Ok(reply) => answers.push((from, reply)),
            Err(PeerError::Disconnected) => return Err(refusal(node, from, "it is down")),
            Err(error) => return Err(refusal(node, from, &error.to_string())),
        }
    }
    Ok(answers)
}
