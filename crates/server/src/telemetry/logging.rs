//! The log on stderr: one structured line an event.

use quorate_core::event::{Event, EventKind, EventSink};
use tracing_subscriber::EnvFilter;

use crate::config::{ConfigError, LogFormat, NodeSection};

/// Starts the log of this process.
pub(crate) fn start_logging(node: &NodeSection) -> Result<(), ConfigError> {
    let filter = EnvFilter::try_new(&node.log)
        .map_err(|error| ConfigError::new(format!("[node] log = {:?}: {error}", node.log)))?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let started = match node.log_format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| ConfigError::new(error.to_string()))
}

/// Writes each event as one log line.
pub(crate) struct LogEvents;

impl EventSink for LogEvents {
    fn emit(&self, event: Event) {
        match event.kind {
            EventKind::PeerUp { peer } => tracing::info!(peer, "peer is up"),
            EventKind::PeerDown { peer, reason } => tracing::warn!(peer, reason, "peer is down"),
            EventKind::PeerUnreachable { peer, reason } => {
                tracing::warn!(peer, reason, "peer can't be reached")
            }
            EventKind::PeerRefused { peer, reason } => {
                tracing::warn!(peer, reason, "this node and a peer refuse each other")
            }
            EventKind::StrangerRefused { address, reason } => {
                tracing::warn!(
                    address,
                    reason,
                    "connection closed: the other side did not introduce itself as a Quorate client or node"
                )
            }
            EventKind::ReadRepaired { replicas } => tracing::debug!(replicas, "read repair"),
            EventKind::WriteIndeterminate { needed, received } => {
                tracing::warn!(needed, received, "a write did not get enough acks in time");
            }
            EventKind::Served { verb, outcome, micros, acked, siblings, hinted } => {
                tracing::trace!(verb, outcome, micros, acked, siblings, hinted, "served");
            }
            EventKind::HintRefused { target } => {
                tracing::warn!(
                    target_node = target,
                    "hint refused: the hints for this node have reached [hints] max_mib_per_target"
                );
            }
            EventKind::HintsDelivered { target, hints } => {
                tracing::info!(to = target, hints, "hints delivered");
            }
            EventKind::Recovering { partitions } => {
                tracing::info!(
                    partitions,
                    "recovering: this node may have lost records; it answers no reads of these partitions until it has merged them with enough replicas"
                );
            }
            EventKind::Recovered { partitions } => tracing::info!(partitions, "recovered"),
            EventKind::Repaired { peer, keys: 0 } => {
                tracing::debug!(peer, "anti-entropy with a peer ended: no key differed");
            }
            EventKind::Repaired { peer, keys } => {
                tracing::info!(
                    peer,
                    keys,
                    "anti-entropy with a peer ended: these keys differed, and are merged"
                );
            }
            EventKind::RepairFailed { peer, reason } => {
                tracing::warn!(peer, reason, "anti-entropy with a peer failed");
            }
            EventKind::TombstonesCollected { keys } => tracing::info!(keys, "tombstones collected"),
            EventKind::ClockSkewed { ahead_ms: Some(ahead_ms) } => {
                tracing::error!(
                    ahead_ms,
                    "the clock differs too much from most peers' clocks: this node coordinates no writes"
                );
            }
            EventKind::ClockSkewed { ahead_ms: None } => {
                tracing::info!("the clock agrees with most peers' clocks again");
            }
            EventKind::LayoutChanges { number, changes } => {
                tracing::info!(number, changes, "a change to a new layout begins")
            }
            EventKind::LayoutPhase { number, settled: true, .. } => {
                tracing::info!(number, "the layout change is done: only the new layout is active");
            }
            EventKind::LayoutPhase { number, phase, .. } => {
                tracing::info!(
                    number,
                    phase = phase.name(),
                    "this node has reached a phase of the layout change"
                );
            }
            EventKind::Removed { number } => {
                tracing::error!(
                    number,
                    "this node was taken out of the cluster while it was down, and serves no requests: stop it, and \
                     start it with an empty data folder to join again"
                );
            }
            EventKind::StorageFailed { detail } => tracing::error!(detail, "storage failed"),
            EventKind::ActorRenewed { partition } => {
                tracing::warn!(
                    partition,
                    "a write to the partition was applied but could not be committed: later writes use a new actor"
                )
            }
        }
    }
}
