//! Group commit: one thread takes all updates that gathered while the last commit ran, and commits them as one.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use quorate_core::storage::{Change, StorageError, Update};

use crate::MAX_QUEUED_UPDATES;
use crate::map::Map;

/// Most updates in one commit: bounds how long the first of them waits.
const MAX_BATCH: usize = 4096;

pub(crate) struct FsyncWriter {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    updates: Vec<Box<dyn Update>>,
    closing: bool,
}

impl FsyncWriter {
    pub(crate) fn start(map: Arc<Map>) -> FsyncWriter {
        let queue = Arc::new(Queue::default());
        let theirs = queue.clone();
        let thread = std::thread::Builder::new()
            .name("quorate-lmdb".into())
            .spawn(move || {
                while let Some(updates) = theirs.take() {
                    commit(&map, updates);
                }
            })
            .expect("a thread can be started");
        FsyncWriter { queue, thread: Some(thread) }
    }

    pub(crate) fn update(&self, batch: Vec<Box<dyn Update>>) {
        let mut state = self.queue.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.updates.len() + batch.len() > MAX_QUEUED_UPDATES {
            drop(state);
            refuse(batch, &StorageError::QueueFull { limit: MAX_QUEUED_UPDATES as u64 });
            return;
        }
        let idle = state.updates.is_empty();
        state.updates.extend(batch);
        drop(state);
        if idle {
            self.queue.wake.notify_one();
        }
    }
}

impl Drop for FsyncWriter {
    fn drop(&mut self) {
        self.queue.state.lock().unwrap_or_else(PoisonError::into_inner).closing = true;
        self.queue.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Queue {
    /// What has gathered, once there is something; `None` when closing and nothing is left.
    fn take(&self) -> Option<Vec<Box<dyn Update>>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.updates.is_empty() {
            if state.closing {
                return None;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let rest = state.updates.len().min(MAX_BATCH);
        let later = state.updates.split_off(rest);
        Some(std::mem::replace(&mut state.updates, later))
    }
}

pub(crate) fn refuse(batch: Vec<Box<dyn Update>>, error: &StorageError) {
    for update in batch {
        update.finished(Err(error.clone()));
    }
}

/// Applies and commits one batch. Updates that reject their record are finished one by one; anything that the file or
/// the disk fails at fails the whole batch, since the transaction is dead then.
fn commit(map: &Map, updates: Vec<Box<dyn Update>>) {
    let mut applied = Vec::with_capacity(updates.len());
    let outcome = apply(map, updates, &mut applied);
    for update in applied {
        update.finished(outcome.clone());
    }
}

fn apply(
    map: &Map,
    updates: Vec<Box<dyn Update>>,
    applied: &mut Vec<Box<dyn Update>>,
) -> Result<(), StorageError> {
    let room = map.check_room();
    let mut batch = match map.begin() {
        Ok(batch) => batch,
        Err(error) => {
            applied.extend(updates);
            return Err(error);
        }
    };
    let mut failed = None;
    for mut update in updates {
        if failed.is_some() {
            applied.push(update);
            continue;
        }
        let key = update.key().clone();
        let change = batch.get(key.as_bytes()).and_then(|stored| update.change(stored));
        let change = match (change, &room) {
            (Ok(Change::Put(_)), Err(full)) => Err(full.clone()),
            (change, _) => change,
        };
        match change {
            Ok(change) => {
                failed = batch.apply(key.as_bytes(), &change).err();
                applied.push(update);
            }
            Err(error) => update.finished(Err(error)),
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    for update in applied.iter_mut() {
        update.applied();
    }
    batch.commit()
}
