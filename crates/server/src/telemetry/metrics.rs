//! The node's metrics, counted from its events.
//!
//! An event updates counters and histograms at once, on the event loop that emits it. Gauges are
//! read from the node when the page is requested. No label contains a key.

use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use quorate_core::event::{Event, EventKind, EventSink};
use quorate_node::Shared;
use quorate_rpc::batch_sender::PeerQueues;

use super::gauges::Gauges;
use super::logging::LogEvents;
use super::requests::RequestMetrics;

/// All metrics of a node. They receive the node's events, and pass all of them but the frequent
/// `Served` on to the log.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    requests: RequestMetrics,
    counters: Counters,
    gauges: Gauges,
    peer_queues: PeerQueues,
}

impl Metrics {
    /// Creates the metrics, all at zero.
    pub(crate) fn new() -> Metrics {
        let mut registry = Registry::with_prefix("quorate");
        let requests = RequestMetrics::register(&mut registry);
        let counters = Counters::register(&mut registry);
        let gauges = Gauges::default();
        gauges.register(&mut registry);
        let registry = Mutex::new(registry);
        Metrics { registry, requests, counters, gauges, peer_queues: PeerQueues::default() }
    }

    /// Returns the shared counters of operations that wait for each peer's answer. The workers keep
    /// them up to date.
    pub(crate) fn peer_queues(&self) -> PeerQueues {
        self.peer_queues.clone()
    }

    /// Encodes the page that Prometheus reads.
    pub(super) fn page(&self, shared: &Shared) -> String {
        self.gauges.update(shared, &self.peer_queues);
        let mut page = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if encode(&mut page, &registry).is_err() {
            page.clear();
        }
        page
    }
}

impl EventSink for Metrics {
    fn emit(&self, event: Event) {
        if let EventKind::Served { verb, outcome, micros, acked, siblings, hinted } = &event.kind {
            // `Served` is the only frequent kind of event. It is counted, but not logged.
            return self.requests.record(verb, outcome, *micros, *acked, *siblings, *hinted);
        }
        self.counters.count(&event.kind);
        LogEvents.emit(event);
    }
}

/// Counters of events other than requests.
struct Counters {
    read_repairs: Counter,
    hints_delivered: Counter,
    hints_refused: Counter,
    storage_failures: Counter,
    actors_renewed: Counter,
    repair_rounds: Counter,
    divergent_keys: Counter,
    repairs_failed: Counter,
    tombstones_collected: Counter,
    connections_refused: Counter,
}

impl Counters {
    fn register(registry: &mut Registry) -> Counters {
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        // Rust evaluates the fields in this order. It is therefore the order of the counters on the
        // metrics page.
        Counters {
            read_repairs: counter(
                "read_repairs",
                "Reads that sent the merged object to replicas that held less",
            ),
            hints_delivered: counter("hints_delivered", "Hints that were delivered to their replica"),
            hints_refused: counter("hints_refused", "Hints refused because of [hints] max_mib_per_target"),
            storage_failures: counter(
                "storage_failures",
                "Reads and commits that failed in the storage engine",
            ),
            actors_renewed: counter("actors_renewed", "Partitions whose writes continued under a new actor"),
            repair_rounds: counter("repair_rounds", "Rounds of anti-entropy with one peer that succeeded"),
            divergent_keys: counter("repair_divergent_keys", "Keys that differed in rounds of anti-entropy"),
            repairs_failed: counter(
                "repair_failures",
                "Failed exchanges of records: in anti-entropy, recovery, layout changes and handoffs",
            ),
            tombstones_collected: counter(
                "tombstones_collected",
                "Tombstones whose deletion this node ordered",
            ),
            connections_refused: counter(
                "strangers_refused",
                "Connections refused: another protocol, another cluster, or another first layout",
            ),
        }
    }

    fn count(&self, kind: &EventKind) {
        match kind {
            EventKind::ReadRepaired { .. } => drop(self.read_repairs.inc()),
            EventKind::HintsDelivered { hints, .. } => drop(self.hints_delivered.inc_by(*hints as u64)),
            EventKind::HintRefused { .. } => drop(self.hints_refused.inc()),
            EventKind::StorageFailed { .. } => drop(self.storage_failures.inc()),
            EventKind::ActorRenewed { .. } => drop(self.actors_renewed.inc()),
            EventKind::Repaired { keys, .. } => {
                self.repair_rounds.inc();
                self.divergent_keys.inc_by(*keys);
            }
            EventKind::RepairFailed { .. } => drop(self.repairs_failed.inc()),
            EventKind::TombstonesCollected { keys } => drop(self.tombstones_collected.inc_by(*keys as u64)),
            EventKind::StrangerRefused { .. } | EventKind::PeerRefused { .. } => {
                self.connections_refused.inc();
            }
            EventKind::Served { .. }
            | EventKind::PeerUp { .. }
            | EventKind::PeerDown { .. }
            | EventKind::PeerUnreachable { .. }
            | EventKind::Recovering { .. }
            | EventKind::Recovered { .. }
            | EventKind::ClockSkewed { .. }
            | EventKind::LayoutChanges { .. }
            | EventKind::LayoutPhase { .. }
            | EventKind::Removed { .. }
            | EventKind::WriteIndeterminate { .. } => {}
        }
    }
}
