//! Recovery: a replica that may have forgotten records answers no reads until it has merged with
//! enough others.

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

/// First pause between two rounds of merges with all other nodes. It is short, because the nodes of
/// a new cluster are all empty and recover in one round.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause between two rounds of merges. The pause doubles after each round.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Time between two checks for partitions that must recover, because a damaged record was found.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Fetches from other nodes the records that this node may have forgotten, and merges them. It does
/// so at the node's start, and when the node finds a damaged record. Runs until the node stops.
pub(crate) async fn run(node: Rc<Node>) {
    confirm_layouts(&node).await;
    loop {
        if !node.shared.view().removed {
            if !node.shared.recovering().is_empty() {
                merge_until_recovered(&node).await;
            }
            node.shared.recovery.start_is_recovered();
        }
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

/// Compares layouts with more than half of the participants, before this node accepts anything from
/// a peer.
///
/// A node that lost its data may have lost its layouts too. It could then accept records from a
/// removed node that does not know of its removal. The cluster may have deleted them since.
async fn confirm_layouts(node: &Rc<Node>) {
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

/// Merges with other nodes until every partition has recovered.
async fn merge_until_recovered(node: &Rc<Node>) {
    let partitions = node.shared.recovering().len();
    node.shared.emit(None, EventKind::Recovering { partitions });
    // Per partition: the nodes that this node has merged with. The value is true if the other node
    // was recovering at that time.
    let mut merged: BTreeMap<PartitionId, BTreeMap<NodeId, bool>> = BTreeMap::new();
    let mut losses: BTreeMap<PartitionId, u64> = BTreeMap::new();
    let mut pause = FIRST_PAUSE;
    node.shared.mark_recovering();
    loop {
        for partition in node.shared.recovering() {
            let now = node.shared.recovery.losses(partition);
            // If a record was lost since the last round, the earlier merges did not restore it. So
            // they no longer count.
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
            if is_recovered(node, partition, merged.get(&partition)) {
                node.shared.recovery.recovered(partition, losses.get(&partition).copied().unwrap_or(0));
                // If this node loses another record of the partition, these merges must not count.
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

/// Merges a peer's records into this node's recovering partitions. Leaves out partitions that were
/// merged with this peer completely, unless the peer was recovering then.
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
    // This node may have lost its layouts too: compare them with the peer first.
    if partitions.is_empty() || agree(node, peer).await.is_err() {
        return;
    }
    // Without a limit of keys per second, because this replica answers no reads until it has
    // recovered.
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

/// True if this node has merged with enough other replicas of the partition, in every active layout
/// and for every n for which this node is a replica.
fn is_recovered(node: &Node, partition: PartitionId, merged: Option<&BTreeMap<NodeId, bool>>) -> bool {
    let shared = &node.shared;
    let none = BTreeMap::new();
    let view = shared.view();
    // A partition that this node gains must first be copied from its old replicas. Merging with its
    // new replicas is not enough, because they may not have copied it yet either. For the same
    // reason, a bucket whose n or quorums change must first be backfilled.
    let must_copy =
        |layouts: &Layouts| layouts.has_to_copy(partition) || !layouts.redefined_buckets().is_empty();
    if shared.layouts.with(must_copy) {
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
