//! The conformance suite of [`Membership`].

use std::path::Path;

use crate::member::{Member, NodeId};
use crate::membership::{MemberState, Membership, OutgoingMessage};
use crate::plugin::PluginContext;

/// Maximum number of messages that one call may return, per member.
const MESSAGES_PER_MEMBER: usize = 4;

/// Runs the whole suite. `open` opens the plugin on the first of the given members. The plugin must
/// know all of them.
///
/// # Panics
/// If the plugin breaks the contract, with the sentence that it breaks.
pub fn run<M: Membership + ?Sized>(open: impl Fn(&[Member], &PluginContext<'_>) -> Box<M>) {
    let open = |members: &[Member]| {
        let context = PluginContext { data_folder: Path::new(""), this: &members[0] };
        open(members, &context)
    };
    for count in [1, 2, 5] {
        let members: Vec<Member> =
            (0..count).map(|n| Member::new(&format!("n{n}"), &format!("h:{n}"), "")).collect();
        knows_every_member(&mut *open(&members), &members);
        is_deterministic(&mut *open(&members), &mut *open(&members), &members);
        ignores_malformed_messages(&mut *open(&members), &members);
        publishes_metadata(&mut *open(&members), &members);
    }
}

fn knows_every_member<M: Membership + ?Sized>(membership: &mut M, members: &[Member]) {
    // Time passes without a message from any member.
    for now in (0..60_000).step_by(500) {
        let messages = membership.tick(now);
        check_messages(&messages, members);
    }
    let view = membership.view();
    let mut expected: Vec<NodeId> = members.iter().map(|member| member.id).collect();
    expected.sort();
    let seen: Vec<NodeId> = view.iter().map(|view| view.member.id).collect();
    assert_eq!(seen, expected, "the view names every member once, in order of node id, however silent");
    let this = view.iter().find(|view| view.member.id == members[0].id).expect("this node is in its view");
    assert_eq!(this.state, MemberState::Alive, "this node is alive");
    assert!(view.iter().all(|view| view.state != MemberState::Left), "a silent member has not left");
}

fn is_deterministic<M: Membership + ?Sized>(one: &mut M, other: &mut M, members: &[Member]) {
    for now in (0..10_000).step_by(250) {
        assert_eq!(one.tick(now), other.tick(now), "the same calls give the same messages");
        let from = members[now as usize / 250 % members.len()].id;
        let message = now.to_le_bytes();
        assert_eq!(
            one.receive(from, &message, now),
            other.receive(from, &message, now),
            "the same calls give the same messages"
        );
    }
    assert_eq!(one.view(), other.view(), "the same calls give the same view");
}

fn ignores_malformed_messages<M: Membership + ?Sized>(membership: &mut M, members: &[Member]) {
    let stranger = NodeId(0xdead);
    for length in [0usize, 1, 7, 64, 4096] {
        for byte in [0x00, 0x01, 0x7f, 0xff] {
            for from in [members[members.len() - 1].id, stranger] {
                let messages = membership.receive(from, &vec![byte; length], 1_000);
                check_messages(&messages, members);
            }
        }
    }
    assert_eq!(membership.view().len(), members.len(), "a malformed message changes no membership");
}

fn publishes_metadata<M: Membership + ?Sized>(membership: &mut M, members: &[Member]) {
    membership.publish("layout", b"one");
    membership.publish("layout", b"two");
    membership.publish("hint", b"");
    let mut metadata = membership.metadata(members[0].id);
    metadata.sort();
    let expected = vec![("hint".to_owned(), Vec::new()), ("layout".to_owned(), b"two".to_vec())];
    assert_eq!(metadata, expected, "an entry of metadata replaces an earlier one of the same name");
    assert!(membership.metadata(NodeId(0xdead)).is_empty(), "a stranger has no metadata");
}

fn check_messages(messages: &[OutgoingMessage], members: &[Member]) {
    assert!(
        messages.len() <= members.len() * MESSAGES_PER_MEMBER,
        "a call returns a bounded number of messages"
    );
    let known = |to: NodeId| members.iter().any(|member| member.id == to);
    assert!(messages.iter().all(|message| known(message.to)), "messages go to members only");
}
