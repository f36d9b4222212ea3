//! Reports about this node and the cluster, for people, scripts and metrics.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use quorate_core::key::end_of_prefix;
use quorate_core::layout::Load;
use quorate_core::layout_change::Phase;
use quorate_core::member::Member;
use quorate_core::membership::MemberState;
use quorate_core::report::{
    ChangeReport, ClusterMember, ClusterReport, HintStatus, MemberStatus, PastLayout, PlanNode, PlanReport,
    RepairStatus, Status, TombstoneGcStatus,
};
use quorate_core::storage::Range;
use quorate_core::{Layout, NodeId, PartitionId, RequestError, StorageKey};

use crate::membership::gossip;
use crate::node::Node;
use crate::state::shared::Shared;

/// Largest number of past layouts that a report shows.
const SHOWN_HISTORY: usize = 100;

/// Largest number of partitions whose size is measured for a plan.
const SAMPLED_PARTITIONS: usize = 16;
/// Largest number of bytes that are read of each measured partition.
const SAMPLED_BYTES: usize = 4 * 1024 * 1024;

/// The state of the tasks that run without a client, for metrics and `status`.
#[derive(Clone, Debug)]
pub struct Upkeep {
    /// The hints that this node keeps, by target.
    pub hints_for: Vec<HintStatus>,
    /// The number of partitions of which this node may have forgotten records.
    pub recovering: usize,
    /// The reason why the node coordinates no writes, if its clock is wrong.
    pub clock_problem: Option<String>,
    /// Milliseconds by which this node's clock is ahead of its peers' clocks (the median over the
    /// peers). Negative: behind.
    pub clock_ahead_ms: i64,
    /// The state of anti-entropy.
    pub repair: RepairStatus,
    /// The state of tombstone collection.
    pub tombstone_gc: TombstoneGcStatus,
    /// Number of clients' requests that are being served.
    pub in_flight: usize,
}

/// Reports the state of the tasks that run without a client.
pub fn upkeep(shared: &Shared) -> Upkeep {
    let now_ms = shared.environment.wall_ms();
    Upkeep {
        hints_for: shared.hints.report(now_ms, |node| shared.view().name_of(node)),
        recovering: shared.recovering().len(),
        clock_problem: shared.clock_problem(),
        clock_ahead_ms: shared.clock_guard.ahead_ms(),
        repair: repair_status(shared),
        tombstone_gc: tombstone_gc_status(shared),
        in_flight: shared.progress.in_flight.load(Ordering::Relaxed),
    }
}

/// Reports the progress of anti-entropy.
pub(crate) fn repair_status(shared: &Shared) -> RepairStatus {
    let progress = shared.progress.repair();
    let now = shared.environment.monotonic_ms();
    let ago = progress.last_ended_ms.map(|ended| now.saturating_sub(ended));
    RepairStatus { last_round_ago_ms: ago, ..progress.status.clone() }
}

/// Reports the progress of tombstone collection.
fn tombstone_gc_status(shared: &Shared) -> TombstoneGcStatus {
    let layout = shared.view().read.clone();
    let ours = |p: &PartitionId| layout.replicas_of(*p, 1).first() == Some(&shared.node());
    let partitions = shared.all_partitions().filter(ours);
    let waiting = partitions.map(|p| shared.trees.count_tombstones(p) as u64).sum();
    let progress = shared.progress.tombstone_gc();
    TombstoneGcStatus { waiting, collected: progress.collected, blocked_by: progress.blocked_by.clone() }
}

/// Reports the node's view of the cluster.
pub(crate) fn status(node: &Node) -> Status {
    let shared = &node.shared;
    let view = shared.view();
    let layout = view.newest();
    let states: BTreeMap<NodeId, MemberState> =
        gossip::view(shared).into_iter().map(|view| (view.member.id, view.state)).collect();
    let leaving = view.active.iter().flat_map(|layout| layout.members());
    let leaving = leaving.filter(|member| layout.member(member.id).is_none());
    let leaving: BTreeMap<NodeId, &Member> = leaving.map(|member| (member.id, member)).collect();
    let members = layout.members().iter().chain(leaving.into_values()).map(|member| {
        let Load { partitions, first } = layout.load_of(member.id);
        let suspected = states.get(&member.id) == Some(&MemberState::Suspected);
        let state = match (node.is_live(member.id), suspected) {
            (true, _) => "up",
            (false, true) => "down, suspected by all",
            (false, false) => "down",
        };
        MemberStatus {
            name: member.name.clone(),
            address: node.transport.address(member.id).unwrap_or_else(|| member.address.clone()),
            zone: member.zone.clone(),
            state: state.to_owned(),
            partitions,
            first,
            last_error: node.transport.last_error(member.id),
        }
    });
    let upkeep = upkeep(shared);
    Status {
        node: shared.identity.name.clone(),
        cluster: shared.identity.cluster.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        layout: layout.number(),
        layout_digest: format!("{:016x}", layout.digest()),
        partitions: layout.partitions(),
        replicas: layout.replicas(),
        storage: shared.storage_name.clone(),
        uptime_ms: shared.uptime_ms(),
        hints: upkeep.hints_for.iter().map(|hints| hints.hints).sum(),
        hints_for: upkeep.hints_for,
        recovering: upkeep.recovering as u32,
        clock_problem: upkeep.clock_problem,
        repair: upkeep.repair,
        tombstone_gc: upkeep.tombstone_gc,
        change: change_report(node),
        removed: view.removed,
        members: members.collect(),
    }
}

/// Reports members, staged changes, and the progress of the layout change under way.
pub(crate) fn cluster(node: &Node) -> ClusterReport {
    let shared = &node.shared;
    let layouts = shared.layouts.known();
    let view = shared.view();
    let newest = layouts.newest();
    let mut members: BTreeMap<String, ClusterMember> = BTreeMap::new();
    let mut add = |member: &Member, role: &str| {
        let Load { partitions, first } = newest.load_of(member.id);
        let entry = ClusterMember {
            name: member.name.clone(),
            address: node.transport.address(member.id).unwrap_or_else(|| member.address.clone()),
            zone: member.zone.clone(),
            weight: member.weight,
            role: role.to_owned(),
            state: if node.is_live(member.id) { "up" } else { "down" }.to_owned(),
            partitions,
            first,
        };
        members.entry(member.name.clone()).or_insert(entry);
    };
    let oldest = &layouts.active()[0];
    for member in newest.members() {
        add(member, if oldest.member(member.id).is_some() { "member" } else { "joining" });
    }
    for member in layouts.active().iter().flat_map(|layout| layout.members()) {
        add(member, if newest.is_lost(member.id) { "removed" } else { "leaving" });
    }
    for found in gossip::view(shared) {
        let gone = newest.is_lost(found.member.id);
        add(&found.member, if gone { "removed" } else { "waiting" });
    }
    let history = layouts.history();
    ClusterReport {
        node: shared.identity.name.clone(),
        layout: newest.number(),
        digest: format!("{:016x}", newest.digest()),
        read: view.read.number(),
        partitions: newest.partitions(),
        replicas: newest.replicas(),
        members: members.into_values().collect(),
        staged: layouts.staged().iter().map(|staged| staged.change.to_string()).collect(),
        history: history[history.len().saturating_sub(SHOWN_HISTORY)..]
            .iter()
            .map(|past| PastLayout {
                number: past.number,
                digest: format!("{:016x}", past.digest),
                summary: past.summary.clone(),
            })
            .collect(),
        change: change_report(node),
    }
}

/// Reports the progress of the layout change under way. `None`: no layout change is under way.
pub(crate) fn change_report(node: &Node) -> Option<ChangeReport> {
    let shared = &node.shared;
    let view = shared.view();
    if view.is_settled() {
        return None;
    }
    let layouts = shared.layouts.known();
    let phase_of = |id: NodeId| layouts.phase_of(id);
    let cluster_phase = layouts.cluster_phase();
    let mut blocked_by = Vec::new();
    for &id in &view.participants {
        // Other nodes may have to copy from this participant, or hand off records to it, before
        // they can go on.
        if !node.is_live(id) && cluster_phase < Phase::Cleared {
            let name = view.name_of(id);
            blocked_by.push(format!(
                "{name} is down and the change waits for it: start it again, or, if its disk is lost, \
                 `quorate cluster remove {name} --force` or `quorate cluster replace {name} NEW --force`, and commit"
            ));
        }
    }
    let transfer = shared.transfer_report();
    Some(ChangeReport {
        layouts: view.active.iter().map(|layout| layout.number()).collect(),
        phase: cluster_phase.name().to_owned(),
        phases: view
            .participants
            .iter()
            .map(|&id| (view.name_of(id), phase_of(id).name().to_owned()))
            .collect(),
        blocked_by,
        transfer,
    })
}

/// Reports the layout that the staged changes would make, and the data that would move.
///
/// # Errors
/// If no change is staged, if the changes do not fit the newest layout, or if too many layout
/// changes are under way.
pub(crate) fn plan(node: &Node) -> Result<PlanReport, RequestError> {
    let shared = &node.shared;
    let layouts = shared.layouts.known();
    let current = layouts.newest();
    let planned = layouts.plan().map_err(|error| RequestError::invalid(error.to_string()))?;
    let bytes_each = bytes_of_a_partition(shared, current);
    let mut nodes: BTreeMap<String, PlanNode> = BTreeMap::new();
    for member in current.members().iter().chain(planned.members()) {
        let gains = shared
            .all_partitions()
            .filter(|&p| planned.holds(member.id, p) && !current.holds(member.id, p))
            .count() as u32;
        let zone = planned.member(member.id).unwrap_or(member).zone.clone();
        let plan = PlanNode {
            name: member.name.clone(),
            zone,
            before: current.load_of(member.id).partitions,
            after: planned.load_of(member.id).partitions,
            gains,
            bytes: bytes_each * u64::from(gains),
        };
        nodes.insert(member.name.clone(), plan);
    }
    let moved = nodes.values().map(|node| node.gains).sum();
    Ok(PlanReport {
        staged: layouts.staged().iter().map(|staged| staged.change.to_string()).collect(),
        layout: planned.number(),
        digest: format!("{:016x}", planned.digest()),
        replicas: planned.replicas(),
        moved,
        fewest: nodes.values().map(|node| node.after.saturating_sub(node.before)).sum(),
        bytes: bytes_each * u64::from(moved),
        zones: shared.all_partitions().map(|p| zones_of(&planned, p)).min().unwrap_or(0),
        nodes: nodes.into_values().collect(),
    })
}

/// Returns the number of zones of a partition's replicas.
fn zones_of(layout: &Layout, partition: PartitionId) -> u32 {
    let replicas = layout.replicas_of(partition, u8::MAX).iter();
    let zones = replicas.filter_map(|&replica| layout.member(replica)).map(|member| &member.zone);
    zones.collect::<std::collections::BTreeSet<_>>().len() as u32
}

/// Estimates the bytes of a partition, from a sample of the partitions that this node holds.
fn bytes_of_a_partition(shared: &Shared, layout: &Layout) -> u64 {
    let own: Vec<PartitionId> =
        shared.all_partitions().filter(|&partition| layout.holds(shared.node(), partition)).collect();
    let step = (own.len() / SAMPLED_PARTITIONS).max(1);
    let measured: Vec<u64> = own
        .iter()
        .step_by(step)
        .take(SAMPLED_PARTITIONS)
        .map(|&partition| {
            let start = StorageKey::partition_start(partition);
            let end = end_of_prefix(&start);
            let range = Range {
                start: &start,
                after: false,
                end: end.as_deref(),
                limit: usize::MAX,
                max_bytes: SAMPLED_BYTES,
            };
            let page = shared.engine.scan(range).map(|page| page.records).unwrap_or_default();
            page.iter().map(|(key, object)| (key.len() + object.len()) as u64).sum()
        })
        .collect();
    measured.iter().sum::<u64>() / (measured.len() as u64).max(1)
}
