//! Drives the membership plugin: time passes, its messages travel like any request, and whom it knows is dialled.

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

const TICK: Duration = Duration::from_millis(100);
const FOLLOW_EVERY: Duration = Duration::from_millis(500);
/// How long a message of the plugin may take: what is later says nothing new.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The fact under which a node publishes the digest of its layout, in hexadecimal.
pub const LAYOUT_KEY: &str = "layout";
/// The fact under which it publishes how long its oldest hint has been waiting, milliseconds.
pub const OLDEST_HINT_KEY: &str = "oldest_hint_ms";

/// Lets time pass for the plugin, on one worker.
pub(crate) async fn run(node: Rc<Node>) {
    let shared = node.shared.clone();
    loop {
        let digest = format!("{:016x}", shared.view().newest().digest());
        let now_ms = shared.environment.monotonic_ms();
        let oldest = shared.hints.oldest_age_ms(shared.environment.wall_ms());
        let outgoing = {
            let mut membership = shared.membership.lock().unwrap_or_else(PoisonError::into_inner);
            membership.publish(LAYOUT_KEY, digest.as_bytes());
            // In whole seconds, or it would change with every look.
            let oldest = oldest.unwrap_or(0) / 1_000 * 1_000;
            membership.publish(OLDEST_HINT_KEY, oldest.to_string().as_bytes());
            membership.tick(now_ms)
        };
        send(&node, outgoing);
        tokio::time::sleep(TICK).await;
    }
}

/// Keeps this worker's connections in step with whom the plugin and the layouts know.
pub(crate) async fn follow(node: Rc<Node>) {
    let mut known: Vec<Member> = Vec::new();
    loop {
        let stirred = node.shared.layouts.changed.notified();
        let members = known_members(&node);
        for member in members.iter().filter(|member| !known.contains(member)) {
            node.transport.meet(member.clone());
        }
        known = members;
        let _ = tokio::time::timeout(FOLLOW_EVERY, stirred).await;
    }
}

/// The nodes that this node may talk to: participants, and nodes that wait to join.
pub(crate) fn known_members(node: &Node) -> Vec<Member> {
    let shared = &node.shared;
    let mut all: BTreeMap<NodeId, Member> = BTreeMap::new();
    for layout in &shared.view().active {
        all.extend(layout.members().iter().map(|member| (member.id, member.clone())));
    }
    // Where the membership has an address, it is the newer one.
    for view in view(shared) {
        let known = all.entry(view.member.id).or_insert_with(|| view.member.clone());
        known.address = view.member.address;
    }
    all.remove(&shared.node());
    all.into_values().collect()
}

/// Whom the plugin knows.
pub(crate) fn view(shared: &Shared) -> Vec<MemberView> {
    shared.membership.lock().unwrap_or_else(PoisonError::into_inner).view()
}

/// A message of the plugin on another node.
pub(crate) fn receive(node: &Rc<Node>, from: NodeId, message: &[u8], reply: ReplyTo<PeerResult>) {
    let now_ms = node.shared.environment.monotonic_ms();
    let outgoing = {
        let mut membership = node.shared.membership.lock().unwrap_or_else(PoisonError::into_inner);
        membership.receive(from, message, now_ms)
    };
    send(node, outgoing);
    reply.send(Ok(PeerReply::Acked));
}

fn send(node: &Node, outgoing: Vec<OutgoingMessage>) {
    for OutgoingMessage { to, message } in outgoing {
        node.transport.send(to, PeerRequest::Gossip(message.into()), TIMEOUT, ReplyTo::ignored());
    }
}
