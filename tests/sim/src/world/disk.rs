//! A simulated disk: a crash loses the records that were not committed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quorate_core::StorageKey;
use quorate_core::storage::Update;

use crate::oracle::{DurableRecords, Oracle};
use crate::random::Random;

/// A node's disk, with the state of the engine on it.
pub struct Disk {
    pub(super) node: usize,
    /// Checker that is told every change of a record.
    pub(super) oracle: Arc<Oracle>,
    state: Mutex<DiskState>,
}

/// The records of a disk, and the updates that wait for the next commit.
pub(super) struct DiskState {
    pub(super) random: Random,
    /// Committed records.
    pub(super) durable: BTreeMap<Bytes, Bytes>,
    /// Applied changes that are not committed. `None`: the record is removed.
    pub(super) overlay: BTreeMap<Bytes, Option<Bytes>>,
    /// Updates to finish after the next commit.
    pub(super) waiting: Vec<Box<dyn Update>>,
    /// True if a commit is scheduled.
    pub(super) committing: bool,
    /// True if the disk is full. Commits then fail.
    pub(super) full: bool,
    /// Number of the node's processes that have ended. If it has risen since a commit was
    /// scheduled, that commit does nothing: its process has ended.
    pub(super) ended_processes: u64,
}

impl DiskState {
    /// Returns the newest value under `key`, committed or not.
    pub(super) fn newest(&self, key: &Bytes) -> Option<Bytes> {
        match self.overlay.get(key) {
            Some(value) => value.clone(),
            None => self.durable.get(key).cloned(),
        }
    }
}

impl Disk {
    /// Creates an empty disk.
    pub(super) fn new(node: usize, oracle: Arc<Oracle>, random: Random) -> Arc<Disk> {
        let state = DiskState {
            random,
            durable: BTreeMap::new(),
            overlay: BTreeMap::new(),
            waiting: Vec::new(),
            committing: false,
            full: false,
            ended_processes: 0,
        };
        Arc::new(Disk { node, oracle, state: Mutex::new(state) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, DiskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops all changes that are not committed. Called when the node's process has ended.
    pub(super) fn lose_uncommitted(&self) {
        let mut state = self.lock();
        state.overlay.clear();
        let waiting = std::mem::take(&mut state.waiting);
        state.committing = false;
        state.ended_processes += 1;
        // The lock is released first: dropping an update may run code of the node that locks the
        // disk.
        drop(state);
        drop(waiting);
    }

    /// Deletes all records.
    pub(super) fn wipe(&self) {
        self.lock().durable.clear();
    }

    /// Returns true if no record is committed.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().durable.is_empty()
    }

    /// Returns a copy of the committed records, for [`super::Sim::restore`].
    pub fn image(&self) -> BTreeMap<Bytes, Bytes> {
        self.lock().durable.clone()
    }

    /// Replaces the committed records by an image.
    pub(super) fn restore(&self, image: BTreeMap<Bytes, Bytes>) {
        self.lock().durable = image;
    }

    /// Makes commits fail.
    pub(super) fn fill(&self) {
        self.lock().full = true;
    }

    /// Lets commits succeed again.
    pub(super) fn free(&self) {
        self.lock().full = false;
    }

    /// Damages a record: flips a bit of its last byte, which mostly belongs to a value. Returns
    /// false if there is no record.
    pub(super) fn damage(&self, key: &StorageKey) -> bool {
        let mut state = self.lock();
        match state.durable.get_mut(key.as_bytes()) {
            Some(value) => {
                let mut bytes = value.to_vec();
                if let Some(last) = bytes.last_mut() {
                    *last ^= 1;
                }
                *value = bytes.into();
                true
            }
            None => false,
        }
    }

    /// Returns the newest value of one record, committed or not.
    pub(super) fn record(&self, key: &Bytes) -> Option<Bytes> {
        self.lock().newest(key)
    }

    /// Returns all records with their newest values, committed or not.
    pub fn records(&self) -> BTreeMap<Bytes, Bytes> {
        let state = self.lock();
        let mut all = state.durable.clone();
        for (key, value) in &state.overlay {
            match value {
                Some(value) => all.insert(key.clone(), value.clone()),
                None => all.remove(key),
            };
        }
        all
    }
}

impl DurableRecords for Disk {
    fn durable_record(&self, key: &[u8]) -> Option<Bytes> {
        self.lock().durable.get(key).cloned()
    }
}
