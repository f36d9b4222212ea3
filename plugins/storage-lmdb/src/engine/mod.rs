//! The engine: applies updates, answers reads, and owns the WAL thread and the checkpointer.
//!
//! A change passes through up to four stages, from the first row to the last. A later stage has
//! older changes.
//!
//! | stage | moved on by | readers see it |
//! |---|---|---|
//! | `State::pending`, "fsync" only | WAL thread, as the next batch | no |
//! | `State::wal_batch`, "fsync" only | WAL thread, after the flush of the batch | no |
//! | active part of the write buffer | checkpointer, which freezes it | yes |
//! | frozen part of the write buffer | checkpointer, after its last commit | yes |
//!
//! An update reads its record from the newest stage that has a change of it, or else from the tree.
//! A reader does the same, but sees only the write buffer and the tree.
//!
//! The tree stores the WAL position up to which it has all changes, and the WAL has all later ones.
//! Under "fsync", a start after a kill therefore finds all changes of a batch or none of them.
//! Under "interval", it may find only a part of the last checkpoint. The node then recovers from
//! other replicas, as after a lost disk.
//!
//! Source: write-ahead logging, with a checkpoint every interval.

mod checkpointer;
mod engine_core;
#[cfg(test)]
mod fault_points;
mod state;
#[cfg(test)]
mod tests;
mod updates;
mod wal_thread;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use quorate_core::storage::{Page, Range, StorageError, Update};

use crate::config::Durability;
use crate::tree::Tree;
use crate::wal;
use crate::write_buffer::WriteBuffer;

pub use state::MAX_QUEUED_UPDATES;

use engine_core::EngineCore;
#[cfg(test)]
use fault_points::FaultPoints;
use state::{Failure, State};

/// The running engine. Dropping it writes everything to the tree and ends both threads.
pub(crate) struct Engine {
    shared: Arc<EngineCore>,
    wal_thread: Option<JoinHandle<()>>,
    checkpointer: Option<JoinHandle<()>>,
}

impl Engine {
    /// Writes the changes of an existing WAL to the tree, and starts the threads.
    ///
    /// # Errors
    /// If an acknowledged batch is damaged, or the disk fails. A full disk or a full map is no
    /// error: the engine starts, and serves reads.
    pub(crate) fn start(
        tree: Tree,
        folder: PathBuf,
        durability: Durability,
        interval_ms: u64,
    ) -> Result<Engine, StorageError> {
        let recovered = wal::recover(&folder, tree.wal_position()?)?;
        let uses_wal = durability == Durability::Fsync;
        let state = State {
            active_size: recovered.changes.size,
            active_through: recovered.through,
            active_seqno: 1,
            wal_generation: recovered.through.generation + 1,
            checkpoint_requested: true,
            failure: Some(Failure::Wal(StorageError::Io {
                detail: "the engine is starting: its write-ahead log does not exist yet".into(),
            })),
            ..State::default()
        };
        let shared = Arc::new(EngineCore {
            tree,
            folder,
            uses_wal,
            wal: Mutex::default(),
            interval: Duration::from_millis(interval_ms),
            checkpoint_lock: Mutex::default(),
            state: Mutex::new(state),
            buffer: RwLock::new(WriteBuffer { active: recovered.changes, ..WriteBuffer::default() }),
            wal_thread_wakeup: Condvar::new(),
            checkpointer_wakeup: Condvar::new(),
            checkpoint_ended: Condvar::new(),
            #[cfg(test)]
            faults: FaultPoints::default(),
        });
        shared.checkpoint_recovered()?;
        let spawn = |name: &str, step: fn(&EngineCore) -> bool| {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(name.into())
                .spawn(move || while step(&shared) {})
                .expect("a thread can be started")
        };
        let wal_thread = uses_wal.then(|| spawn("quorate-wal", EngineCore::write_next_batch));
        let checkpointer = Some(spawn("quorate-ckpt", EngineCore::run_next_checkpoint));
        Ok(Engine { shared, wal_thread, checkpointer })
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        if let Some(buffered) = self.shared.read_buffer().get(key) {
            return Ok(buffered.clone());
        }
        self.shared.tree.get(key)
    }

    pub(crate) fn scan(&self, range: Range<'_>) -> Result<Page, StorageError> {
        // Under the lock, buffer and tree are captured at one moment. The page is then read without
        // the lock.
        let buffer = self.shared.read_buffer();
        let active = buffer.active_in(&range);
        let frozen = buffer.frozen.clone();
        let tree = self.shared.tree.snapshot()?;
        drop(buffer);
        tree.scan(range, [&active, &frozen.changes])
    }

    pub(crate) fn update(&self, batch: Vec<Box<dyn Update>>) {
        self.shared.update(batch);
    }

    /// Requests a checkpoint under "interval". Under "fsync" no update waits for one.
    pub(crate) fn flush(&self) {
        if !self.shared.uses_wal {
            self.shared.lock().checkpoint_requested = true;
            self.shared.checkpointer_wakeup.notify_one();
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.shared.lock().unfinished_updates()
    }

    /// Runs checkpoints until the tree has all changes that the write buffer has now.
    fn checkpoint_and_wait(&self) -> Result<(), StorageError> {
        let mut state = self.shared.lock();
        let wanted = state.active_seqno;
        while state.tree_seqno < wanted {
            if let Some(failure) = &state.failure {
                return Err(failure.error().clone());
            }
            state.checkpoint_requested = true;
            self.shared.checkpointer_wakeup.notify_one();
            state = self.shared.checkpoint_ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Copies the tree once it has all changes that the write buffer has now. No checkpoint commits
    /// during the copy, so the copy never has only a part of a checkpoint.
    pub(crate) fn copy_to(&self, folder: &Path) -> Result<(), StorageError> {
        self.checkpoint_and_wait()?;
        let _guard = self.shared.checkpoint_lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.tree.copy_to(folder)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.wal_thread_wakeup.notify_one();
        // The WAL thread ends first, because the last checkpoint must contain the last WAL batch.
        for thread in [self.wal_thread.take(), self.checkpointer.take()].into_iter().flatten() {
            self.shared.checkpointer_wakeup.notify_one();
            let _ = thread.join();
        }
        if self.shared.lock().all_is_in_tree() {
            // If the files cannot be removed, the next start finds that the tree has their changes.
            let _ = wal::remove(&self.shared.folder);
        }
    }
}

impl EngineCore {
    /// Runs the first checkpoint: writes the recovered changes to the tree, and creates a new WAL.
    ///
    /// If space is lacking, the checkpointer tries again later.
    fn checkpoint_recovered(&self) -> Result<(), StorageError> {
        let mut state = self.lock();
        self.begin_checkpoint(&mut state);
        self.run_checkpoint(state);
        match &self.lock().failure {
            Some(failure) if !matches!(failure.error(), StorageError::Full { .. }) => {
                Err(failure.error().clone())
            }
            _ => Ok(()),
        }
    }
}
