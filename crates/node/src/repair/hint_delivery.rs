//! Hinted handoff: brings hints to the replicas they are for, once those can be reached again.
//!
//! Hints lie in the storage engine by (target, key), merged per key. A hint is deleted only after its
//! target acked it durably, and only if it is then still what was sent.
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

/// Hints that are sent before the first of them must be acked.
const PAGE: PageBounds = PageBounds { records: 256, bytes: 1024 * 1024 };
/// Time that the target has for a page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between checks for targets that can be reached again.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Pause after a page that was refused.
const PAUSE: Duration = Duration::from_millis(500);

/// Brings hints to whoever is back, for as long as the node runs.
pub(crate) async fn run(node: Rc<Node>) {
    loop {
        let mut refused = false;
        let removed = node.shared.view().removed || !node.shared.recovery.are_layouts_confirmed();
        for target in node.shared.hints.targets().into_iter().filter(|_| !removed) {
            match drain(&node, target).await {
                // Somebody who has to have them can't be reached: no reason to read them all again at once.
                Ok(0) if !node.shared.view().is_settled() => refused = true,
                Ok(0) => {}
                Ok(hints) => {
                    let target = node.shared.view().name_of(target);
                    node.shared.emit(None, EventKind::HintsDelivered { target, hints });
                }
                Err(()) => refused = true,
            }
        }
        tokio::time::sleep(if refused { PAUSE } else { CHECK_INTERVAL }).await;
    }
}

/// Sends a target its hints, page by page; the next one goes when all of this one were answered.
async fn drain(node: &Rc<Node>, target: NodeId) -> Result<usize, ()> {
    let view = node.shared.view();
    let waits = view.is_participant(target) && !node.is_live(target) && !hands_over(node, &view);
    drop(view);
    if waits {
        return Ok(0);
    }
    let mut pages = ScanPages::under(hints_for(target), PAGE);
    let mut delivered = 0;
    loop {
        // A message lives this long from before its hint is read.
        let valid_until_ms = node.shared.valid_until_ms(PAGE_TIMEOUT);
        let Some(page) = pages.next(&*node.shared.engine).map_err(|_| ())? else { return Ok(delivered) };
        delivered += send_page(node, target, &page.records, valid_until_ms).await?;
    }
}

/// True if this node leaves, and is at the point of handing over what it has.
fn hands_over(node: &Node, view: &View) -> bool {
    view.newest().member(node.shared.node()).is_none() && view.cluster_phase >= Phase::Released
}

/// Who gets the hint: its target, or all of the key's replicas if the target is none any more, or the layout changes. A node
/// that is about to leave gives it to the other replicas, if the target can't be reached.
fn takers(node: &Node, target: NodeId, key: &StorageKey) -> Vec<NodeId> {
    let view = node.shared.view();
    let mut replicas = view.holders_of(key.partition(), key.bucket());
    if view.is_settled() && replicas.contains(&target) {
        return vec![target];
    }
    replicas.retain(|&replica| view.is_participant(replica));
    if hands_over(node, &view) && !node.is_live(target) {
        replicas.retain(|&replica| replica != target);
    }
    replicas
}

async fn send_page(
    node: &Rc<Node>,
    target: NodeId,
    page: &[(Bytes, Bytes)],
    valid_until_ms: u64,
) -> Result<usize, ()> {
    let gather = Gather::default();
    let deadline = Instant::now() + PAGE_TIMEOUT;
    // Acks that each hint still needs.
    let mut open: Vec<usize> = vec![usize::MAX; page.len()];
    let mut asked = 0;
    for (at, (hint, object)) in page.iter().enumerate() {
        let Some((_, key)) = parse_hint_key(hint) else { continue };
        let takers = takers(node, target, &key);
        if takers.is_empty() {
            continue;
        }
        // It goes when all of them have it; who can be reached gets it now.
        open[at] = takers.len();
        for taker in takers.into_iter().filter(|&taker| node.is_live(taker)) {
            let write = PeerWrite {
                key: key.clone(),
                object: object.clone(),
                purpose: WritePurpose::HandOff,
                valid_until_ms,
                layout: 0,
            };
            asked += 1;
            // The number of the reply is the hint's position in the page.
            let reply = gather.reply_to(NodeId(at as u64));
            node.send(taker, PeerRequest::Write(write), PAGE_TIMEOUT, reply);
        }
        if planted(Bug::HintDeletedBeforeAck) {
            node.replica.delete_hint(SentHint { hint, object });
        }
    }
    let mut delivered = 0;
    let mut failed = false;
    for _ in 0..asked {
        let Some((NodeId(at), answer)) = gather.next(deadline).await else { return Err(()) };
        let at = at as usize;
        if !matches!(answer, Ok(PeerReply::Acked)) {
            failed = true;
            open[at] = usize::MAX;
        } else if open[at] != usize::MAX {
            open[at] -= 1;
        }
        if open[at] == 0 {
            let (hint, object) = &page[at];
            node.replica.delete_hint(SentHint { hint, object });
            delivered += 1;
        }
    }
    if failed { Err(()) } else { Ok(delivered) }
}
