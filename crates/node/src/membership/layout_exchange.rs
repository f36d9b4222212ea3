//! The exchange of layouts between nodes: each node tells the others its layouts and phases, and fetches
//! the layouts of a node that knows newer ones.

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

/// How often the node looks, if nothing stirs.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How often a peer is told even if there is nothing new.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How soon it is told something new again: what gathers meanwhile is told together.
const TELL_AGAIN_AFTER: Duration = Duration::from_millis(25);

/// Tells the others what this node knows of a change, and fetches what they know better, for as long as it runs.
pub(crate) async fn run(node: Rc<Node>) {
    let mut told: BTreeMap<NodeId, (LayoutSummary, Instant)> = BTreeMap::new();
    loop {
        let stirred = node.shared.layouts.changed.notified();
        for peer in node.shared.layouts.take_fetches() {
            let node = node.clone();
            tokio::task::spawn_local(async move {
                let _ = fetch(&node, peer).await;
            });
        }
        let news = node.shared.layouts.with(Layouts::summary);
        let now = Instant::now();
        for peer in known_members(&node).into_iter().map(|member| member.id) {
            let again = told.get(&peer).is_none_or(|(last, at)| {
                (*last != news && now >= *at + TELL_AGAIN_AFTER) || now >= *at + TELL_EVERY
            });
            if again && node.transport.is_up(peer) {
                told.insert(peer, (news.clone(), now));
                let (node, news) = (node.clone(), news.clone());
                tokio::task::spawn_local(async move {
                    let _ = compare(&node, peer, &news).await;
                });
            }
        }
        told.retain(|peer, _| node.transport.is_up(*peer));
        let waits = told.values().any(|(last, _)| *last != news);
        let _ = tokio::time::timeout(if waits { TELL_AGAIN_AFTER } else { POLL_INTERVAL }, stirred).await;
    }
}

/// Tells a peer what this node knows, and hears what it knows. True if it knows more than it said.
async fn compare(node: &Node, peer: NodeId, news: &LayoutSummary) -> Result<bool, PeerError> {
    match node.ask(peer, PeerRequest::LayoutSummary(news.encode().into())).await? {
        PeerReply::LayoutSummary(theirs) => {
            let theirs = LayoutSummary::decode(&theirs)
                .map_err(|error| PeerError::Refused { detail: error.to_string() })?;
            Ok(merge_summary(node, peer, &theirs))
        }
        _ => Err(PeerError::Refused { detail: "unexpected answer".into() }),
    }
}

/// Takes in a peer's news; true if its layouts are to be fetched. Whose disk was declared lost has nothing to say.
fn merge_summary(node: &Node, from: NodeId, news: &LayoutSummary) -> bool {
    let layouts = &node.shared.layouts;
    !layouts.with(|layouts| layouts.newest().is_lost(from)) && layouts.merge_summary(from, news).fetch
}

/// Makes sure that a peer knows all that this node knows of a change, and the other way round, before they go on.
///
/// # Errors
/// If it can't be asked.
pub(crate) async fn agree(node: &Node, peer: NodeId) -> Result<(), PeerError> {
    let news = node.shared.layouts.with(Layouts::summary);
    if compare(node, peer, &news).await? {
        fetch(node, peer).await?;
    }
    Ok(())
}

/// Answers a peer's news with this node's.
pub(crate) fn answer(node: &Node, from: NodeId, news: &[u8]) -> PeerResult {
    match LayoutSummary::decode(news) {
        Ok(theirs) => {
            merge_summary(node, from, &theirs);
            Ok(PeerReply::LayoutSummary(node.shared.layouts.with(Layouts::summary).encode().into()))
        }
        Err(error) => Err(PeerError::Refused { detail: error.to_string() }),
    }
}

/// Fetches all that a peer knows of layouts, and joins it to what is known here.
async fn fetch(node: &Node, peer: NodeId) -> Result<(), PeerError> {
    let PeerReply::Layouts(bytes) = node.ask(peer, PeerRequest::Layouts).await? else {
        return Err(PeerError::Refused { detail: "unexpected answer".into() });
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

/// What an operator should hear of.
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
