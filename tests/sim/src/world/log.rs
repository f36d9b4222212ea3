//! The log of a run: two runs of one seed have the same log, byte for byte.

use std::sync::{Arc, Mutex, PoisonError};

use quorate_core::event::{Event, EventKind, EventSink};
use tokio::time::Instant;

use crate::oracle::Oracle;

/// The events of a run, in order. Clones share their lines.
#[derive(Clone)]
pub struct Log {
    run_start: Instant,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Log {
    /// Creates the log of a run that begins at `run_start`.
    pub(super) fn new(run_start: Instant) -> Log {
        Log { run_start, lines: Arc::default() }
    }

    /// Adds a line, with the microseconds since the run began.
    pub fn add(&self, line: impl Into<String>) {
        let line = format!("{:>9} {}", self.run_start.elapsed().as_micros(), line.into());
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn now_ms(&self) -> u64 {
        self.run_start.elapsed().as_millis() as u64
    }

    /// Removes and returns all lines.
    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A node's event sink: logs its events, and reports the phases of layout changes to the oracle.
pub(super) struct NodeEvents {
    pub(super) node: usize,
    pub(super) log: Log,
    pub(super) oracle: Arc<Oracle>,
}

impl EventSink for NodeEvents {
    fn emit(&self, event: Event) {
        self.log.add(format!("n{} {:?} {:?}", self.node, event.request, event.kind));
        if let EventKind::LayoutPhase { number, phase, .. } = event.kind {
            self.oracle.phase_reached(self.node, number, phase, self.log.now_ms());
        }
    }
}
