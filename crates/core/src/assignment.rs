//! Which nodes hold which partitions: even load, and the fewest moves that allow it.
//!
//! An exact minimum-cost flow (partition → node, capacity 1, cost 1 unless the node held the partition before; node →
//! sink, its share). Greedy assignments get stuck: they trade a move now for two later.
//!
//! Source: the idea of computing a layout as a flow is Garage's ("layout optimisation"); Dynamo §6.2, strategy 3.

use xxhash_rust::xxh3::xxh3_64;

use crate::flow::Flow;
use crate::key::PartitionId;
use crate::layout::NodeId;

/// For every partition its replicas in order, as positions in `nodes`. `previous` gives a partition's replicas so far.
///
/// Guarantees: every node holds ⌊share⌋ or ⌈share⌉ partitions, also as first, second, … replica; and no assignment of
/// such loads keeps more of the previous replicas.
///
/// `nodes` is sorted, has no repetitions, and at least `replicas` entries.
pub(crate) fn assign(
    nodes: &[NodeId],
    partitions: u32,
    replicas: u8,
    previous: &dyn Fn(PartitionId) -> Vec<NodeId>,
) -> Vec<Vec<u16>> {
    assert!(replicas > 0 && nodes.len() >= replicas as usize);
    let before: Vec<Vec<NodeId>> = (0..partitions).map(|p| previous(PartitionId(p as u16))).collect();
    let every_node: Vec<Vec<u16>> =
        (0..partitions).map(|p| rendezvous_order(PartitionId(p as u16), nodes)).collect();
    let shares =
        vec![Share::of(u64::from(partitions) * u64::from(replicas), nodes.len() as u64); nodes.len()];
    let moved = |p: usize, node: u16| i64::from(!before[p].contains(&nodes[node as usize]));
    let mut unordered = place(&every_node, i64::from(replicas), &shares, &moved);

    let mut ordered: Vec<Vec<u16>> = vec![Vec::with_capacity(replicas as usize); partitions as usize];
    for position in 0..replicas as usize {
        let mut left = vec![0u64; nodes.len()];
        for &node in unordered.iter().flatten() {
            left[node as usize] += 1;
        }
        let positions_left = u64::from(replicas) - position as u64;
        let shares: Vec<Share> = left.iter().map(|&left| Share::of(left, positions_left)).collect();
        let displaced =
            |p: usize, node: u16| i64::from(before[p].get(position) != Some(&nodes[node as usize]));
        for (p, chosen) in place(&unordered, 1, &shares, &displaced).into_iter().enumerate() {
            unordered[p].retain(|node| !chosen.contains(node));
            ordered[p].extend(chosen);
        }
    }
    ordered
}

/// All nodes in the pseudo-random order of a partition: who steps in first, and who is preferred among equals, so that
/// partitions of one node have their other replicas on many nodes.
pub(crate) fn rendezvous_order(partition: PartitionId, nodes: &[NodeId]) -> Vec<u16> {
    let mut order: Vec<u16> = (0..nodes.len() as u16).collect();
    order.sort_by_cached_key(|&node| {
        let mut name = [0; 10];
        name[..2].copy_from_slice(&partition.0.to_be_bytes());
        name[2..].copy_from_slice(&nodes[node as usize].0.to_be_bytes());
        (xxh3_64(&name), node)
    });
    order
}

/// How many a node must take, and how many it may.
#[derive(Clone, Copy)]
struct Share {
    least: u64,
    most: u64,
}

impl Share {
    fn of(total: u64, parts: u64) -> Share {
        Share { least: total / parts, most: total.div_ceil(parts) }
    }
}

/// Chooses `count` of each partition's candidates such that every node gets its share, at the least cost.
fn place(
    candidates: &[Vec<u16>],
    count: i64,
    shares: &[Share],
    cost: &dyn Fn(usize, u16) -> i64,
) -> Vec<Vec<u16>> {
    let partitions = candidates.len();
    let (source, sink) = (0, 1);
    let node_of = |node: u16| 2 + partitions + node as usize;
    let mut flow = Flow::new(2 + partitions + shares.len());
    let mut choices = Vec::with_capacity(partitions);
    for (p, candidates) in candidates.iter().enumerate() {
        flow.edge(source, 2 + p, count, 0);
        let edges: Vec<_> = candidates
            .iter()
            .map(|&node| (node, flow.edge(2 + p, node_of(node), 1, cost(p, node))))
            .collect();
        choices.push(edges);
    }
    // Going above the least share costs more than all moves together: so every node gets its least first.
    let above = partitions as i64 * count + 1;
    for (node, share) in shares.iter().enumerate() {
        flow.edge(node_of(node as u16), sink, share.least as i64, 0);
        flow.edge(node_of(node as u16), sink, (share.most - share.least) as i64, above);
    }
    let placed = flow.run(source, sink);
    assert_eq!(placed, partitions as i64 * count, "shares and candidates always allow a full assignment");
    choices
        .into_iter()
        .map(|edges| {
            edges.into_iter().filter(|(_, edge)| flow.through(*edge) > 0).map(|(node, _)| node).collect()
        })
        .collect()
}
