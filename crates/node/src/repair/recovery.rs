//! Amnesia: a replica that may have forgotten what it held answers no reads until it has asked enough others.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use quorate_core::event::EventKind;
use quorate_core::layout_change::Layouts;
use quorate_core::recovery::has_recovered;
use quorate_core::{NodeId, PartitionId};

use super::merkle_sync::{Direction, sync};
use crate::membership::layout_exchange::agree;
use crate::node::Node;

/// The pause between looks: short at first, since at a cluster's first start all that is to be found is that nobody has
/// anything.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How often the node looks whether it has lost something while it ran.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Asks the others what this node may have forgotten: at its start, and when it finds records damaged.
pub(crate) async fn run(node: Rc<Node>) {
    ask_about_layouts(&node).await;
    loop {
        if !node.shared.view().removed {
            if !node.shared.recovering().is_empty() {
                ask_until_recovered(&node).await;
            }
            node.shared.recovery.start_is_recovered();
        }
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

/// A node that has forgotten everything has forgotten who the members are, too: before it takes anything from anybody it
/// compares what it knows of layouts with more than half of those whom it takes for members. Somebody who was taken out,
/// and does not know it yet, could otherwise give it back what was deleted meanwhile.
async fn ask_about_layouts(node: &Rc<Node>) {
    let mut agreed: BTreeSet<NodeId> = BTreeSet::from([node.shared.node()]);
    while !node.shared.recovery.are_layouts_confirmed() {
        for peer in node.shared.view().participants.clone() {
            if !agreed.contains(&peer) && node.is_live(peer) && agree(node, peer).await.is_ok() {
                agreed.insert(peer);
            }
        }
        let participants = node.shared.view().participants.clone();
        let known = participants.iter().filter(|peer| agreed.contains(peer)).count();
        if known * 2 > participants.len() {
            return node.shared.recovery.confirm_layouts();
        }
        tokio::time::sleep(FIRST_PAUSE).await;
    }
}

/// Asks the others until every partition has recovered.
async fn ask_until_recovered(node: &Rc<Node>) {
    let partitions = node.shared.recovering().len();
    node.shared.emit(None, EventKind::Recovering { partitions });
    // Per partition: whom this node has merged with since its start, and whether they were recovering then.
    let mut merged: BTreeMap<PartitionId, BTreeMap<NodeId, bool>> = BTreeMap::new();
    let mut losses: BTreeMap<PartitionId, u64> = BTreeMap::new();
    let mut pause = FIRST_PAUSE;
    node.shared.mark_recovering();
    loop {
        for partition in node.shared.recovering() {
            let now = node.shared.recovery.losses(partition);
            // Who was asked before this loss was not asked for what it took.
            if losses.insert(partition, now) != Some(now) {
                merged.remove(&partition);
            }
        }
        for peer in node.shared.view().participants.clone() {
            if peer != node.shared.node() && node.is_live(peer) {
                merge_with(node, peer, &mut merged).await;
            }
        }
        for partition in node.shared.recovering() {
            if is_done(node, partition, merged.get(&partition)) {
                node.shared.recovery.recovered(partition, losses.get(&partition).copied().unwrap_or(0));
                // Should it lose something again, it asks again.
                merged.remove(&partition);
            }
        }
        if node.shared.recovering().is_empty() {
            node.shared.unmark_recovering();
            return node.shared.emit(None, EventKind::Recovered { partitions });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn merge_with(
    node: &Rc<Node>,
    peer: NodeId,
    merged: &mut BTreeMap<PartitionId, BTreeMap<NodeId, bool>>,
) {
    let view = node.shared.view();
    let open = |partition: &PartitionId| {
        let with = merged.get(partition).and_then(|merged| merged.get(&peer));
        with != Some(&false) && view.holds(peer, *partition)
    };
    let partitions: Vec<PartitionId> = node.shared.recovering().into_iter().filter(open).collect();
    drop(view);
    // Layouts are what it may have forgotten, too.
    if partitions.is_empty() || agree(node, peer).await.is_err() {
        return;
    }
    // As fast as it goes: until then this replica is missing.
    match sync(node, peer, &partitions, Direction::Pull, u64::MAX).await {
        Ok(synced) => {
            for partition in partitions {
                if !synced.unknown.contains(&partition) {
                    let recovering = synced.recovering.contains(&partition);
                    merged.entry(partition).or_default().insert(peer, recovering);
                }
            }
        }
        Err(error) => {
            let peer = node.shared.view().name_of(peer);
            node.shared.emit(None, EventKind::RepairFailed { peer, reason: error.to_string() });
        }
    }
}

/// True if it has merged with enough others, in every active layout, for each of the bucket sizes that it has a part in.
fn is_done(node: &Node, partition: PartitionId, merged: Option<&BTreeMap<NodeId, bool>>) -> bool {
    let shared = &node.shared;
    let none = BTreeMap::new();
    let view = shared.view();
    // What moves to this node it must copy before it knows anything of it: others to which it moves may not have it yet.
    // And what a bucket has, whose replicas change, is on its way.
    let unknown =
        |layouts: &Layouts| layouts.has_to_copy(partition) || !layouts.redefined_buckets().is_empty();
    if shared.layouts.with(unknown) {
        return false;
    }
    let layouts = view.active.iter().flat_map(|layout| shared.sizes().into_iter().map(move |n| (layout, n)));
    layouts.into_iter().all(|(layout, n)| {
        let replicas = layout.replicas_of(partition, n);
        if !replicas.contains(&shared.node()) {
            return true;
        }
        let other = |replica: &NodeId| *replica != shared.node() && view.is_participant(*replica);
        let others: Vec<NodeId> = replicas.iter().copied().filter(other).collect();
        has_recovered(&others, shared.others_needed(n, layout.replicas()), merged.unwrap_or(&none))
    })
}
