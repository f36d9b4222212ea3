//! The exchange of layouts between nodes. Each node sends the others a summary of its layouts and
//! phases, and fetches the layouts of a node that knows newer ones.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quorate_core::NodeId;
use quorate_core::event::EventKind;
use quorate_core::layout_change::{LayoutSummary, Layouts, Phase};
use quorate_core::request::{PeerError, PeerReply, PeerRequest, PeerResult};
use quorate_core::storage::StorageError;
use tokio::time::Instant;

use super::gossip::known_members;
use crate::node::Node;

/// Time between two checks for peers to which the summary must be sent, while it does not change.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Time after which the summary is sent to a peer again, even if the summary has not changed.
const RESEND_INTERVAL: Duration = Duration::from_secs(1);
/// Shortest time between two summaries to one peer. Changes in between are sent together.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(25);

/// Sends this node's summary to the others, and fetches newer layouts from them. Runs until the
/// node stops.
pub(crate) async fn run(node: Rc<Node>) {
    let mut last_sent: BTreeMap<NodeId, (LayoutSummary, Instant)> = BTreeMap::new();
    loop {
        let layouts_changed = node.shared.layouts.changed.notified();
        for peer in node.shared.layouts.take_fetches() {
            let node = node.clone();
            tokio::task::spawn_local(async move {
                let _ = fetch(&node, peer).await;
            });
        }
        let summary = node.shared.layouts.with(Layouts::summary);
        let now = Instant::now();
        for peer in known_members(&node).into_iter().map(|member| member.id) {
            let is_due = last_sent.get(&peer).is_none_or(|(last, at)| {
                (*last != summary && now >= *at + SHORTEST_INTERVAL) || now >= *at + RESEND_INTERVAL
            });
            if is_due && node.transport.is_up(peer) {
                last_sent.insert(peer, (summary.clone(), now));
                let (node, summary) = (node.clone(), summary.clone());
                tokio::task::spawn_local(async move {
                    let _ = compare(&node, peer, &summary).await;
                });
            }
        }
        last_sent.retain(|peer, _| node.transport.is_up(*peer));
        let has_unsent_change = last_sent.values().any(|(last, _)| *last != summary);
        let _ = tokio::time::timeout(
            if has_unsent_change { SHORTEST_INTERVAL } else { POLL_INTERVAL },
            layouts_changed,
        )
        .await;
    }
}

/// Exchanges summaries with a peer. True if this node has to fetch the peer's layouts.
async fn compare(node: &Node, peer: NodeId, summary: &LayoutSummary) -> Result<bool, PeerError> {
    match node.ask(peer, PeerRequest::LayoutSummary(summary.encode().into())).await? {
        PeerReply::LayoutSummary(theirs) => {
            let theirs = LayoutSummary::decode(&theirs)
                .map_err(|error| PeerError::Refused { detail: error.to_string() })?;
            Ok(merge_summary(node, peer, &theirs))
        }
        _ => Err(PeerError::Refused { detail: "the peer's answer does not fit the request".into() }),
    }
}

/// Merges a peer's summary. True if this node has to fetch the peer's layouts. Ignores a peer whose
/// disk was declared lost.
fn merge_summary(node: &Node, from: NodeId, summary: &LayoutSummary) -> bool {
    let layouts = &node.shared.layouts;
    !layouts.with(|layouts| layouts.newest().is_lost(from)) && layouts.merge_summary(from, summary).fetch
}

/// Exchanges summaries with a peer, and fetches the peer's layouts if they are newer. If the peer
/// has the same layouts, it knows this node's phases afterwards.
///
/// # Errors
/// If the peer does not answer.
pub(crate) async fn agree(node: &Node, peer: NodeId) -> Result<(), PeerError> {
    let summary = node.shared.layouts.with(Layouts::summary);
    if compare(node, peer, &summary).await? {
        fetch(node, peer).await?;
    }
    Ok(())
}

/// Merges a peer's summary, and answers with this node's.
pub(crate) fn answer(node: &Node, from: NodeId, summary: &[u8]) -> PeerResult {
    match LayoutSummary::decode(summary) {
        Ok(theirs) => {
            merge_summary(node, from, &theirs);
            Ok(PeerReply::LayoutSummary(node.shared.layouts.with(Layouts::summary).encode().into()))
        }
        Err(error) => Err(PeerError::Refused { detail: error.to_string() }),
    }
}

/// Fetches a peer's layouts, and merges them with this node's.
async fn fetch(node: &Node, peer: NodeId) -> Result<(), PeerError> {
    let PeerReply::Layouts(bytes) = node.ask(peer, PeerRequest::Layouts).await? else {
        return Err(PeerError::Refused { detail: "the peer's answer does not fit the request".into() });
    };
    let shared = &node.shared;
    let theirs = Layouts::decode(shared.node(), &bytes)
        .map_err(|error| PeerError::Refused { detail: error.to_string() })?;
    let before = shared.layouts.known();
    let holds_data = shared.holds_data();
    let outcome: Result<(), StorageError> = shared
        .change_layouts(|layouts| {
            let changed = layouts.absorb(&theirs, holds_data);
            if layouts.local_phase() == Phase::Unaware {
                layouts.advance();
            }
            Ok(changed)
        })
        .await;
    if let Err(error) = outcome {
        shared.emit(None, EventKind::StorageFailed { detail: error.to_string() });
    }
    tell_of_changes(node, &before);
    Ok(())
}

/// Emits events for changes that concern the operator: a new layout, or the removal of this node.
pub(crate) fn tell_of_changes(node: &Node, before: &Layouts) {
    let now = node.shared.layouts.known();
    if now.newest().digest() != before.newest().digest() {
        let number = now.newest().number();
        let changes: Vec<String> =
            now.newest().changes().iter().map(|staged| staged.change.to_string()).collect();
        node.shared.emit(None, EventKind::LayoutChanges { number, changes: changes.join("; ") });
    }
    if now.removed() && !before.removed() {
        node.shared.emit(None, EventKind::Removed { number: now.newest().number() });
    }
}
