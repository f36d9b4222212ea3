//! A simulated disk and an engine over it: what was not committed is lost when its node is.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate_core::StorageKey;
use quorate_core::storage::{Capability, Change, Page, Range, StorageEngine, StorageError, Update};

use crate::oracle::Oracle;
use crate::random::Random;

/// When the engine commits, and what it acks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Acks what is committed, some milliseconds later.
    Fsync,
    /// Acks what is applied, commits every second.
    Interval,
}

const INTERVAL: Duration = Duration::from_secs(1);

/// What survives a crash, and what does not.
pub struct Disk {
    node: usize,
    oracle: Arc<Oracle>,
    state: Mutex<State>,
}

struct State {
    random: Random,
    durable: BTreeMap<Bytes, Bytes>,
    /// Applied and not committed.
    overlay: BTreeMap<Bytes, Option<Bytes>>,
    waiting: Vec<Box<dyn Update>>,
    committing: bool,
    /// Commits fail.
    full: bool,
    /// Records that can't be read.
    unreadable: BTreeSet<Bytes>,
    /// How many times the node behind it was started: a commit of an earlier run must not touch this one.
    run: u64,
}

impl Disk {
    /// An empty disk.
    pub fn new(node: usize, oracle: Arc<Oracle>, random: Random) -> Arc<Disk> {
        let state = State {
            random,
            durable: BTreeMap::new(),
            overlay: BTreeMap::new(),
            waiting: Vec::new(),
            committing: false,
            full: false,
            unreadable: BTreeSet::new(),
            run: 0,
        };
        Arc::new(Disk { node, oracle, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node is gone: what was not committed is, too.
    pub fn lose_uncommitted(&self) {
        let mut state = self.lock();
        state.overlay.clear();
        let waiting = std::mem::take(&mut state.waiting);
        state.committing = false;
        state.run += 1;
        drop(state);
        drop(waiting);
    }

    /// Everything is gone.
    pub fn wipe(&self) {
        self.lock().durable.clear();
        self.lock().unreadable.clear();
    }

    /// True if nothing is on it.
    pub fn is_empty(&self) -> bool {
        self.lock().durable.is_empty()
    }

    /// What is on it, to be put back later.
    pub fn image(&self) -> BTreeMap<Bytes, Bytes> {
        self.lock().durable.clone()
    }

    /// Puts an image back.
    pub fn restore(&self, image: BTreeMap<Bytes, Bytes>) {
        self.lock().durable = image;
    }

    /// Lets commits fail, or succeed again.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// Lets reads of a record fail, until it is written again.
    pub fn make_unreadable(&self, key: &StorageKey) {
        let mut state = self.lock();
        if state.durable.contains_key(key.as_bytes()) {
            state.unreadable.insert(key.to_bytes());
        }
    }

    /// Changes a record's last byte, which is a value's mostly. False if there was none.
    pub fn damage(&self, key: &StorageKey) -> bool {
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

    /// One record as of now.
    pub fn record(&self, key: &Bytes) -> Option<Bytes> {
        let state = self.lock();
        match state.overlay.get(key) {
            Some(value) => value.clone(),
            None => state.durable.get(key).cloned(),
        }
    }

    /// All records as of now, uncommitted ones included.
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

/// The engine that a node runs on its disk.
pub struct SimStorage {
    disk: Arc<Disk>,
    durability: Durability,
}

impl SimStorage {
    /// Opens a disk.
    pub fn open(disk: Arc<Disk>, durability: Durability) -> SimStorage {
        SimStorage { disk, durability }
    }

    fn schedule(&self, state: &mut State) {
        if state.committing || state.waiting.is_empty() {
            return;
        }
        state.committing = true;
        let after = match self.durability {
            Durability::Fsync => Duration::from_micros(500 + state.random.below(5_000)),
            Durability::Interval => INTERVAL,
        };
        let (disk, run, durability) = (self.disk.clone(), state.run, self.durability);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(after).await;
            commit(&disk, run, durability);
            let engine = SimStorage { disk: disk.clone(), durability };
            engine.schedule(&mut disk.lock());
        });
    }
}

fn commit(disk: &Disk, run: u64, durability: Durability) {
    let mut state = disk.lock();
    if state.run != run {
        return;
    }
    state.committing = false;
    if state.full {
        let error = StorageError::Full { detail: "the disk is full".into() };
        if durability == Durability::Interval {
            return;
        }
        state.overlay.clear();
        // All hear of it before anything later begins.
        for update in std::mem::take(&mut state.waiting) {
            update.finished(Err(error.clone()));
        }
        return;
    }
    let overlay = std::mem::take(&mut state.overlay);
    for (key, value) in overlay {
        state.unreadable.remove(&key);
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

fn unreadable() -> StorageError {
    StorageError::Io { detail: "the record can't be read".into() }
}

impl State {
    fn newest(&self, key: &Bytes) -> Result<Option<Bytes>, StorageError> {
        match self.overlay.get(key) {
            Some(value) => Ok(value.clone()),
            None if self.unreadable.contains(key) => Err(unreadable()),
            None => Ok(self.durable.get(key).cloned()),
        }
    }
}

impl StorageEngine for SimStorage {
    fn get(&self, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
        let state = self.disk.lock();
        if self.durability == Durability::Interval {
            return state.newest(&key.to_bytes());
        }
        if state.unreadable.contains(key.as_bytes()) {
            return Err(unreadable());
        }
        Ok(state.durable.get(key.as_bytes()).cloned())
    }

    fn update(&self, batch: Vec<Box<dyn Update>>) {
        let mut refused = Vec::new();
        let mut state = self.disk.lock();
        for mut update in batch {
            let key = update.key().to_bytes();
            let changed = state.newest(&key).and_then(|stored| Ok((update.change(stored.clone())?, stored)));
            match changed {
                Ok((change, stored)) => {
                    let new = match change {
                        Change::Keep => None,
                        Change::Put(value) => Some(Some(value)),
                        Change::Remove => Some(None),
                    };
                    if let Some(new) = new {
                        self.disk.oracle.observe(self.disk.node, &key, stored.as_ref(), new.as_ref());
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
            // A damaged record is there, and is no object: as a bad checksum is.
            let value =
                if state.unreadable.contains(&key) { Bytes::from_static(b"\x01damaged") } else { value };
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
