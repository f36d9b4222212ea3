//! The static membership passes the conformance suite of memberships, and refuses invalid lists.

use std::path::Path;

use quorate_core::Member;
use quorate_core::plugin::PluginContext;
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
    quorate_core::conformance::membership::run(|members, context| -> Box<StaticMembership> {
        Box::new(open(config(members), context).unwrap())
    });
}

/// A list that leaves this node out, or names a node twice, is refused. The error has the remedy.
#[test]
fn wrong_lists_are_refused() {
    let this = Member::new("n1", "127.0.0.1:7401", "");
    let other = Member::new("n2", "127.0.0.1:7402", "");
    let context = PluginContext { data_folder: Path::new(""), this: &this };
    let refused = |members: &[Member]| open(config(members), &context).err().unwrap().to_string();
    let error = refused(std::slice::from_ref(&other));
    assert!(error.contains(r#"add { name = "n1", address = "127.0.0.1:7401" }"#), "{error}");
    let error = refused(&[this.clone(), other.clone(), other]);
    assert!(error.contains("twice"), "{error}");
}
