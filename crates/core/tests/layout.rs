//! Placement: even load, fewest moves, the same on every node.

use std::collections::BTreeSet;

use quorate_core::layout::LayoutError;
use quorate_core::{Key, Layout, Member, NodeId, PartitionId};

fn members(count: usize) -> Vec<Member> {
    (0..count).map(|n| Member::new(&format!("node-{n}"), &format!("127.0.0.1:{n}"), "")).collect()
}

fn check_even(layout: &Layout) {
    let nodes = layout.members().len() as u32;
    let slots = layout.partitions() * u32::from(layout.replicas());
    for member in layout.members() {
        let load = layout.load_of(member.id);
        assert!(
            (slots / nodes..=slots.div_ceil(nodes)).contains(&load.partitions),
            "{load:?} of {slots}/{nodes}"
        );
        let share = layout.partitions() / nodes..=layout.partitions().div_ceil(nodes);
        assert!(share.contains(&load.first), "{load:?}, first share {share:?}");
    }
    for partition in 0..layout.partitions() {
        let replicas = layout.replicas_of(PartitionId(partition as u16), u8::MAX);
        let distinct: BTreeSet<&NodeId> = replicas.iter().collect();
        assert_eq!(
            distinct.len(),
            layout.replicas() as usize,
            "replicas of a partition are on different nodes"
        );
    }
}

fn moved(before: &Layout, after: &Layout) -> u32 {
    (0..after.partitions())
        .map(|partition| {
            let partition = PartitionId(partition as u16);
            let old = before.replicas_of(partition, u8::MAX);
            after.replicas_of(partition, u8::MAX).iter().filter(|node| !old.contains(node)).count() as u32
        })
        .sum()
}

/// Every node's load is within one partition of its share, as first replica too.
#[test]
fn load_is_even_for_up_to_thirty_nodes() {
    for nodes in 1..=30 {
        for replicas in [1, 2, 3, 5] {
            if nodes >= replicas as usize {
                check_even(&Layout::first(members(nodes), 1024, replicas).unwrap());
            }
        }
    }
    check_even(&Layout::first(members(3), 1, 3).unwrap());
    check_even(&Layout::first(members(7), 4, 3).unwrap());
}

/// A joining node takes its share and nothing else moves; a leaving one's share is all that moves.
#[test]
fn changes_move_no_more_than_they_must() {
    let mut layout = Layout::first(members(3), 1024, 3).unwrap();
    for nodes in 4..=12 {
        let grown = layout.next(members(nodes)).unwrap();
        check_even(&grown);
        let joined = grown.load_of(members(nodes)[nodes - 1].id).partitions;
        assert_eq!(moved(&layout, &grown), joined, "{nodes} nodes");
        assert_eq!(grown.parent(), layout.digest());
        layout = grown;
    }
    for nodes in (3..12).rev() {
        let shrunk = layout.next(members(nodes)).unwrap();
        check_even(&shrunk);
        let left = layout.load_of(members(nodes + 1)[nodes].id).partitions;
        assert_eq!(moved(&layout, &shrunk), left, "{nodes} nodes");
        layout = shrunk;
    }
    assert_eq!(moved(&layout, &layout.next(members(3)).unwrap()), 0);
}

/// The order in which a configuration lists members changes nothing.
#[test]
fn all_nodes_compute_the_same_layout() {
    let forward = Layout::first(members(7), 256, 3).unwrap();
    let mut reversed = members(7);
    reversed.reverse();
    assert_eq!(forward, Layout::first(reversed, 256, 3).unwrap());
    assert_ne!(forward.digest(), Layout::first(members(8), 256, 3).unwrap().digest());
}

/// Replicas of one node's partitions are spread over the others, and so are the fallbacks.
#[test]
fn failures_are_shared_by_all() {
    let layout = Layout::first(members(10), 1024, 3).unwrap();
    let dead = layout.members()[0].id;
    let mut partners: BTreeSet<NodeId> = BTreeSet::new();
    let mut fallbacks: BTreeSet<NodeId> = BTreeSet::new();
    for partition in 0..1024 {
        let replicas = layout.replicas_of(PartitionId(partition), 3);
        if replicas.contains(&dead) {
            partners.extend(replicas.iter().copied().filter(|&node| node != dead));
            fallbacks.insert(layout.fallbacks_of(PartitionId(partition), 3)[0]);
        }
    }
    assert_eq!((partners.len(), fallbacks.len()), (9, 9));
}

/// Keys spread evenly over partitions, and the preference list names every node once.
#[test]
fn keys_spread_over_the_ring() {
    let layout = Layout::first(members(5), 64, 3).unwrap();
    let mut counts = [0; 64];
    for number in 0..64_000 {
        let key = Key::new(b"b", format!("key-{number}").as_bytes()).unwrap();
        counts[layout.partition_of(key.hash()).0 as usize] += 1;
    }
    assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    let one = Layout::first(members(1), 1, 1).unwrap();
    assert_eq!(one.partition_of(u64::MAX), PartitionId(0));
    for partition in 0..64 {
        let partition = PartitionId(partition);
        let mut all = layout.replicas_of(partition, 2).to_vec();
        all.extend(layout.fallbacks_of(partition, 2));
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 5);
        assert_eq!(all.len(), 5);
    }
}

/// What no layout can be made of is refused, by name.
#[test]
fn impossible_layouts_are_refused() {
    let refused = |members, partitions, replicas| Layout::first(members, partitions, replicas).unwrap_err();
    assert_eq!(refused(members(2), 64, 3), LayoutError::TooFewMembers { replicas: 3, members: 2 });
    assert_eq!(refused(members(3), 100, 3), LayoutError::Partitions { partitions: 100 });
    assert_eq!(refused(members(3), 0, 3), LayoutError::Partitions { partitions: 0 });
    assert_eq!(refused(members(3), 64, 0), LayoutError::NoReplicas);
    let twice = vec![members(1)[0].clone(), members(1)[0].clone()];
    assert!(matches!(refused(twice, 64, 1), LayoutError::SameName { .. }));
}
