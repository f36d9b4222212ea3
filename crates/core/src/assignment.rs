//! The assignment of partitions to nodes: loads by weight, replicas spread over zones, and as few
//! moves as possible.
//!
//! It is an exact minimum-cost flow: from the source to each partition, to the partition's part of
//! each zone, to a node, to the sink. A replica costs 1 unless the node held the partition before.
//! The capacity of a node's edge to the sink is the node's share. Greedy assignments are not
//! optimal: they may save one move now and need two later.
//!
//! Source: the idea of computing a layout as a flow is Garage's ("layout optimisation"); Dynamo
//! §6.2, strategy 3.

use xxhash_rust::xxh3::xxh3_64;

use crate::flow::Flow;
use crate::key::PartitionId;
use crate::member::{Member, NodeId};

/// Returns each partition's replicas in order, as positions in `members`. `previous` returns a
/// partition's replicas in the previous layout.
///
/// Guarantees:
/// - A partition's replicas are in as many zones as possible: all zones, or N of them.
/// - Every node holds its share by weight, rounded up or down. Where a zone's size does not allow
///   that, its nodes divide the zone's limit by weight. The numbers of partitions of which a node
///   is the first, second, … replica differ by at most one.
/// - No other assignment with such loads keeps more of the previous replicas.
///
/// `members` is sorted by id, has no repetitions, and has at least `replicas` entries.
pub(crate) fn assign(
    members: &[Member],
    partitions: u32,
    replicas: u8,
    previous: &dyn Fn(PartitionId) -> Vec<NodeId>,
) -> Vec<Vec<u16>> {
    assert!(replicas > 0 && members.len() >= replicas as usize);
    let nodes: Vec<NodeId> = members.iter().map(|member| member.id).collect();
    let before: Vec<Vec<NodeId>> = (0..partitions).map(|p| previous(PartitionId(p as u16))).collect();
    let every_node: Vec<Vec<u16>> =
        (0..partitions).map(|p| rendezvous_order(PartitionId(p as u16), &nodes)).collect();
    let zones = Zones::of(members, replicas);
    let shares = zones.shares(members, partitions, replicas);
    let moved = |p: usize, node: u16| i64::from(!before[p].contains(&nodes[node as usize]));
    let mut unordered = place(&every_node, i64::from(replicas), &shares, Some(&zones), &moved);

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
        for (p, chosen) in place(&unordered, 1, &shares, None, &displaced).into_iter().enumerate() {
            unordered[p].retain(|node| !chosen.contains(node));
            ordered[p].extend(chosen);
        }
    }
    ordered
}

/// Returns all nodes in an order that is pseudo-random but fixed for the partition. The first node
/// in this order that is no replica is the first fallback. The order also decides between nodes
/// that are equally good as replica. So the partitions of one node have their other replicas on
/// many nodes.
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

/// The zones of the nodes, and the number of replicas of one partition that each zone holds.
struct Zones {
    /// Zone of each node.
    zone_of: Vec<usize>,
    /// Minimum and maximum number of replicas of one partition, for each zone.
    bounds: Vec<(u64, u64)>,
}

impl Zones {
    fn of(members: &[Member], replicas: u8) -> Zones {
        let mut names: Vec<&str> = members.iter().map(|member| member.zone.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let zone_of: Vec<usize> = members
            .iter()
            .map(|member| {
                names.binary_search(&member.zone.as_str()).expect("every zone is in the list of names")
            })
            .collect();
        let mut sizes = vec![0u64; names.len()];
        zone_of.iter().for_each(|&zone| sizes[zone] += 1);
        // The zones share a partition's replicas as evenly as their sizes allow: each zone holds
        // `level` replicas, or one on each node if it has fewer nodes. Some zones hold one more.
        let taken = |level: u64| sizes.iter().map(|&size| size.min(level)).sum::<u64>();
        let mut level = 0;
        while taken(level + 1) <= u64::from(replicas) && level < u64::from(replicas) {
            level += 1;
        }
        let more = u64::from(taken(level) < u64::from(replicas));
        let bounds = sizes.iter().map(|&size| (size.min(level), size.min(level + more))).collect();
        Zones { zone_of, bounds }
    }

    /// Returns each node's share, by weight. The shares of a zone's nodes keep the zone's bounds,
    /// and no node gets more than one replica of each partition.
    fn shares(&self, members: &[Member], partitions: u32, replicas: u8) -> Vec<Share> {
        let all = f64::from(partitions);
        let weight = |node: usize| f64::from(members[node].weight);
        let of_zone = |zone: usize, scale: f64| -> f64 {
            let nodes = (0..members.len()).filter(|&node| self.zone_of[node] == zone);
            nodes.map(|node| (scale * weight(node)).min(all)).sum()
        };
        let zone_total = |zone: usize, scale: f64| {
            let (least, most) = self.bounds[zone];
            of_zone(zone, scale).clamp(least as f64 * all, most as f64 * all)
        };
        let zones = 0..self.bounds.len();
        let wanted = all * f64::from(replicas);
        let scale = solve(all, wanted, |scale| zones.clone().map(|zone| zone_total(zone, scale)).sum());
        let scales: Vec<f64> =
            zones.map(|zone| solve(all, zone_total(zone, scale), |scale| of_zone(zone, scale))).collect();
        let share = |node: usize| Share::around((scales[self.zone_of[node]] * weight(node)).min(all));
        (0..members.len()).map(share).collect()
    }
}

/// Finds the smallest scale at which `total(scale)` reaches `wanted`, by bisection. `total` must
/// not decrease as the scale grows.
fn solve(most: f64, wanted: f64, total: impl Fn(f64) -> f64) -> f64 {
    let (mut low, mut high) = (0.0, most);
    for _ in 0..200 {
        let middle = (low + high) / 2.0;
        if total(middle) < wanted { low = middle } else { high = middle }
    }
    high
}

/// Minimum and maximum number of replicas that a node holds.
#[derive(Clone, Copy)]
struct Share {
    least: u64,
    most: u64,
}

impl Share {
    fn of(total: u64, parts: u64) -> Share {
        Share { least: total / parts, most: total.div_ceil(parts) }
    }

    fn around(share: f64) -> Share {
        let whole = share.round();
        if (share - whole).abs() < 1e-6 {
            return Share { least: whole as u64, most: whole as u64 };
        }
        Share { least: share.floor() as u64, most: share.ceil() as u64 }
    }
}

/// Chooses `count` of each partition's candidates at the least cost. Every node gets its share, and
/// the replicas in every zone keep the zone's bounds.
fn place(
    candidates: &[Vec<u16>],
    count: i64,
    shares: &[Share],
    zones: Option<&Zones>,
    cost: &dyn Fn(usize, u16) -> i64,
) -> Vec<Vec<u16>> {
    let zones = zones.filter(|zones| zones.bounds.len() > 1);
    let partitions = candidates.len();
    let (source, sink) = (0, 1);
    let node_of = |node: u16| 2 + partitions + node as usize;
    let zone_count = zones.map_or(0, |zones| zones.bounds.len());
    let in_zone = |p: usize, zone: usize| 2 + partitions + shares.len() + p * zone_count + zone;
    let mut flow = Flow::new(2 + partitions + shares.len() + partitions * zone_count);
    // A replica above a node's minimum costs more than all moves together. A replica above a zone's
    // minimum costs more than all replicas above nodes' minimums. So all minimums are filled first.
    let above = partitions as i64 * count + 1;
    let above_zone = above * above;
    let mut choices = Vec::with_capacity(partitions);
    for (p, candidates) in candidates.iter().enumerate() {
        flow.edge(source, 2 + p, count, 0);
        for (zone, &(least, most)) in zones.iter().flat_map(|zones| zones.bounds.iter().enumerate()) {
            flow.edge(2 + p, in_zone(p, zone), least as i64, 0);
            flow.edge(2 + p, in_zone(p, zone), (most - least) as i64, above_zone);
        }
        let from = |node: u16| zones.map_or(2 + p, |zones| in_zone(p, zones.zone_of[node as usize]));
        let edges: Vec<_> = candidates
            .iter()
            .map(|&node| (node, flow.edge(from(node), node_of(node), 1, cost(p, node))))
            .collect();
        choices.push(edges);
    }
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
