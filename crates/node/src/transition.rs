//! A change of layout, as one node goes through it: it tells the others how far it is, fetches what they know better, and
//! does what its next phase asks of it. What that is, and when, is `quorate_core::transition`'s to say.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quorate_core::event::EventKind;
use quorate_core::request::{PeerError, PeerReply, PeerRequest, PeerResult};
use quorate_core::storage::StorageError;
use quorate_core::transition::{Duty, Layouts, News, Phase};
use quorate_core::{Member, NodeId};
use tokio::time::Instant;

use crate::gossip;
use crate::node::Node;
use crate::sync::ask;
use crate::{leftovers, transfer};

/// How often the node looks, if nothing stirs.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often a peer is told even if there is nothing new.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How soon it is told something new again: what gathers meanwhile is told together.
const TELL_AGAIN_AFTER: Duration = Duration::from_millis(25);
/// How often it looks whether it holds what it should not.
const DROP_EVERY_LOOKS: u32 = 20;

/// Everybody whom this node may have to do with: participants, and those who wait to become some.
pub(crate) fn everybody(node: &Node) -> Vec<Member> {
    let shared = &node.shared;
    let mut all: BTreeMap<NodeId, Member> = BTreeMap::new();
    for layout in &shared.view().active {
        all.extend(layout.members().iter().map(|member| (member.id, member.clone())));
    }
    // Where the membership has an address, it is the newer one.
    for view in gossip::view(shared) {
        let known = all.entry(view.member.id).or_insert_with(|| view.member.clone());
        known.address = view.member.address;
    }
    all.remove(&shared.node());
    all.into_values().collect()
}

/// Tells the others what this node knows of a change, and fetches what they know better, for as long as it runs.
pub(crate) async fn tell(node: Rc<Node>) {
    let mut told: BTreeMap<NodeId, (News, Instant)> = BTreeMap::new();
    loop {
        let stirred = node.shared.layouts.stirred.notified();
        for peer in node.shared.layouts.take_fetches() {
            let node = node.clone();
            tokio::task::spawn_local(async move {
                let _ = fetch(&node, peer).await;
            });
        }
        let news = node.shared.layouts.look(Layouts::news);
        let now = Instant::now();
        for peer in everybody(&node).into_iter().map(|member| member.id) {
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
        let _ = tokio::time::timeout(if waits { TELL_AGAIN_AFTER } else { LOOK_EVERY }, stirred).await;
    }
}

/// Tells a peer what this node knows, and hears what it knows. True if it knows more than it said.
async fn compare(node: &Node, peer: NodeId, news: &News) -> Result<bool, PeerError> {
    match ask(node, peer, PeerRequest::News(news.encode().into())).await? {
        PeerReply::News(theirs) => {
            let theirs =
                News::decode(&theirs).map_err(|error| PeerError::Refused { detail: error.to_string() })?;
            Ok(hear(node, peer, &theirs))
        }
        _ => Err(PeerError::Refused { detail: "unexpected answer".into() }),
    }
}

/// Takes in a peer's news; true if its layouts are to be fetched. Whose disk was declared lost has nothing to say.
fn hear(node: &Node, from: NodeId, news: &News) -> bool {
    let layouts = &node.shared.layouts;
    !layouts.look(|layouts| layouts.newest().is_lost(from)) && layouts.hear(from, news).fetch
}

/// Makes sure that a peer knows all that this node knows of a change, and the other way round, before they go on.
///
/// # Errors
/// If it can't be asked.
pub(crate) async fn agree(node: &Node, peer: NodeId) -> Result<(), PeerError> {
    let news = node.shared.layouts.look(Layouts::news);
    if compare(node, peer, &news).await? {
        fetch(node, peer).await?;
    }
    Ok(())
}

/// Answers a peer's news with this node's.
pub(crate) fn answer(node: &Node, from: NodeId, news: &[u8]) -> PeerResult {
    match News::decode(news) {
        Ok(theirs) => {
            hear(node, from, &theirs);
            Ok(PeerReply::News(node.shared.layouts.look(Layouts::news).encode().into()))
        }
        Err(error) => Err(PeerError::Refused { detail: error.to_string() }),
    }
}

/// Fetches all that a peer knows of layouts, and joins it to what is known here.
async fn fetch(node: &Node, peer: NodeId) -> Result<(), PeerError> {
    let PeerReply::Layouts(bytes) = ask(node, peer, PeerRequest::Layouts).await? else {
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
            if layouts.own() == Phase::Unaware {
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

/// Does what this node's next phase asks of it, for as long as it runs.
pub(crate) async fn go_through(node: Rc<Node>) {
    let shared = node.shared.clone();
    let mut looks = 0u32;
    loop {
        let stirred = shared.layouts.stirred.notified();
        let (duty, newest, own) =
            shared.layouts.look(|layouts| (layouts.duty(), layouts.newest().clone(), layouts.own()));
        let done = match duty {
            Duty::Rest => false,
            Duty::Quiet => shared.layouts.is_quiet(),
            Duty::Sync => transfer::copy(&node).await,
            Duty::Clear => leftovers::hand_over(&node).await,
        };
        if done {
            let outcome: Result<(), StorageError> = shared
                .change_layouts(|layouts| {
                    // A newer layout may have come meanwhile.
                    let still = layouts.newest().digest() == newest.digest() && layouts.own() == own;
                    if still {
                        layouts.advance();
                    }
                    Ok(still)
                })
                .await;
            match outcome {
                Ok(()) => {
                    let phase = shared.layouts.look(Layouts::own);
                    let settled = shared.view().is_settled();
                    shared.emit(None, EventKind::LayoutPhase { number: newest.number(), phase, settled });
                }
                Err(error) => shared.emit(None, EventKind::StorageFailed { detail: error.to_string() }),
            }
            continue;
        }
        looks += 1;
        if looks.is_multiple_of(DROP_EVERY_LOOKS) && shared.view().is_settled() {
            leftovers::drop_copies(&node).await;
        }
        let _ = tokio::time::timeout(LOOK_EVERY, stirred).await;
    }
}
