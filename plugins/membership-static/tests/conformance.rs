//! The static membership keeps the contract of memberships, and refuses lists without this node.

use quorate_core::Member;
use quorate_membership_static::{Config, MemberEntry, StaticMembership, open};

fn config(members: &[Member]) -> Config {
    let entry = |member: &Member| MemberEntry {
        name: member.name.clone(),
        address: member.address.clone(),
        zone: member.zone.clone(),
    };
    Config { members: members.iter().map(entry).collect(), ..Config::default() }
}

#[test]
fn static_keeps_the_contract() {
    quorate_core::conformance::membership::run(|members| -> Box<StaticMembership> {
        Box::new(open(config(members), &members[0]).unwrap())
    });
}

/// A list that leaves this node out, or names one twice, is refused with what to write.
#[test]
fn wrong_lists_are_refused() {
    let this = Member::new("n1", "127.0.0.1:7401", "");
    let other = Member::new("n2", "127.0.0.1:7402", "");
    let error = open(config(std::slice::from_ref(&other)), &this).err().unwrap();
    assert!(error.contains(r#"add { name = "n1", address = "127.0.0.1:7401" }"#), "{error}");
    let error = open(config(&[this.clone(), other.clone(), other]), &this).err().unwrap();
    assert!(error.contains("twice"), "{error}");
}
