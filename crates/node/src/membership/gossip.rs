//! The task that drives the membership plugin. It tells the plugin the time, passes messages
//! between the plugins of this node and of other nodes, and connects to the nodes that the plugin
//! knows.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::PoisonError;
use std::time::Duration;

use quorate_core::membership::{MemberView, OutgoingMessage};
use quorate_core::request::{PeerReply, PeerRequest, PeerResult};
use quorate_core::seams::ReplyTo;
use quorate_core::{Member, NodeId};

use crate::node::Node;
use crate::state::shared::Shared;

/// Time between two calls in which the task tells the membership plugin the time.
const TICK: Duration = Duration::from_millis(100);
/// Time between two checks for new nodes, while no layout changes.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);
/// Timeout of one gossip message. Lost messages are not sent again, because later messages repeat
/// their content.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Key under which each node publishes the digest of its newest layout, in hexadecimal. Gossip
/// passes on what nodes publish.
pub const LAYOUT_KEY: &str = "layout";
/// Key under which each node publishes the milliseconds for which its oldest hint has been waiting.
pub const OLDEST_HINT_KEY: &str = "oldest_hint_ms";

/// Drives the membership plugin. Runs on one worker until the node stops.
pub(crate) async fn run(node: Rc<Node>) {
    let shared = node.shared.clone();
    loop {
        let digest = format!("{:016x}", shared.view().newest().digest());
        let now_ms = shared.environment.monotonic_ms();
        let oldest = shared.hints.oldest_age_ms(shared.environment.wall_ms());
        let outgoing = {
            let mut membership = shared.membership.lock().unwrap_or_else(PoisonError::into_inner);
            membership.publish(LAYOUT_KEY, digest.as_bytes());
            // Rounded to whole seconds, so that the value does not change at every tick.
            let oldest = oldest.unwrap_or(0) / 1_000 * 1_000;
            membership.publish(OLDEST_HINT_KEY, oldest.to_string().as_bytes());
            membership.tick(now_ms)
        };
        send(&node, outgoing);
        tokio::time::sleep(TICK).await;
    }
}

/// Connects this worker to each new node, or new address, that the membership plugin or a layout
/// names. Runs until the node stops.
pub(crate) async fn follow(node: Rc<Node>) {
    let mut known: Vec<Member> = Vec::new();
    loop {
        let layouts_changed = node.shared.layouts.changed.notified();
        let members = known_members(&node);
        for member in members.iter().filter(|member| !known.contains(member)) {
            node.transport.meet(member.clone());
        }
        known = members;
        let _ = tokio::time::timeout(FOLLOW_INTERVAL, layouts_changed).await;
    }
}

/// Returns the other nodes that this node may send requests to: members of any active layout, and
/// nodes that the plugin has found.
pub(crate) fn known_members(node: &Node) -> Vec<Member> {
    let shared = &node.shared;
    let mut all: BTreeMap<NodeId, Member> = BTreeMap::new();
    for layout in &shared.view().active {
        all.extend(layout.members().iter().map(|member| (member.id, member.clone())));
    }
    // An address from the plugin is newer than one from a layout.
    for view in view(shared) {
        let known = all.entry(view.member.id).or_insert_with(|| view.member.clone());
        known.address = view.member.address;
    }
    all.remove(&shared.node());
    all.into_values().collect()
}

/// Returns the nodes that the membership plugin knows, with their states.
pub(crate) fn view(shared: &Shared) -> Vec<MemberView> {
    shared.membership.lock().unwrap_or_else(PoisonError::into_inner).view()
}

/// Passes a message from the membership plugin of another node to this node's plugin.
pub(crate) fn receive(node: &Rc<Node>, from: NodeId, message: &[u8], reply: ReplyTo<PeerResult>) {
    let now_ms = node.shared.environment.monotonic_ms();
    let outgoing = {
        let mut membership = node.shared.membership.lock().unwrap_or_else(PoisonError::into_inner);
        membership.receive(from, message, now_ms)
    };
    send(node, outgoing);
    reply.send(Ok(PeerReply::Acked));
}

/// Sends messages of the membership plugin. Their answers are ignored.
fn send(node: &Node, outgoing: Vec<OutgoingMessage>) {
    for OutgoingMessage { to, message } in outgoing {
        node.transport.send(to, PeerRequest::Gossip(message.into()), TIMEOUT, ReplyTo::ignored());
    }
}
