//! The oracle: records the events of a run, and keeps the violations that its checks find.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use quorate_core::{CausalContext, RequestId, StorageKey};

use super::durable::DurableRecords;
use super::history::{Ack, ClientWrite, History, LostDisk};
use super::rules::{Rule, Violation};

/// The checker of one run. Clients, engines and nodes report to it.
#[derive(Default)]
pub struct Oracle {
    history: Mutex<History>,
    /// The disks, in the order of the nodes' numbers. The checks of hints and of moved records read
    /// from them which objects a node durably holds.
    disks: Mutex<Vec<Weak<dyn DurableRecords>>>,
}

impl Oracle {
    pub(super) fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns all disks, in the order of the nodes' numbers.
    pub(super) fn disks(&self) -> Vec<Weak<dyn DurableRecords>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds a node's disk. The caller adds the disks in the order of the nodes' numbers.
    pub fn add_disk(&self, disk: Arc<dyn DurableRecords>) {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&disk));
    }

    /// Records a write. A client calls this before it sends the first attempt.
    pub fn write_sent(&self, request: RequestId, write: ClientWrite) {
        self.lock().writes.insert(request, write);
    }

    /// Records the ack that a client received, with the context in the reply.
    pub fn write_acked(&self, request: RequestId, mut ack: Ack, context: &CausalContext) {
        let mut history = self.lock();
        ack.dots = history.dots_of_request.get(&request).cloned().unwrap_or_default();
        ack.dots.retain(|dot| context.contains(*dot));
        if let Some(write) = history.writes.get_mut(&request) {
            write.acked = Some(ack);
        }
    }

    /// Records that the key's bucket keeps only the newest version.
    pub fn last_write_wins(&self, key: &StorageKey) {
        self.lock().last_write_wins.insert(key.clone());
    }

    /// Records that the layout may change from now on: records may move to other nodes.
    pub fn layout_changes(&self) {
        self.lock().layout_changes = true;
    }

    /// Records that a node's disk lost acked writes.
    pub fn disk_lost(&self, node: usize, at_ms: u64) {
        self.lock().lost_disks.push(LostDisk { node, at_ms });
    }

    /// Adds a violation that the caller found.
    pub fn report(&self, rule: Rule, text: String) {
        self.lock().report(rule, text);
    }

    /// Returns all violations found so far.
    pub fn violations(&self) -> Vec<Violation> {
        self.lock().violations.clone()
    }

    /// Returns the number of versions of retried writes that are live in the end although an acked
    /// write had replaced them. This breaks no rule: a retry may write its value once more.
    pub fn retries_seen_twice(&self) -> u64 {
        self.lock().retries_seen_twice
    }
}

impl std::fmt::Debug for Oracle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let history = self.lock();
        let edges: usize = history.versions.values().map(|version| version.replaced.len()).sum();
        let (writes, versions) = (history.writes.len(), history.versions.len());
        write!(f, "{writes} writes, {versions} minted, {edges} replaced")
    }
}
