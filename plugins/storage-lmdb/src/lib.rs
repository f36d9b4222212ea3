//! Durable storage on LMDB, a copy-on-write B+ tree in one memory-mapped file.
//!
//! A commit to the tree is expensive. Changes therefore collect in a write buffer in memory, and a
//! checkpoint writes them to the tree. Under "fsync", each change is first written to a write-ahead
//! log (WAL). It is acknowledged, and readers see it, only once the WAL has it on the disk.
//!
//! # From an update to the tree
//!
//! ```text
//! durability = "fsync"                            durability = "interval"
//!
//! update()                   caller's thread      update()                   caller's thread
//!   | read, change, `applied`                       | read, change
//!   v                                               |
//! pending changes            memory                 |
//!   | append                 thread quorate-wal     |
//!   v                                               |
//! WAL batch                  log-0 or log-1         |
//!   | fdatasync              thread quorate-wal     |
//!   v                                               v
//! write buffer, active part  memory               write buffer, active part  memory
//!   | readers see the change                        | readers see the change
//!   | ack: `finished`                               | ack: `applied`
//!   |                                               |
//!   | checkpoint begins      thread quorate-ckpt    | checkpoint begins      thread quorate-ckpt
//!   v                                               v
//! write buffer, frozen part  memory               write buffer, frozen part  memory
//!   | about 48 commits       thread quorate-ckpt    | one commit             thread quorate-ckpt
//!   v                                               v
//! LMDB tree                  data.mdb             LMDB tree                  data.mdb
//!                                                   `finished`
//! ```
//!
//! A checkpoint begins `interval_ms` after the last one ended, or earlier if the buffer is large or
//! space is low. Under "fsync", a large checkpoint is split into about 48 commits with pauses
//! between them. The reason is that clients wait for flushes of the WAL, and these wait while a
//! commit is flushed. Under "interval" there are no flushes of a WAL, so one commit is enough.
//!
//! If LMDB's map or the disk lacks space for a commit, its changes are committed in smaller parts.
//! A smaller commit needs less space at a time.
//!
//! At a start, WAL recovery reads the changes that the WAL has and the tree lacks, and the first
//! checkpoint writes them to the tree. A clean stop writes all changes to the tree and removes the
//! WAL. A checkpoint here is not [`StorageEngine::checkpoint`], which copies the tree into another
//! folder.
//!
//! # Code map
//!
//! - [`Config`]: durability, interval and sizes.
//! - `tree.rs`: reads, write transactions and free space of the tree.
//! - `data_folder.rs`: lock and format mark of the folder.
//! - `wal`: files, format, writer and recovery of the log.
//! - `write_buffer.rs`: changes in memory.
//! - `space.rs`: the space that a change needs.
//! - `engine`: updates, WAL thread and checkpointer, each in a file of its own.
//!
//! LMDB's flags `MDB_NOSYNC` and `MDB_WRITEMAP` are not used. With them, a crash or a stray write
//! to memory can corrupt the file.

mod config;
mod data_folder;
mod engine;
#[cfg(test)]
mod random;
mod space;
mod tree;
mod wal;
mod write_buffer;

use std::path::Path;

use bytes::Bytes;
use quorate_core::key::StorageKey;
use quorate_core::plugin::{OpenError, PluginContext};
use quorate_core::storage::{Capability, Page, Range, StorageEngine, StorageError, Update};

pub use config::{Config, Durability};
pub use engine::MAX_QUEUED_UPDATES;

use engine::Engine;
use tree::Tree;

/// This plugin's name in `[storage] engine`.
pub const NAME: &str = "lmdb";

/// Opens the store in the data folder, or creates it.
///
/// # Errors
/// If a value of `config` is outside its limits, or another process uses the folder. Also if the
/// folder's format is newer than this build's, the WAL is damaged, or the disk fails.
pub fn open(config: Config, context: &PluginContext<'_>) -> Result<LmdbStorage, OpenError> {
    config.check()?;
    let folder = context.data_folder;
    let tree = Tree::open(&config, folder)?;
    let engine = Engine::start(tree, folder.to_owned(), config.durability, config.interval_ms)?;
    Ok(LmdbStorage { engine, durability: config.durability })
}

/// An open store.
pub struct LmdbStorage {
    engine: Engine,
    durability: Durability,
}

impl StorageEngine for LmdbStorage {
    fn get(&self, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
        self.engine.get(key.as_bytes())
    }

    fn update(&self, batch: Vec<Box<dyn Update>>) {
        self.engine.update(batch);
    }

    fn flush(&self) {
        self.engine.flush();
    }

    fn waiting(&self) -> usize {
        self.engine.waiting()
    }

    fn scan(&self, range: Range<'_>) -> Result<Page, StorageError> {
        self.engine.scan(range)
    }

    fn checkpoint(&self, folder: &Path) -> Result<(), StorageError> {
        self.engine.copy_to(folder)
    }

    fn capability(&self) -> Capability {
        let durable = self.durability == Durability::Fsync;
        Capability { durable, ack_when_durable: durable, survives_restart: true }
    }
}
