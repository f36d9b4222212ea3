//! The gossip membership passes the conformance suite of memberships.

use quorate_membership_gossip::{Config, open};

#[test]
fn keeps_the_contract() {
    quorate_core::conformance::membership::run(|members, context| {
        let config =
            Config { seeds: vec![members[0].address.clone()], expect: members.len(), ..Config::default() };
        let mut opened = open(config, context).unwrap();
        for member in &members[1..] {
            quorate_core::membership::Membership::join(&mut opened, member.clone()).unwrap();
        }
        Box::new(opened)
    });
}
