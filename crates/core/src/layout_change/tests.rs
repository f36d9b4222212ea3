use std::collections::BTreeSet;

use crate::change::{LayoutChange, StagedChange};
use crate::layout::Layout;
use crate::member::{Member, NodeId};

use super::layouts::Layouts;
use super::phase::{NextStep, Phase};
use super::summary::LayoutSummary;

fn members(count: usize) -> Vec<Member> {
    (0..count).map(|n| Member::new(&format!("n{n}"), &format!("h:{n}"), "")).collect()
}

fn id(n: usize) -> NodeId {
    NodeId::of_name(&format!("n{n}"))
}

fn cluster(count: usize, known: usize) -> Vec<Layouts> {
    let first = Layout::first(members(count), 16, 3).unwrap();
    (0..known).map(|n| Layouts::settled(id(n), first.clone())).collect()
}

fn staged(id: u64, change: LayoutChange) -> StagedChange {
    StagedChange { id, change }
}

fn join(name: &str) -> LayoutChange {
    LayoutChange::Join { name: name.into(), address: "h:9".into(), zone: String::new(), weight: 100 }
}

/// Exchanges the layouts of all pairs of nodes. A node that learns of a newer layout stores it.
fn exchange(nodes: &mut [Layouts]) {
    for from in 0..nodes.len() {
        for to in 0..nodes.len() {
            let theirs = Layouts::decode(id(to), &nodes[from].encode()).unwrap();
            nodes[to].absorb(&theirs, true);
            if nodes[to].local_phase() == Phase::Unaware {
                nodes[to].advance();
            }
        }
    }
}

/// No node enters a phase before all nodes are in the previous phase. The reads of a node move once
/// to the new layout. Writes need acks in both layouts from before that move until after it.
#[test]
fn a_change_goes_through_all_phases_together() {
    let mut nodes = cluster(3, 4);
    nodes[0].stage(staged(1, join("n3"))).unwrap();
    nodes[0].commit(None).unwrap();
    nodes[0].advance();
    let mut reads = vec![1];
    for _ in 0..50 {
        exchange(&mut nodes);
        let least = nodes.iter().map(|node| node.local_phase()).min().unwrap();
        for node in &mut nodes {
            let view = node.view();
            reads.push(view.read.number());
            let written: Vec<u64> = view.pending_write_layouts.iter().map(|layout| layout.number()).collect();
            match node.local_phase() {
                Phase::Known | Phase::Acked | Phase::Synced if !view.is_settled() => {
                    assert!(written.len() == 1 || view.cluster_phase < Phase::Known, "{view:?}");
                }
                _ => {}
            }
            assert!(node.local_phase() <= Phase::ALL[(least as usize + 1).min(6)]);
            if node.next_step() != NextStep::Idle {
                node.advance();
            }
        }
    }
    assert!(nodes.iter().all(|node| node.view().is_settled() && node.newest().number() == 2));
    assert_eq!(nodes[0].staged(), []);
    reads.dedup();
    assert!(reads.windows(2).filter(|pair| pair[1] < pair[0]).count() <= nodes.len());
}

/// A dead member keeps all others in the first phase, where nothing has changed yet. The others
/// continue once the dead member's disk is declared lost.
#[test]
fn a_dead_member_is_waited_for_until_it_is_declared_lost() {
    let mut all = cluster(4, 4);
    let mut nodes = all.split_off(1);
    nodes[0].stage(staged(1, LayoutChange::Weight { name: "n2".into(), weight: 200 })).unwrap();
    nodes[0].commit(None).unwrap();
    nodes[0].advance();
    let turn = |nodes: &mut [Layouts]| {
        for from in 0..nodes.len() {
            for to in 0..nodes.len() {
                let theirs = nodes[from].clone();
                nodes[to].absorb(&theirs, true);
                if nodes[to].local_phase() == Phase::Unaware || nodes[to].next_step() != NextStep::Idle {
                    nodes[to].advance();
                }
            }
        }
    };
    (0..20).for_each(|_| turn(&mut nodes));
    assert!(
        nodes
            .iter()
            .all(|node| node.local_phase() == Phase::Known && node.view().pending_write_layouts.is_empty())
    );
    nodes[1].stage(staged(2, LayoutChange::Remove { name: "n0".into() })).unwrap();
    nodes[1].commit(None).unwrap();
    nodes[1].advance();
    (0..40).for_each(|_| turn(&mut nodes));
    assert!(nodes.iter().all(|node| node.view().is_settled() && node.newest().number() == 3));
    // The removed node learns of its removal, and does not serve its records.
    let theirs = nodes[0].clone();
    assert!(all[0].clone().absorb(&theirs, false) && all[0].absorb(&theirs, true) && all[0].removed());
}

/// Two layouts have the same number. Every node keeps the same one of the two, in any order of
/// messages, and stages the changes of the other one again.
#[test]
fn one_of_two_rival_layouts_stays_and_the_other_is_staged_again() {
    for order in [[0, 1], [1, 0]] {
        let mut nodes = cluster(4, 4);
        nodes[0].stage(staged(1, LayoutChange::Weight { name: "n1".into(), weight: 200 })).unwrap();
        nodes[3].stage(staged(2, LayoutChange::Leave { name: "n2".into() })).unwrap();
        for node in [0, 3] {
            nodes[node].commit(None).unwrap();
            nodes[node].advance();
        }
        for at in order {
            let rival = [0, 3][at];
            for to in [1, 2] {
                let theirs = nodes[rival].clone();
                nodes[to].absorb(&theirs, true);
            }
        }
        (0..3).for_each(|_| exchange(&mut nodes));
        let digests: BTreeSet<u64> = nodes.iter().map(|node| node.newest().digest()).collect();
        assert_eq!(digests.len(), 1);
        for node in &nodes {
            assert_eq!(node.staged().len(), 1);
            assert_ne!(node.staged()[0].id, node.newest().changes()[0].id);
        }
    }
}

/// Exchanges layouts and advances the nodes until the change has ended on all of them.
fn settle(nodes: &mut [Layouts]) {
    for _ in 0..60 {
        exchange(nodes);
        nodes.iter_mut().filter(|node| node.next_step() != NextStep::Idle).for_each(Layouts::advance);
    }
    let first = nodes[0].newest().digest();
    assert!(nodes.iter().all(|node| node.view().is_settled() && node.newest().digest() == first));
}

fn weight(name: &str, weight: u16) -> LayoutChange {
    LayoutChange::Weight { name: name.into(), weight }
}

/// The nodes make a change that an absent node has staged too, under another number. When the
/// absent node returns, its change is not staged on the other nodes. It would block every other
/// change.
#[test]
fn a_change_that_others_made_is_not_staged_any_more() {
    let mut nodes = cluster(5, 5);
    nodes[0].stage(staged(1, LayoutChange::Leave { name: "n3".into() })).unwrap();
    nodes[0].stage(staged(2, weight("n1", 200))).unwrap();
    let away = nodes.remove(0);
    nodes[0].stage(staged(3, LayoutChange::Leave { name: "n3".into() })).unwrap();
    nodes[0].commit(None).unwrap();
    nodes[0].advance();
    exchange(&mut nodes);
    nodes.insert(0, away);
    exchange(&mut nodes);
    let waits = [staged(2, weight("n1", 200))];
    nodes.iter().for_each(|node| assert_eq!((node.newest().number(), node.staged()), (2, waits.to_vec())));
    // The change does not return either once n3 is a member again.
    settle(&mut nodes);
    nodes[2].stage(staged(4, join("n3"))).unwrap();
    nodes[2].commit(None).unwrap();
    nodes[2].advance();
    settle(&mut nodes);
    nodes.iter().for_each(|node| assert_eq!((node.newest().number(), node.staged()), (3, vec![])));
    assert!(nodes[0].newest().member(id(3)).is_some());
}

/// A layout may make a staged change impossible. If that layout loses to another one, the change
/// stays staged. So does a change that was staged after the losing layout, and depends on it.
#[test]
fn a_change_that_a_losing_layout_ruled_out_stays_staged() {
    let mut lost = 0;
    for value in 101..117 {
        let mut nodes = cluster(4, 5);
        nodes[0].stage(staged(1, weight("n3", 200))).unwrap();
        exchange(&mut nodes);
        nodes[0]
            .commit_only(&[staged(2, LayoutChange::Leave { name: "n3".into() }), staged(3, join("n4"))])
            .unwrap();
        nodes[0].advance();
        nodes[0].stage(staged(4, weight("n4", 50))).unwrap();
        nodes[1].commit_only(&[staged(5, weight("n2", value))]).unwrap();
        nodes[1].advance();
        // The nodes that keep one layout learn of it before the node that made the other one does.
        for (to, from) in [(2, 1), (2, 0), (1, 0), (1, 2), (3, 2), (3, 0), (1, 3), (2, 3), (4, 0), (1, 4)] {
            let theirs = nodes[from].clone();
            nodes[to].absorb(&theirs, true);
        }
        exchange(&mut nodes);
        let stays: Vec<u64> = nodes[0].newest().changes().iter().map(|staged| staged.id).collect();
        let expected = if stays == [5] { vec![1, 2, 3, 4] } else { vec![4, 5] };
        lost += usize::from(stays == [5]);
        settle(&mut nodes);
        for node in &nodes {
            let staged: Vec<u64> = node.staged().iter().map(|staged| staged.id).collect();
            assert_eq!(staged, expected, "{value}");
        }
    }
    assert!((1..16).contains(&lost), "{lost} of 16: both must happen");
}

/// A node keeps one of two layouts, and receives a change that was staged after the losing one.
/// Then it learns that all nodes know the layout that it keeps. It must not withdraw the change
/// before it has received the changes of the losing layout, on which the change depends.
#[test]
fn a_change_staged_on_a_losing_layout_is_not_withdrawn() {
    let mut raced = 0;
    for value in 101..117 {
        let mut nodes = cluster(4, 4);
        nodes[0].commit_only(&[staged(3, join("n4"))]).unwrap();
        nodes[0].advance();
        nodes[0].stage(staged(4, weight("n4", 50))).unwrap();
        nodes[1].commit_only(&[staged(5, weight("n2", value))]).unwrap();
        nodes[1].advance();
        if nodes[1].newest().digest() < nodes[0].newest().digest() {
            continue;
        }
        raced += 1;
        for (to, from) in [(2, 1), (3, 1), (2, 0), (0, 1)] {
            let theirs = nodes[from].clone();
            nodes[to].absorb(&theirs, true);
            if nodes[to].local_phase() == Phase::Unaware {
                nodes[to].advance();
            }
        }
        for from in [0, 1, 3] {
            let news = nodes[from].summary();
            nodes[2].merge_summary(&news);
        }
        assert!(nodes[2].cluster_phase() >= Phase::Known);
        exchange(&mut nodes);
        for node in &nodes {
            assert_eq!(node.staged(), [staged(3, join("n4")), staged(4, weight("n4", 50))], "{value}");
        }
    }
    assert!(raced > 0);
}

/// Two changes have the same number. Every node keeps the same one.
#[test]
fn changes_of_one_number_are_not_swapped_for_ever() {
    let mut nodes = cluster(3, 2);
    nodes[0].stage(staged(1, weight("n0", 50))).unwrap();
    nodes[1].stage(staged(1, weight("n1", 60))).unwrap();
    exchange(&mut nodes);
    assert_eq!(nodes[0].staged(), nodes[1].staged());
    let before = nodes.clone();
    exchange(&mut nodes);
    assert!(before == nodes);
}

/// A caller that did not receive the answer repeats the request, perhaps at a node that does not
/// know the change. The change is made once.
#[test]
fn a_change_that_is_asked_for_again_is_made_once() {
    let leave = [staged(1, LayoutChange::Leave { name: "n3".into() })];
    let mut nodes = cluster(4, 4);
    assert_eq!(nodes[0].commit_only(&leave), Ok(true));
    nodes[0].advance();
    assert_eq!(nodes[0].commit_only(&leave), Ok(false));
    let theirs = nodes[0].clone();
    nodes[1].absorb(&theirs, true);
    assert_eq!(nodes[1].commit_only(&leave), Ok(false));
    assert_eq!(nodes[2].commit_only(&leave), Ok(true));
    nodes[2].advance();
    exchange(&mut nodes);
    settle(&mut nodes);
    nodes.iter().for_each(|node| assert_eq!((node.newest().number(), node.staged()), (2, vec![])));
    // A repeated commit of a plan and a repeated stage have no effect either.
    nodes[1].stage(staged(2, join("n3"))).unwrap();
    nodes[1].stage(staged(2, join("n3"))).unwrap();
    assert!(nodes[1].stage(staged(2, join("n4"))).is_err(), "the number is another change's");
    let plan = nodes[1].plan().unwrap().digest();
    assert_eq!((nodes[1].commit(Some(plan)), nodes[1].commit(Some(plan))), (Ok(true), Ok(false)));
    nodes[1].stage(staged(2, join("n3"))).unwrap();
    assert_eq!(nodes[1].staged(), []);
}

/// A node may forget several older layouts at once. The changes that made them are not staged
/// again.
#[test]
fn changes_of_several_layouts_are_not_staged_again() {
    let mut nodes = cluster(3, 3);
    for weight in 101..104 {
        nodes[0]
            .stage(staged(u64::from(weight), LayoutChange::Weight { name: "n1".into(), weight }))
            .unwrap();
        nodes[0].commit(None).unwrap();
        nodes[0].advance();
    }
    nodes[0].forget_before(2);
    assert_eq!((nodes[0].active().len(), nodes[0].staged()), (2, vec![]));
}

/// A change is reverted by a third layout while it is under way. The second layout is never read.
#[test]
fn a_third_layout_overtakes_the_second() {
    let mut nodes = cluster(4, 4);
    nodes[0].stage(staged(1, LayoutChange::Leave { name: "n3".into() })).unwrap();
    nodes[0].commit(None).unwrap();
    nodes[0].advance();
    for _ in 0..3 {
        exchange(&mut nodes);
        nodes
            .iter_mut()
            .filter(|node| node.next_step() == NextStep::DrainRequests)
            .for_each(Layouts::advance);
    }
    assert!(nodes.iter().all(|node| node.local_phase() == Phase::Acked));
    nodes[1].stage(staged(2, join("n3"))).unwrap();
    nodes[1].commit(None).unwrap();
    nodes[1].advance();
    for _ in 0..40 {
        exchange(&mut nodes);
        for node in &mut nodes {
            let view = node.view();
            assert_ne!(view.read.number(), 2);
            assert!(
                view.is_settled()
                    || view.cluster_phase >= Phase::Reading
                    || view.pending_write_layouts.iter().any(|l| l.number() == 2)
            );
            if node.next_step() != NextStep::Idle {
                node.advance();
            }
        }
    }
    assert!(nodes.iter().all(|node| node.view().is_settled() && node.newest().number() == 3));
    assert!(nodes[2].newest().member(id(3)).is_some());
}

/// Node n0 commits a layout that no other node learns, and the others declare n0's disk lost. The
/// layout of n0 then has no effect, even if its digest is the larger one.
///
/// If n0 returns with its old data, it counts as removed, even if it was made a member again. With
/// an empty disk it is a member.
#[test]
fn a_node_declared_lost_changes_nothing_any_more() {
    for weight in 101..109 {
        let mut all = cluster(4, 4);
        all[0].stage(staged(9, LayoutChange::Weight { name: "n1".into(), weight })).unwrap();
        all[0].commit(None).unwrap();
        all[0].advance();
        let mut nodes = all.split_off(1);
        nodes[0].stage(staged(1, LayoutChange::Remove { name: "n0".into() })).unwrap();
        nodes[0].commit(None).unwrap();
        nodes[0].advance();
        for _ in 0..3 {
            exchange(&mut nodes);
            nodes
                .iter_mut()
                .filter(|node| node.next_step() == NextStep::DrainRequests)
                .for_each(Layouts::advance);
        }
        let theirs = all[0].clone();
        nodes[1].absorb(&theirs, true);
        assert!(nodes[1].newest().is_lost(id(0)), "the layout that all nodes know stays");
        nodes[2].stage(staged(3, join("n0"))).unwrap();
        nodes[2].commit(None).unwrap();
        nodes[2].advance();
        let theirs = nodes[2].clone();
        let mut empty = all[0].clone();
        assert!(empty.absorb(&theirs, false) && !empty.removed());
        assert!(all[0].absorb(&theirs, true) && all[0].removed() && all[0].next_step() == NextStep::Idle);
    }
}

/// Bytes from a peer or a disk are decoded or refused, and never cause a panic.
#[test]
fn encodings_round_trip_and_truncations_are_errors() {
    let mut nodes = cluster(3, 1);
    nodes[0].stage(staged(5, join("n3"))).unwrap();
    nodes[0].commit(None).unwrap();
    nodes[0].advance();
    nodes[0].stage(staged(6, LayoutChange::Replicas { count: 4 })).unwrap();
    let bytes = nodes[0].encode();
    assert_eq!(Layouts::decode(id(0), &bytes).unwrap(), nodes[0]);
    for end in 0..bytes.len() {
        assert!(Layouts::decode(id(0), &bytes[..end]).is_err());
    }
    let news = nodes[0].summary();
    assert_eq!(LayoutSummary::decode(&news.encode()).unwrap(), news);
}
