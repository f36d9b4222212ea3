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
            EventKind::PeerRefused { peer, reason } => tracing::warn!(peer, reason, "peer refused"),
            EventKind::StrangerRefused { address, reason } => {
                tracing::warn!(address, reason, "stranger refused")
            }
            EventKind::ReadRepaired { replicas } => tracing::debug!(replicas, "read repair"),
            EventKind::WriteIndeterminate { needed, received } => {
                tracing::warn!(needed, received, "write did not get its acks");
            }
            EventKind::Served { verb, outcome, micros, acked, siblings, hinted } => {
                tracing::trace!(verb, outcome, micros, acked, siblings, hinted, "served");
            }
            EventKind::HintRefused { target } => {
                tracing::warn!(target_node = target, "hint refused: the budget for its target is used up");
            }
            EventKind::HintsDelivered { target, hints } => {
                tracing::info!(to = target, hints, "hints delivered");
            }
            EventKind::Recovering { partitions } => {
                tracing::info!(partitions, "may have forgotten: asking the others before answering reads");
            }
            EventKind::Recovered { partitions } => tracing::info!(partitions, "recovered"),
            EventKind::Repaired { peer, keys: 0 } => tracing::debug!(peer, "compared, nothing differs"),
            EventKind::Repaired { peer, keys } => tracing::info!(peer, keys, "repaired"),
            EventKind::RepairFailed { peer, reason } => tracing::warn!(peer, reason, "repair broke off"),
            EventKind::TombstonesCollected { keys } => tracing::info!(keys, "tombstones collected"),
            EventKind::ClockSkewed { ahead_ms: Some(ahead_ms) } => {
                tracing::error!(ahead_ms, "the clock is far from most peers': coordinating nothing");
            }
            EventKind::ClockSkewed { ahead_ms: None } => tracing::info!("the clock is right again"),
            EventKind::LayoutChanges { number, changes } => {
                tracing::info!(number, changes, "the layout changes")
            }
            EventKind::LayoutPhase { number, settled: true, .. } => {
                tracing::info!(number, "the new layout is settled");
            }
            EventKind::LayoutPhase { number, phase, .. } => {
                tracing::info!(number, phase = phase.name(), "a phase of the change is reached");
            }
            EventKind::Removed { number } => {
                tracing::error!(
                    number,
                    "taken out of the cluster while away: serving nothing; an empty data folder lets it join again"
                );
            }
            EventKind::StorageFailed { detail } => tracing::error!(detail, "storage failed"),
            EventKind::ActorRenewed { partition } => {
                tracing::warn!(partition, "partition goes on under a new actor")
            }
        }
    }
}
