//! The storage engine of a simulated node: commits its updates to a simulated disk after a delay.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_core::StorageKey;
use quorate_core::storage::{Capability, Page, Range, RecordAction, StorageEngine, StorageError, Update};

use super::disk::{Disk, DiskState};

/// Delay of a commit under [`Durability::Interval`].
const INTERVAL: Duration = Duration::from_secs(1);

/// The engine that a node runs on its disk.
pub(super) struct SimStorage {
    disk: Arc<Disk>,
    durability: Durability,
}

/// The time of the engine's commits, and the point at which a node may ack an update.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// A commit some milliseconds after an update. A node acks an update once it is committed.
    Fsync,
    /// A commit one second after an update. A node acks an update once it is applied, so a crash
    /// can lose acked writes.
    Interval,
}

impl SimStorage {
    /// Opens the engine on a disk.
    pub(super) fn open(disk: Arc<Disk>, durability: Durability) -> SimStorage {
        SimStorage { disk, durability }
    }

    /// Schedules a commit if updates wait for one and no commit is scheduled.
    fn schedule(&self, state: &mut DiskState) {
        if state.committing || state.waiting.is_empty() {
            return;
        }
        state.committing = true;
        let after = match self.durability {
            Durability::Fsync => Duration::from_micros(500 + state.random.below(5_000)),
            Durability::Interval => INTERVAL,
        };
        let (disk, durability) = (self.disk.clone(), self.durability);
        let ended_processes = state.ended_processes;
        tokio::task::spawn_local(async move {
            tokio::time::sleep(after).await;
            commit(&disk, ended_processes, durability);
            let engine = SimStorage { disk: disk.clone(), durability };
            engine.schedule(&mut disk.lock());
        });
    }
}

/// Commits all applied changes, unless the process that scheduled the commit has ended.
fn commit(disk: &Disk, ended_processes: u64, durability: Durability) {
    let mut state = disk.lock();
    if state.ended_processes != ended_processes {
        return;
    }
    state.committing = false;
    if state.full {
        let error = StorageError::Full { detail: "the disk is full".into() };
        if durability == Durability::Interval {
            return;
        }
        state.overlay.clear();
        // The lock stays held, so that all waiting updates fail before a new update begins.
        for update in std::mem::take(&mut state.waiting) {
            update.finished(Err(error.clone()));
        }
        return;
    }
    let overlay = std::mem::take(&mut state.overlay);
    for (key, value) in overlay {
        match value {
            Some(value) => state.durable.insert(key, value),
            None => state.durable.remove(&key),
        };
    }
    let waiting = std::mem::take(&mut state.waiting);
    drop(state);
    for update in waiting {
        update.finished(Ok(()));
    }
}

impl StorageEngine for SimStorage {
    fn get(&self, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
        let state = self.disk.lock();
        if self.durability == Durability::Interval {
            return Ok(state.newest(&key.to_bytes()));
        }
        Ok(state.durable.get(key.as_bytes()).cloned())
    }

    fn update(&self, batch: Vec<Box<dyn Update>>) {
        let mut refused = Vec::new();
        let mut state = self.disk.lock();
        for mut update in batch {
            let key = update.key().to_bytes();
            let stored = state.newest(&key);
            match update.change(stored.clone()) {
                Ok(action) => {
                    let new = match action {
                        RecordAction::Keep => None,
                        RecordAction::Put(value) => Some(Some(value)),
                        RecordAction::Remove => Some(None),
                    };
                    if let Some(new) = new {
                        self.disk.oracle.record_changed(self.disk.node, &key, stored.as_ref(), new.as_ref());
                        state.overlay.insert(key, new);
                    }
                    update.applied();
                    state.waiting.push(update);
                }
                Err(error) => refused.push((update, error)),
            }
        }
        self.schedule(&mut state);
        drop(state);
        for (update, error) in refused {
            update.finished(Err(error));
        }
    }

    fn flush(&self) {}

    fn scan(&self, range: Range<'_>) -> Result<Page, StorageError> {
        let state = self.disk.lock();
        let mut page = Page::default();
        let mut bytes = 0;
        let start = match range.after {
            true => Bound::Excluded(range.start),
            false => Bound::Included(range.start),
        };
        let durable = state
            .durable
            .range::<[u8], _>((start, Bound::Unbounded))
            .map(|(k, v)| (k.clone(), Some(v.clone())));
        let mut records: BTreeMap<Bytes, Option<Bytes>> = durable.collect();
        if self.durability == Durability::Interval {
            let overlay = state.overlay.range::<[u8], _>((start, Bound::Unbounded));
            records.extend(overlay.map(|(k, v)| (k.clone(), v.clone())));
        }
        for (key, value) in records {
            let Some(value) = value else { continue };
            if range.end.is_some_and(|end| *key >= *end) {
                break;
            }
            if page.records.len() >= range.limit || (bytes >= range.max_bytes && !page.records.is_empty()) {
                page.more = true;
                break;
            }
            bytes += key.len() + value.len();
            page.records.push((key, value));
        }
        Ok(page)
    }

    fn checkpoint(&self, _: &Path) -> Result<(), StorageError> {
        Err(StorageError::Io { detail: "not simulated".into() })
    }

    fn capability(&self) -> Capability {
        let fsync = self.durability == Durability::Fsync;
        Capability { durable: fsync, ack_when_durable: fsync, survives_restart: true }
    }
}
