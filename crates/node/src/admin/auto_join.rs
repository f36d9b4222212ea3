//! Automatic joins: with the setting `auto_commit`, nodes that gossip finds become members without
//! an operator.

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
/// Number of polls in a row without a new waiting node. After them, all waiting nodes become
/// members in one layout change.
const QUIET_POLLS: usize = 3;

/// Makes members of the nodes that wait to join. Only the first member of the layout that can be
/// reached does this. Runs until the node stops.
pub(crate) async fn run(node: Rc<Node>) {
    let shared = node.shared.clone();
    let mut waiting_before: Vec<NodeId> = Vec::new();
    let mut unchanged_polls = 0;
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
        unchanged_polls = if ids == waiting_before { unchanged_polls + 1 } else { 0 };
        waiting_before = ids;
        if waiting.is_empty() || unchanged_polls < QUIET_POLLS {
            continue;
        }
        let join =
            |Member { name, address, zone, weight, .. }| LayoutChange::Join { name, address, zone, weight };
        let joins: Vec<LayoutChange> = waiting.into_iter().map(join).collect();
        // If an operator has staged changes, only the operator commits. Staged joins of the waiting
        // nodes do not count: they may be automatic joins whose layout lost to another layout.
        let has_operator_changes =
            |layouts: &Layouts| layouts.staged().iter().any(|staged| !joins.contains(&staged.change));
        if shared.layouts.with(has_operator_changes) {
            continue;
        }
        let _ = commit_only(&node, joins.into_iter().map(|join| staged_by(&node, join)).collect()).await;
        unchanged_polls = 0;
    }
}
