//! Drives the membership plugin: time passes, its messages travel like any request, and whom it knows is dialled.

use std::rc::Rc;
use std::sync::PoisonError;
use std::time::Duration;

use quorate_core::membership::{MemberView, Outgoing};
use quorate_core::request::{PeerReply, PeerRequest, PeerResult};
use quorate_core::seams::{ReplySink, ReplyTo};
use quorate_core::{Member, NodeId};

use crate::node::Node;
use crate::shared::Shared;
use crate::transition::everybody;

const TICK: Duration = Duration::from_millis(100);
const FOLLOW_EVERY: Duration = Duration::from_millis(500);
/// How long a message of the plugin may take: what is later says nothing new.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The fact under which a node publishes the digest of its layout, in hexadecimal.
pub const LAYOUT_FACT: &str = "layout";
/// The fact under which it publishes how long its oldest hint has been waiting, milliseconds.
pub const OLDEST_HINT_FACT: &str = "oldest_hint_ms";

/// Lets time pass for the plugin, on one worker.
pub(crate) async fn tick(node: Rc<Node>) {
    let shared = node.shared.clone();
    loop {
        let digest = format!("{:016x}", shared.view().newest().digest());
        let now_ms = shared.environment.monotonic_ms();
        let oldest = shared.hints.status(&shared).iter().map(|hints| hints.oldest_ms).max();
        let outgoing = {
            let mut membership = shared.membership.lock().unwrap_or_else(PoisonError::into_inner);
            membership.publish(LAYOUT_FACT, digest.as_bytes());
            // In whole seconds, or it would change with every look.
            let oldest = oldest.unwrap_or(0) / 1_000 * 1_000;
            membership.publish(OLDEST_HINT_FACT, oldest.to_string().as_bytes());
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
        let stirred = node.shared.layouts.stirred.notified();
        let members = everybody(&node);
        for member in members.iter().filter(|member| !known.contains(member)) {
            node.transport.meet(member.clone());
        }
        known = members;
        let _ = tokio::time::timeout(FOLLOW_EVERY, stirred).await;
    }
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

fn send(node: &Node, outgoing: Vec<Outgoing>) {
    for Outgoing { to, message } in outgoing {
        let nobody = ReplyTo::new(Rc::new(Nobody), 0);
        node.transport.send(to, PeerRequest::Gossip(message.into()), TIMEOUT, nobody);
    }
}

/// Who does not care for the answer.
struct Nobody;

impl ReplySink<PeerResult> for Nobody {
    fn reply(&self, _: u64, _: Option<PeerResult>) {}
}
