//! Durable storage on LMDB: a B+ tree in one memory-mapped file, copy-on-write, crash-safe without a log.
//!
//! - [`Config`]: durability, size.
//! - `map.rs`: the file: opening, locking, reading (copies out, own cursor loops), committing one batch, room left.
//! - `fsync.rs` and `interval.rs`: the two ways to group writes into commits.
//!
//! What is *not* here: `MDB_NOSYNC` and `MDB_WRITEMAP`, which can corrupt the file.

mod config;
mod fsync;
mod interval;
mod map;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use quorate_core::key::StorageKey;
use quorate_core::storage::{Capability, Page, Range, StorageEngine, StorageError, Update};

pub use config::{Config, Durability};

use fsync::FsyncWriter;
use interval::IntervalWriter;
use map::Map;

/// This plugin's name in `[storage] engine`.
pub const NAME: &str = "lmdb";

/// Most updates that wait for a commit; beyond it, `QueueFull`.
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
    let writer = match config.durability {
        Durability::Fsync => Writer::Fsync(FsyncWriter::start(map.clone())),
        Durability::Interval => Writer::Interval(IntervalWriter::start(map.clone(), config.interval_ms)),
    };
    Ok(LmdbStorage { map, writer })
}

/// A store in a folder.
pub struct LmdbStorage {
    map: Arc<Map>,
    writer: Writer,
}

enum Writer {
    Fsync(FsyncWriter),
    Interval(IntervalWriter),
}

impl StorageEngine for LmdbStorage {
    fn get(&self, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
        match &self.writer {
            Writer::Fsync(_) => self.map.get(key.as_bytes()),
            Writer::Interval(writer) => writer.get(key.as_bytes()),
        }
    }

    fn update(&self, batch: Vec<Box<dyn Update>>) {
        match &self.writer {
            Writer::Fsync(writer) => writer.update(batch),
            Writer::Interval(writer) => writer.update(batch),
        }
    }

    fn flush(&self) {
        if let Writer::Interval(writer) = &self.writer {
            writer.flush();
        }
    }

    fn scan(&self, range: Range<'_>) -> Result<Page, StorageError> {
        match &self.writer {
            Writer::Fsync(_) => self.map.scan(range, None),
            Writer::Interval(writer) => writer.scan(range),
        }
    }

    fn checkpoint(&self, folder: &Path) -> Result<(), StorageError> {
        self.map.copy_to(folder)
    }

    fn capability(&self) -> Capability {
        let durable = matches!(self.writer, Writer::Fsync(_));
        Capability { durable, ack_when_durable: durable, survives_restart: true }
    }
}
