//! Hinted handoff: delivers hints to their targets, once these can be reached again.
//!
//! The target of a hint is the replica for which it is kept. The storage engine keeps one merged
//! hint for each target and key. A hint is deleted only after all of its receivers acked it
//! durably, and only if it has not changed since it was sent. Mostly the target is the only
//! receiver.
//!
//! Source: Dynamo §4.6.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use quorate_core::event::EventKind;
use quorate_core::hint::{hints_for, parse_hint_key};
use quorate_core::layout_change::{Phase, View};
use quorate_core::planted::{Bug, planted};
use quorate_core::request::{PeerReply, PeerRequest, PeerWrite, WritePurpose};
use quorate_core::{NodeId, StorageKey};
use tokio::time::Instant;

use crate::gather::Gather;
use crate::node::Node;
use crate::replica::hints::SentHint;
use crate::state::scan_pages::{PageBounds, ScanPages};

/// Hints that are sent together. The next page is sent after all of them were answered.
const PAGE: PageBounds = PageBounds { records: 256, bytes: 1024 * 1024 };
/// Timeout of the hints of one page. Hints that were not acked by then stay, and are sent again.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between checks for targets that can be reached again.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Pause after a page that was not delivered completely.
const PAUSE: Duration = Duration::from_millis(500);

/// Delivers hints to targets that can be reached again. Runs until the node stops.
pub(crate) async fn run(node: Rc<Node>) {
    loop {
        let mut must_pause = false;
        let removed = node.shared.view().removed || !node.shared.recovery.are_layouts_confirmed();
        for target in node.shared.hints.targets().into_iter().filter(|_| !removed) {
            match deliver_hints(&node, target).await {
                // During a layout change, a hint may have further receivers that cannot be reached.
                // The pause keeps this loop from reading such hints again at once.
                Ok(0) if !node.shared.view().is_settled() => must_pause = true,
                Ok(0) => {}
                Ok(hints) => {
                    let target = node.shared.view().name_of(target);
                    node.shared.emit(None, EventKind::HintsDelivered { target, hints });
                }
                Err(()) => must_pause = true,
            }
        }
        tokio::time::sleep(if must_pause { PAUSE } else { CHECK_INTERVAL }).await;
    }
}

/// Delivers the hints of one target, page by page. Returns the number of hints delivered.
async fn deliver_hints(node: &Rc<Node>, target: NodeId) -> Result<usize, ()> {
    let view = node.shared.view();
    let waits = view.is_participant(target) && !node.is_live(target) && !is_handing_off(node, &view);
    drop(view);
    if waits {
        return Ok(0);
    }
    let mut pages = ScanPages::under(hints_for(target), PAGE);
    let mut delivered = 0;
    loop {
        // The receiver refuses the objects after this time. It is computed before the hints are
        // read. Computed later, the receiver would accept an object for too long: a tombstone that
        // the object lacks may have been collected by then, and the deleted value would come back.
        let valid_until_ms = node.shared.valid_until_ms(PAGE_TIMEOUT);
        let Some(page) = pages.next(&*node.shared.engine).map_err(|_| ())? else { return Ok(delivered) };
        delivered += send_page(node, target, &page.records, valid_until_ms).await?;
    }
}

/// True if this node leaves the cluster, and all nodes have reached the phase in which a node that
/// leaves gives away its records.
fn is_handing_off(node: &Node, view: &View) -> bool {
    view.newest().member(node.shared.node()).is_none() && view.cluster_phase >= Phase::Released
}

/// Returns the nodes that must ack a hint before this node deletes it. Mostly this is the target
/// alone. During a layout change, or if the target is no longer a replica of the key, these are all
/// replicas of the key. A node that leaves the cluster does not wait for a target that cannot be
/// reached.
fn receivers_of(node: &Node, target: NodeId, key: &StorageKey) -> Vec<NodeId> {
    let view = node.shared.view();
    let mut replicas = view.holders_of(key.partition(), key.bucket());
    if view.is_settled() && replicas.contains(&target) {
        return vec![target];
    }
    replicas.retain(|&replica| view.is_participant(replica));
    if is_handing_off(node, &view) && !node.is_live(target) {
        replicas.retain(|&replica| replica != target);
    }
    replicas
}

/// Sends a page of hints, and deletes each hint that all receivers acked. Returns the number of
/// deleted hints.
async fn send_page(
    node: &Rc<Node>,
    target: NodeId,
    page: &[(Bytes, Bytes)],
    valid_until_ms: u64,
) -> Result<usize, ()> {
    let gather = Gather::default();
    let deadline = Instant::now() + PAGE_TIMEOUT;
    // For each hint of the page, the number of acks that are still missing. `usize::MAX`: the hint
    // stays, because it has no receiver, cannot be parsed, or was not acked by a receiver.
    let mut missing_acks: Vec<usize> = vec![usize::MAX; page.len()];
    let mut sent = 0;
    for (at, (hint, object)) in page.iter().enumerate() {
        let Some((_, key)) = parse_hint_key(hint) else { continue };
        let receivers = receivers_of(node, target, &key);
        if receivers.is_empty() {
            continue;
        }
        // All receivers count, but only those that can be reached get the hint now. If another one
        // cannot be reached, an ack stays missing, and the hint stays.
        missing_acks[at] = receivers.len();
        for receiver in receivers.into_iter().filter(|&receiver| node.is_live(receiver)) {
            let write = PeerWrite {
                key: key.clone(),
                object: object.clone(),
                purpose: WritePurpose::HandOff,
                valid_until_ms,
                layout: 0,
            };
            sent += 1;
            // In place of a node's id, the reply carries the hint's position in the page.
            let reply = gather.reply_to(NodeId(at as u64));
            node.send(receiver, PeerRequest::Write(write), PAGE_TIMEOUT, reply);
        }
        if planted(Bug::HintDeletedBeforeAck) {
            node.replica.delete_hint(SentHint { hint, object });
        }
    }
    let mut delivered = 0;
    let mut failed = false;
    for _ in 0..sent {
        let Some((NodeId(at), answer)) = gather.next(deadline).await else { return Err(()) };
        let at = at as usize;
        if !matches!(answer, Ok(PeerReply::Acked)) {
            failed = true;
            missing_acks[at] = usize::MAX;
        } else if missing_acks[at] != usize::MAX {
            missing_acks[at] -= 1;
        }
        if missing_acks[at] == 0 {
            let (hint, object) = &page[at];
            node.replica.delete_hint(SentHint { hint, object });
            delivered += 1;
        }
    }
    if failed { Err(()) } else { Ok(delivered) }
}
