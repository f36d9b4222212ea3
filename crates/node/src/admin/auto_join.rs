//! Automatic joins: with `auto_commit`, nodes that are found become members without an operator.

use std::rc::Rc;
use std::time::Duration;

use quorate_core::change::LayoutChange;
use quorate_core::layout_change::Layouts;
use quorate_core::membership::MemberState;
use quorate_core::{Member, NodeId};

use super::layout_changes::{commit_only, staged_by};
use crate::membership::gossip;
use crate::node::Node;

/// Time between polls for nodes that wait to join.
const POLL_INTERVAL: Duration = Duration::from_millis(300);
/// Polls without a new node before those that wait are made members: together.
const QUIET_POLLS: usize = 3;

/// With `auto_commit`: the first live member makes members of nodes that are found and wait, for as long as it runs.
pub(crate) async fn run(node: Rc<Node>) {
    let shared = node.shared.clone();
    let mut seen: Vec<NodeId> = Vec::new();
    let mut quiet = 0;
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let view = shared.view();
        let newest = view.newest().clone();
        let first = newest.members().iter().map(|member| member.id).find(|&id| node.is_live(id));
        let settled = view.is_settled();
        drop(view);
        if first != Some(shared.node()) || !settled {
            continue;
        }
        let waits = |member: &Member| {
            newest.member(member.id).is_none()
                && !newest.gone().contains_key(&member.name)
                && !member.address.is_empty()
                && node.transport.is_up(member.id)
        };
        let found = gossip::view(&shared).into_iter().filter(|view| view.state == MemberState::Alive);
        let waiting: Vec<Member> = found.map(|view| view.member).filter(waits).collect();
        let ids: Vec<NodeId> = waiting.iter().map(|member| member.id).collect();
        quiet = if ids == seen { quiet + 1 } else { 0 };
        seen = ids;
        if waiting.is_empty() || quiet < QUIET_POLLS {
            continue;
        }
        let join =
            |Member { name, address, zone, weight, .. }| LayoutChange::Join { name, address, zone, weight };
        let joins: Vec<LayoutChange> = waiting.into_iter().map(join).collect();
        // What an operator has begun to stage is an operator's to commit; not a join of these that gave way to another layout.
        let theirs =
            |layouts: &Layouts| layouts.staged().iter().any(|staged| !joins.contains(&staged.change));
        if shared.layouts.with(theirs) {
            continue;
        }
        let _ = commit_only(&node, joins.into_iter().map(|join| staged_by(&node, join)).collect()).await;
        quiet = 0;
    }
}
