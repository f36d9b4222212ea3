//! The number and size of the hints that this node keeps, by target: the replica that a hint is
//! for.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use quorate_core::NodeId;
use quorate_core::codec::decode_object;
use quorate_core::hint::{all_hints, parse_hint_key};
use quorate_core::report::HintStatus;
use quorate_core::storage::{StorageEngine, StorageError};

use super::scan_pages::{PageBounds, ScanPages};

/// Hints that are read at a time while they are counted at the start.
const PAGE: PageBounds = PageBounds { records: 256, bytes: 1024 * 1024 };

/// Accounts of the hints that this node keeps, one for each target.
#[derive(Default)]
pub(crate) struct HintLedger {
    targets: Mutex<BTreeMap<NodeId, HintAccount>>,
}

#[derive(Clone, Copy, Default, Debug)]
struct HintAccount {
    hints: u64,
    bytes: u64,
    /// The time at which the oldest hint was written, in milliseconds since 1970.
    since_ms: u64,
}

/// A change of one hint's record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HintChange {
    pub(crate) target: NodeId,
    /// Bytes of key and value before the change. 0: there was no hint.
    pub(crate) old: usize,
    /// Bytes of key and value after the change. 0: the hint is deleted.
    pub(crate) new: usize,
    /// The time of the change, in milliseconds since 1970.
    pub(crate) at_ms: u64,
}

impl HintChange {
    pub(crate) fn undone(self) -> HintChange {
        HintChange { old: self.new, new: self.old, ..self }
    }
}

impl HintLedger {
    /// Counts the hints that the engine holds. Runs once, at the start.
    ///
    /// # Errors
    /// If the engine cannot be read.
    pub(crate) fn load(engine: &dyn StorageEngine, now_ms: u64) -> Result<HintLedger, StorageError> {
        let ledger = HintLedger::default();
        let mut pages = ScanPages::under(all_hints(), PAGE);
        while let Some(page) = pages.next(engine)? {
            for (key, value) in &page.records {
                if let Some((target, _)) = parse_hint_key(key) {
                    let written = decode_object(value).map_or(now_ms, |hint| hint.object.newest().wall_ms());
                    let new = key.len() + value.len();
                    ledger.apply(HintChange { target, old: 0, new, at_ms: written.min(now_ms) });
                }
            }
        }
        Ok(ledger)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, HintAccount>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if the change keeps the target's hints within `budget` bytes, or does not enlarge them.
    pub(crate) fn fits(&self, change: HintChange, budget: u64) -> bool {
        let bytes = self.lock().get(&change.target).map_or(0, |account| account.bytes);
        change.new <= change.old || bytes + (change.new - change.old) as u64 <= budget
    }

    pub(crate) fn apply(&self, change: HintChange) {
        let HintChange { target, old, new, at_ms } = change;
        let mut targets = self.lock();
        let account = targets.entry(target).or_default();
        if account.hints == 0 || (new > 0 && at_ms < account.since_ms) {
            account.since_ms = at_ms;
        }
        account.hints = (account.hints + u64::from(new > 0)).saturating_sub(u64::from(old > 0));
        account.bytes = (account.bytes + new as u64).saturating_sub(old as u64);
        if account.hints == 0 {
            targets.remove(&target);
        }
    }

    /// Returns the targets that have hints.
    pub(crate) fn targets(&self) -> Vec<NodeId> {
        self.lock().keys().copied().collect()
    }

    pub(crate) fn has_any_for(&self, target: NodeId) -> bool {
        self.lock().contains_key(&target)
    }

    /// Returns the age of the oldest hint, in milliseconds. `None`: there are no hints.
    pub(crate) fn oldest_age_ms(&self, now_ms: u64) -> Option<u64> {
        self.lock().values().map(|account| now_ms.saturating_sub(account.since_ms)).max()
    }

    /// Reports each target's hints. `name_of` returns a node's name.
    pub(crate) fn report(&self, now_ms: u64, name_of: impl Fn(NodeId) -> String) -> Vec<HintStatus> {
        let status = |(target, account): (&NodeId, &HintAccount)| HintStatus {
            target: name_of(*target),
            hints: account.hints,
            bytes: account.bytes,
            oldest_ms: now_ms.saturating_sub(account.since_ms),
        };
        self.lock().iter().map(status).collect()
    }
}
