//! Volatile storage, for tests and caches. All records are lost when the process ends.

mod arena;
mod config;
mod records;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use quorate_core::key::StorageKey;
use quorate_core::plugin::{OpenError, PluginContext};
use quorate_core::storage::{Capability, Page, Range, StorageEngine, StorageError, Update};

pub use config::Config;

use records::Records;

/// This plugin's name in `[storage] engine`.
pub const NAME: &str = "memory";

/// Opens an empty store.
///
/// # Errors
/// None today. Every plugin's `open` has this signature.
pub fn open(config: Config, _: &PluginContext<'_>) -> Result<MemoryStorage, OpenError> {
    Ok(MemoryStorage {
        records: Mutex::new(Records::default()),
        max_bytes: config.max_mib.map(|mib| mib.saturating_mul(1024 * 1024)),
    })
}

/// Records behind one lock.
pub struct MemoryStorage {
    records: Mutex<Records>,
    max_bytes: Option<u64>,
}

impl MemoryStorage {
    /// Locks the records, even after a panic: an update that panics leaves them consistent.
    fn lock(&self) -> std::sync::MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageEngine for MemoryStorage {
    fn get(&self, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
        Ok(self.lock().get(key.as_bytes()))
    }

    fn update(&self, batch: Vec<Box<dyn Update>>) {
        for mut update in batch {
            let mut records = self.lock();
            let outcome = records.update(&mut *update, self.max_bytes);
            if outcome.is_ok() {
                update.applied();
            }
            drop(records);
            update.finished(outcome);
        }
    }

    fn scan(&self, range: Range<'_>) -> Result<Page, StorageError> {
        Ok(self.lock().scan(&range))
    }

    fn checkpoint(&self, _: &Path) -> Result<(), StorageError> {
        Err(StorageError::Io {
            detail: "the memory engine has nothing durable to copy; use engine \"lmdb\"".into(),
        })
    }

    fn capability(&self) -> Capability {
        Capability { durable: false, ack_when_durable: false, survives_restart: false }
    }
}
