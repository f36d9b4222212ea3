//! Anti-entropy's schedule: a round with each peer now and then, and at once when it returns.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_core::event::EventKind;
use quorate_core::report::RepairStatus;
use quorate_core::{NodeId, PartitionId};
use tokio::time::Instant;

use super::merkle_sync::{Direction, sync};
use crate::node::Node;
use crate::state::shared::Shared;

const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// After a round that broke off.
const PAUSE: Duration = Duration::from_secs(2);
/// How long a round waits for this node's own hints to be delivered first: they say the same with less to compare.
const FOR_HINTS: Duration = Duration::from_secs(5);

struct Peer {
    up: bool,
    /// Somebody asked for a round: from this moment on.
    wanted: Option<Instant>,
    due: Instant,
    /// Since when it is up.
    since: Instant,
}

/// Runs rounds for as long as the node runs.
pub(crate) async fn run(node: Rc<Node>) {
    let shared = node.shared.clone();
    let interval = Duration::from_millis(shared.settings.repair.interval_ms);
    let mut peers: BTreeMap<NodeId, Peer> = BTreeMap::new();
    let mut asked = 0;
    loop {
        let now = Instant::now();
        let wish = shared.progress.repairs_requested.load(Ordering::Acquire);
        let view = shared.view();
        let members: Vec<NodeId> = view.participants.clone();
        // Who was taken out has nothing to say.
        let takes_part =
            view.is_participant(shared.node()) && !view.removed && shared.recovery.are_layouts_confirmed();
        drop(view);
        for id in members.into_iter().filter(|&id| id != shared.node() && takes_part) {
            let up = node.is_live(id);
            let peer = peers.entry(id).or_insert(Peer { up: false, wanted: None, due: now, since: now });
            if up && !peer.up {
                // It has returned: it may have missed something.
                (peer.due, peer.since) = (now, now);
            }
            peer.up = up;
            if wish != asked {
                peer.wanted = Some(now);
            }
            let first_hints = shared.hints.has_any_for(id) && now < peer.since + FOR_HINTS;
            let wanted = peer.wanted.is_some_and(|from| now >= from);
            let due = wanted || (shared.settings.repair.enabled && now >= peer.due && !first_hints);
            if up && due {
                let ended = round(&node, id).await;
                peer.wanted = peer.wanted.filter(|_| !ended).map(|_| Instant::now() + PAUSE);
                let next = match ended {
                    true => interval.mul_f64(0.75 + (shared.environment.random() % 1024) as f64 / 2048.0),
                    false => PAUSE,
                };
                peer.due = Instant::now() + next;
            }
        }
        asked = wish;
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

/// One round. False if it has to be repeated soon.
async fn round(node: &Rc<Node>, peer: NodeId) -> bool {
    let shared = &node.shared;
    let name = shared.view().name_of(peer);
    let partitions: Vec<PartitionId> = shared.all_partitions().collect();
    with_status(shared, |status| status.running_with = Some(name.clone()));
    let outcome =
        sync(node, peer, &partitions, Direction::Both, shared.settings.repair.max_keys_per_second).await;
    let now = shared.environment.monotonic_ms();
    with_status(shared, |status| status.running_with = None);
    match outcome {
        Ok(synced) => {
            with_status(shared, |status| {
                status.rounds += 1;
                status.divergent_keys += synced.keys;
                status.last_round_keys = synced.keys;
                status.last_error = None;
            });
            shared.progress.repair().last_ended_ms = Some(now);
            shared.emit(None, EventKind::Repaired { peer: name, keys: synced.keys });
            synced.unknown.is_empty()
        }
        Err(error) => {
            let reason = error.to_string();
            with_status(shared, |status| status.last_error = Some(format!("{name}: {reason}")));
            shared.emit(None, EventKind::RepairFailed { peer: name, reason });
            false
        }
    }
}

fn with_status(shared: &Shared, change: impl FnOnce(&mut RepairStatus)) {
    change(&mut shared.progress.repair().status);
}
