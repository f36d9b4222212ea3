//! Amnesia: a replica that may have forgotten what it held answers no reads until it has asked enough others.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quorate_core::event::EventKind;
use quorate_core::recovery::has_recovered;
use quorate_core::{NodeId, PartitionId};

use crate::node::Node;
use crate::sync::sync;

/// The pause between looks: short at first, since at a cluster's first start all that is to be found is that nobody has
/// anything.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How often the node looks whether it has lost something while it ran.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Asks the others what this node may have forgotten: at its start, and when it finds records damaged.
pub(crate) async fn recover(node: Rc<Node>) {
    loop {
        if !node.shared.recovering().is_empty() {
            ask_until_recovered(&node).await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
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
    node.shared.mark_recovering(true);
    loop {
        for partition in node.shared.recovering() {
            let now = node.shared.losses(partition);
            // Who was asked before this loss was not asked for what it took.
            if losses.insert(partition, now) != Some(now) {
                merged.remove(&partition);
            }
        }
        let members: Vec<NodeId> = node.shared.layout.members().iter().map(|member| member.id).collect();
        for peer in members {
            if peer != node.shared.node() && node.is_live(peer) {
                merge_with(node, peer, &mut merged).await;
            }
        }
        for partition in node.shared.recovering() {
            if is_done(node, partition, merged.get(&partition)) {
                node.shared.has_recovered(partition, losses.get(&partition).copied().unwrap_or(0));
                // Should it lose something again, it asks again.
                merged.remove(&partition);
            }
        }
        if node.shared.recovering().is_empty() {
            node.shared.mark_recovering(false);
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
    let n = node.shared.layout.replicas();
    let open = |partition: &PartitionId| {
        let with = merged.get(partition).and_then(|merged| merged.get(&peer));
        with != Some(&false) && node.shared.layout.replicas_of(*partition, n).contains(&peer)
    };
    let partitions: Vec<PartitionId> = node.shared.recovering().into_iter().filter(open).collect();
    if partitions.is_empty() {
        return;
    }
    // As fast as it goes: until then this replica is missing.
    match sync(node, peer, &partitions, u64::MAX).await {
        Ok(synced) => {
            for partition in partitions {
                if !synced.unknown.contains(&partition) {
                    let recovering = synced.recovering.contains(&partition);
                    merged.entry(partition).or_default().insert(peer, recovering);
                }
            }
        }
        Err(error) => {
            let peer = node.shared.layout.name_of(peer);
            node.shared.emit(None, EventKind::RepairFailed { peer, reason: error.to_string() });
        }
    }
}

/// True if it has merged with enough others for each of the bucket sizes that it has a part in.
fn is_done(node: &Node, partition: PartitionId, merged: Option<&BTreeMap<NodeId, bool>>) -> bool {
    let shared = &node.shared;
    let none = BTreeMap::new();
    shared.sizes().into_iter().all(|n| {
        let replicas = shared.layout.replicas_of(partition, n);
        if !replicas.contains(&shared.node()) {
            return true;
        }
        let others: Vec<NodeId> =
            replicas.iter().copied().filter(|&replica| replica != shared.node()).collect();
        has_recovered(&others, shared.others_needed(n), merged.unwrap_or(&none))
    })
}
