//! A node as replica: it reads and changes the records of its engine, for its own coordinator and
//! for peers.
//!
//! A change of a record is an `Update`. The engine runs it, perhaps on a thread of its own. The
//! outcome returns to the worker through `completions.rs`.

mod completions;
mod failure;
pub(crate) mod hints;
mod read;
mod record_update;
mod removal;
mod tombstones;
pub(crate) mod write;

use std::rc::Rc;
use std::sync::Arc;

use completions::Completions;

use crate::state::scan_scheduler::ScanScheduler;
use crate::state::shared::Shared;

/// This node's records, as one worker uses them.
pub(crate) struct Replica {
    shared: Arc<Shared>,
    completions: Rc<Completions>,
    /// Scheduler of this worker's scans of many records.
    pub(crate) scans: ScanScheduler,
}

impl Replica {
    pub(crate) fn new(shared: Arc<Shared>) -> Rc<Replica> {
        let completions = Completions::start(shared.clone());
        Rc::new(Replica { completions, shared, scans: ScanScheduler::default() })
    }
}
