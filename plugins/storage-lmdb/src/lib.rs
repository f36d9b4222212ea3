//! Durable storage on LMDB: a B+ tree in one memory-mapped file, copy-on-write, with a log for what is not in it yet.
//!
//! - [`Config`]: durability, size.
//! - `map.rs`: the tree: opening, locking, reading (copies out, own cursor loops), committing one batch, room left.
//! - `log.rs`: the log, two files that take turns: what is acked under "fsync" before it is in the tree.
//! - `newer.rs`: what is newer than the tree, in memory, where readers see it.
//! - `writer.rs`: how updates are applied; `writer/logging.rs` gathers them into batches of the log, `writer/committing.rs`
//!   commits them to the tree.
//!
//! What is *not* here: `MDB_NOSYNC` and `MDB_WRITEMAP`, which can corrupt the file.

mod config;
mod log;
mod map;
mod newer;
mod writer;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use quorate_core::key::StorageKey;
use quorate_core::storage::{Capability, Page, Range, StorageEngine, StorageError, Update};

pub use config::{Config, Durability};

use map::Map;
use writer::Writer;

/// This plugin's name in `[storage] engine`.
pub const NAME: &str = "lmdb";

/// Most updates that wait for the log or a commit, or are on their way; beyond it, `QueueFull`.
pub const MAX_QUEUED_UPDATES: usize = 65_536;

/// Opens the store in `folder`, or creates it.
///
/// # Errors
/// If the folder is in use by another process, holds a newer format, or cannot be written.
pub fn open(config: Config, folder: &Path) -> Result<LmdbStorage, StorageError> {
    if !(1..=60_000).contains(&config.interval_ms) {
        let detail = format!("interval_ms = {}: use 1 to 60000", config.interval_ms);
        return Err(StorageError::Io { detail });
    }
    let map = Arc::new(Map::open(&config, folder)?);
    let writer = Writer::start(map, folder.to_owned(), config.durability, config.interval_ms)?;
    Ok(LmdbStorage { writer, durability: config.durability })
}

/// A store in a folder.
pub struct LmdbStorage {
    writer: Writer,
    durability: Durability,
}

impl StorageEngine for LmdbStorage {
    fn get(&self, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
        self.writer.get(key.as_bytes())
    }

    fn update(&self, batch: Vec<Box<dyn Update>>) {
        self.writer.update(batch);
    }

    fn flush(&self) {
        self.writer.flush();
    }

    fn waiting(&self) -> usize {
        self.writer.waiting()
    }

    fn scan(&self, range: Range<'_>) -> Result<Page, StorageError> {
        self.writer.scan(range)
    }

    fn checkpoint(&self, folder: &Path) -> Result<(), StorageError> {
        self.writer.copy_to(folder)
    }

    fn capability(&self) -> Capability {
        let durable = self.durability == Durability::Fsync;
        Capability { durable, ack_when_durable: durable, survives_restart: true }
    }
}
