//! The schedule of anti-entropy: a round with each peer at intervals, and at once when the peer
//! returns.

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

/// Time between two checks for rounds that are due.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// Time to the next round after one that failed or was incomplete.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest time for which a round waits until this node's hints for the peer are delivered. Hints
/// bring the same objects without a comparison.
const WAIT_FOR_HINTS: Duration = Duration::from_secs(5);

/// The schedule of the rounds with one peer.
struct Peer {
    /// True if the peer can be reached.
    up: bool,
    /// Earliest time of a round that an operator asked for. `None`: no operator asked.
    requested: Option<Instant>,
    /// Time of the next regular round.
    due: Instant,
    /// Time since which the peer can be reached.
    up_since: Instant,
}

/// Starts the rounds that are due. Runs until the node stops.
pub(crate) async fn run(node: Rc<Node>) {
    let shared = node.shared.clone();
    let interval = Duration::from_millis(shared.settings.repair.interval_ms);
    let mut peers: BTreeMap<NodeId, Peer> = BTreeMap::new();
    let mut requests_before = 0;
    loop {
        let now = Instant::now();
        let requests = shared.progress.repairs_requested.load(Ordering::Acquire);
        let view = shared.view();
        let members: Vec<NodeId> = view.participants.clone();
        // Only a participant may repair. A node that may have lost its layouts must first compare
        // them with those of other nodes.
        let may_repair =
            view.is_participant(shared.node()) && !view.removed && shared.recovery.are_layouts_confirmed();
        drop(view);
        for id in members.into_iter().filter(|&id| id != shared.node() && may_repair) {
            let up = node.is_live(id);
            let peer =
                peers.entry(id).or_insert(Peer { up: false, requested: None, due: now, up_since: now });
            if up && !peer.up {
                // The peer has returned, and may have missed writes.
                (peer.due, peer.up_since) = (now, now);
            }
            peer.up = up;
            if requests != requests_before {
                peer.requested = Some(now);
            }
            let hints_first = shared.hints.has_any_for(id) && now < peer.up_since + WAIT_FOR_HINTS;
            let requested = peer.requested.is_some_and(|from| now >= from);
            let due = requested || (shared.settings.repair.enabled && now >= peer.due && !hints_first);
            if up && due {
                let complete = round(&node, id).await;
                peer.requested = peer.requested.filter(|_| !complete).map(|_| Instant::now() + PAUSE);
                let next = match complete {
                    true => interval.mul_f64(0.75 + (shared.environment.random() % 1024) as f64 / 2048.0),
                    false => PAUSE,
                };
                peer.due = Instant::now() + next;
            }
        }
        requests_before = requests;
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

/// Runs one round with a peer. Returns false if the round failed or was incomplete: the caller
/// repeats it soon.
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
