//! Layouts: loads are even, as few replicas as possible move, and all nodes compute the same
//! layout.

use std::collections::BTreeSet;

use proptest::prelude::*;
use quorate_core::change::{LayoutChange, StagedChange};
use quorate_core::layout_error::LayoutError;
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

/// Every node is a replica of an equal share of the partitions, rounded up or down. The same is
/// true of the partitions of which it is the first replica.
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

/// A joining node gains its share and nothing else moves. When a node leaves, only its share moves.
#[test]
fn changes_move_no_more_than_necessary() {
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

/// The other replicas of one node's partitions are spread over all other nodes. So are their first
/// fallbacks.
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

/// Keys are spread evenly over partitions. Replicas and fallbacks together name every node once.
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

/// Members and numbers that allow no layout are refused, and the error names them.
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

fn staged(changes: Vec<LayoutChange>) -> Vec<StagedChange> {
    changes.into_iter().enumerate().map(|(id, change)| StagedChange { id: id as u64, change }).collect()
}

fn join(number: usize, weight: u16, zone: &str) -> LayoutChange {
    let (name, address) = (format!("node-{number}"), format!("127.0.0.1:{number}"));
    LayoutChange::Join { name, address, zone: zone.into(), weight }
}

/// Returns the smallest number of replicas that any assignment must copy, to get from the loads of
/// `before` to the shares by weight of `after`.
fn fewest_moves(before: &Layout, after: &Layout) -> u32 {
    let total: f64 = f64::from(after.partitions()) * f64::from(after.replicas());
    let weights: f64 = after.members().iter().map(|member| f64::from(member.weight)).sum();
    let (mut kept, mut missing) = (0.0, 0.0);
    for member in after.members() {
        let share = total * f64::from(member.weight) / weights;
        let had = f64::from(before.load_of(member.id).partitions);
        kept += had.min(share.ceil());
        missing += (share.floor() - had).max(0.0);
    }
    (total - kept).max(missing) as u32
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Over random sequences of twenty joins, leaves and new weights, at most 2 % more replicas
    /// move than necessary.
    #[test]
    fn sequences_of_changes_move_little_more_than_necessary(
        steps in prop::collection::vec((0u8..4, any::<prop::sample::Index>(), 80u16..140), 20),
    ) {
        let mut layout = Layout::first(members(5), 256, 3).unwrap();
        let (mut next, mut moves, mut fewest) = (5, 0, 0);
        for (kind, which, weight) in steps {
            let some = which.get(layout.members()).name.clone();
            let change = match kind {
                0 if layout.members().len() > 4 => LayoutChange::Leave { name: some },
                1 => LayoutChange::Weight { name: some, weight },
                _ => {
                    next += 1;
                    join(next, weight, "")
                }
            };
            let after = layout.changed(&staged(vec![change])).unwrap();
            moves += moved(&layout, &after);
            fewest += fewest_moves(&layout, &after);
            prop_assert_eq!(after.parent(), layout.digest());
            layout = after;
        }
        prop_assert!(f64::from(moves) <= 1.02 * f64::from(fewest), "{} moved, {} at least", moves, fewest);
    }

    /// With at least as many zones as replicas, no two replicas share a zone, whatever the zones'
    /// sizes. With fewer zones than replicas, each zone has a replica of every partition.
    #[test]
    fn replicas_are_spread_over_zones(
        sizes in prop::collection::vec(1usize..5, 1..5), replicas in 1u8..5, weights in prop::collection::vec(50u16..200, 20),
    ) {
        let count: usize = sizes.iter().sum();
        prop_assume!(count >= replicas as usize);
        let mut all = Vec::new();
        for (zone, &size) in sizes.iter().enumerate() {
            for _ in 0..size {
                let number = all.len();
                let zone = format!("zone-{zone}");
                let member = Member::new(&format!("node-{number}"), &format!("127.0.0.1:{number}"), &zone);
                all.push(Member { weight: weights[number], ..member });
            }
        }
        let layout = Layout::first(all, 64, replicas).unwrap();
        let possible = sizes.len().min(replicas as usize);
        for partition in 0..64 {
            let replicas = layout.replicas_of(PartitionId(partition), u8::MAX);
            let zones: BTreeSet<&str> = replicas.iter().map(|&id| layout.member(id).unwrap().zone.as_str()).collect();
            prop_assert_eq!(zones.len(), possible, "{:?} of zones {:?}", replicas, &sizes);
        }
    }
}

/// Loads of up to thirty nodes are at most 1 % above the mean, and follow the weights.
#[test]
fn loads_are_even_and_follow_the_weights() {
    for nodes in 3..=30 {
        let layout = Layout::first(members(nodes), 1024, 3).unwrap();
        let loads: Vec<u32> =
            layout.members().iter().map(|member| layout.load_of(member.id).partitions).collect();
        let mean = 3.0 * 1024.0 / nodes as f64;
        assert!(f64::from(*loads.iter().max().unwrap()) / mean <= 1.01, "{nodes} nodes: {loads:?}");
    }
    let mut uneven = members(6);
    uneven[2].weight = 200;
    uneven[4].weight = 50;
    let layout = Layout::first(uneven.clone(), 1024, 3).unwrap();
    for member in layout.members() {
        let share = 3.0 * 1024.0 * f64::from(member.weight) / 650.0;
        let load = f64::from(layout.load_of(member.id).partitions);
        assert!((load - share).abs() < 1.0, "{} holds {load} of {share}", member.name);
    }
}

/// A node that replaces another gains exactly the other one's partitions. If N changes, only the
/// added or the surplus replicas change.
#[test]
fn replacements_and_other_numbers_of_replicas_move_the_least() {
    let layout = Layout::first(members(5), 256, 3).unwrap();
    let replaced = layout
        .changed(&staged(vec![LayoutChange::Leave { name: "node-2".into() }, join(9, 100, "")]))
        .unwrap();
    let (old, new) = (NodeId::of_name("node-2"), NodeId::of_name("node-9"));
    for partition in (0..256).map(PartitionId) {
        let then: BTreeSet<NodeId> = replaced.replicas_of(partition, 3).iter().copied().collect();
        let renamed = |&id: &NodeId| if id == old { new } else { id };
        assert_eq!(then, layout.replicas_of(partition, 3).iter().map(renamed).collect());
    }
    let more = layout.changed(&staged(vec![LayoutChange::Replicas { count: 4 }])).unwrap();
    assert_eq!((more.replicas(), moved(&layout, &more)), (4, 256));
    let fewer = more.changed(&staged(vec![LayoutChange::Replicas { count: 2 }])).unwrap();
    assert_eq!((fewer.replicas(), moved(&more, &fewer)), (2, 0));
}

/// Changes that are not possible are refused, and the error names the value and the remedy.
#[test]
fn changes_that_do_not_fit_are_refused() {
    let layout = Layout::first(members(3), 64, 3).unwrap();
    let refused = |change: LayoutChange| layout.changed(&staged(vec![change])).unwrap_err().to_string();
    assert!(
        refused(LayoutChange::Leave { name: "node-0".into() })
            .contains("replicas = 3 but the cluster has 2 members")
    );
    assert!(refused(LayoutChange::Leave { name: "nobody".into() }).contains("node-0, node-1, node-2"));
    assert!(refused(join(1, 100, "")).contains("already"));
    assert!(refused(join(7, 0, "")).contains("1 to 10000"));
    assert!(refused(LayoutChange::Replicas { count: 4 }).contains("3 members"));
    assert!(refused(LayoutChange::Replicas { count: 0 }).contains("use 1 or more"));
    let gone = layout
        .changed(&staged(vec![join(3, 100, ""), LayoutChange::Remove { name: "node-0".into() }]))
        .unwrap();
    assert!(gone.is_lost(NodeId::of_name("node-0")));
    let back = gone.changed(&staged(vec![join(0, 100, "")])).unwrap();
    assert!(!back.is_lost(NodeId::of_name("node-0")));
}
