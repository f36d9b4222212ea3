//! Metrics that show a state, such as the hints that are pending.

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use quorate_node::Shared;
use quorate_rpc::batch_sender::PeerQueues;

/// Gauges of the node's state. Their values are read from the node when the metrics page is
/// requested.
#[derive(Default)]
pub(super) struct Gauges {
    hints_pending: Family<PeerLabel, Gauge>,
    hints_bytes: Family<PeerLabel, Gauge>,
    hints_oldest: Family<PeerLabel, Gauge>,
    recovering: Gauge,
    tombstones: Gauge,
    tombstone_gc_blocked: Gauge,
    clock_ahead_ms: Gauge,
    repair_running: Gauge,
    /// Gauge that has no value until the first round of anti-entropy has ended. It is therefore a
    /// family without labels.
    repair_last_ended: Family<[(&'static str, &'static str); 0], Gauge>,
    in_flight: Gauge,
    peer_waiting: Family<PeerLabel, Gauge>,
    storage_waiting: Gauge,
    layout: Gauge,
    layouts_active: Gauge,
    partitions_to_move: Gauge,
    moved_bytes: Gauge,
}

type PeerLabel = [(&'static str, String); 1];

impl Gauges {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "hints_pending",
            "Hints that this node keeps for a replica",
            self.hints_pending.clone(),
        );
        let help = "Bytes of the hints that this node keeps for a replica";
        registry.register("hints_pending_bytes", help, self.hints_bytes.clone());
        let help = "Age of the oldest hint that this node keeps for a replica";
        registry.register_with_unit("hints_oldest_age", help, Unit::Seconds, self.hints_oldest.clone());
        let help = "Partitions of which this node may have lost records, and answers no reads yet";
        registry.register("recovering_partitions", help, self.recovering.clone());
        let help = "Tombstones in partitions of which this node is the first replica";
        registry.register("tombstones_waiting", help, self.tombstones.clone());
        registry.register(
            "tombstone_gc_blocked",
            "1 while a member prevents the collection of tombstones",
            self.tombstone_gc_blocked.clone(),
        );
        let help = "Milliseconds by which this node's clock is ahead of its peers' clocks (the median)";
        registry.register("clock_ahead_ms", help, self.clock_ahead_ms.clone());
        let help = "1 while a round of anti-entropy with some peer is under way";
        registry.register("repair_running", help, self.repair_running.clone());
        let help = "Time since the last successful round of anti-entropy ended";
        registry.register_with_unit(
            "repair_last_ended_ago",
            help,
            Unit::Seconds,
            self.repair_last_ended.clone(),
        );
        registry.register("requests_in_flight", "Clients' requests under way", self.in_flight.clone());
        let help = "Operations that wait for a peer's answer";
        registry.register("peer_requests_waiting", help, self.peer_waiting.clone());
        let help = "Updates that wait for the storage engine to make them durable";
        registry.register("storage_updates_waiting", help, self.storage_waiting.clone());
        registry.register("layout", "Number of the newest layout", self.layout.clone());
        let help = "Active layouts: more than one while a layout change is under way";
        registry.register("layouts_active", help, self.layouts_active.clone());
        let help = "Partitions that this node still has to copy or hand over";
        registry.register("partitions_to_move", help, self.partitions_to_move.clone());
        let help = "Bytes that this node has copied in the layout change under way";
        registry.register("moved_bytes", help, self.moved_bytes.clone());
    }

    /// Reads all gauges' values from the node.
    pub(super) fn update(&self, shared: &Shared, queues: &PeerQueues) {
        let upkeep = quorate_node::upkeep(shared);
        self.hints_pending.clear();
        self.hints_bytes.clear();
        self.hints_oldest.clear();
        for hints in upkeep.hints_for {
            let peer = [("peer", hints.target)];
            self.hints_pending.get_or_create(&peer).set(hints.hints as i64);
            self.hints_bytes.get_or_create(&peer).set(hints.bytes as i64);
            self.hints_oldest.get_or_create(&peer).set((hints.oldest_ms / 1_000) as i64);
        }
        self.recovering.set(upkeep.recovering as i64);
        self.tombstones.set(upkeep.tombstone_gc.waiting as i64);
        self.tombstone_gc_blocked.set(i64::from(upkeep.tombstone_gc.blocked_by.is_some()));
        self.clock_ahead_ms.set(upkeep.clock_ahead_ms);
        self.repair_running.set(i64::from(upkeep.repair.running_with.is_some()));
        if let Some(ago_ms) = upkeep.repair.last_round_ago_ms {
            self.repair_last_ended.get_or_create(&[]).set((ago_ms / 1_000) as i64);
        }
        self.in_flight.set(upkeep.in_flight as i64);
        self.storage_waiting.set(shared.engine.waiting() as i64);
        let view = shared.view();
        self.peer_waiting.clear();
        for (peer, waiting) in queues.depths() {
            self.peer_waiting.get_or_create(&[("peer", view.name_of(peer))]).set(waiting as i64);
        }
        self.layout.set(view.newest().number() as i64);
        self.layouts_active.set(view.active.len() as i64);
        let moves = if view.is_settled() { Default::default() } else { shared.transfer_report() };
        self.partitions_to_move.set(i64::from(moves.partitions - moves.done.min(moves.partitions)));
        self.moved_bytes.set(moves.bytes as i64);
    }
}
