//! Volatile storage in a `BTreeMap`, for tests and caches. What it holds is gone when its process is.

mod config;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use quorate_core::key::StorageKey;
use quorate_core::storage::{Capability, Change, Page, Range, StorageEngine, StorageError, Update};

pub use config::Config;

/// This plugin's name in `[storage] engine`.
pub const NAME: &str = "memory";

/// Opens an empty store.
///
/// # Errors
/// None today; the shape is that of all plugins.
pub fn open(config: Config) -> Result<MemoryStorage, StorageError> {
    Ok(MemoryStorage {
        records: Mutex::new(Records::default()),
        max_bytes: config.max_mib.map(|mib| mib.saturating_mul(1024 * 1024)),
    })
}

/// Records in a `BTreeMap` behind one lock.
pub struct MemoryStorage {
    records: Mutex<Records>,
    max_bytes: Option<u64>,
}

#[derive(Default)]
struct Records {
    by_key: BTreeMap<Bytes, Bytes>,
    bytes: u64,
}

impl Records {
    fn apply(&mut self, key: &[u8], change: Change, max_bytes: Option<u64>) -> Result<(), StorageError> {
        let freed = self.by_key.get(key).map_or(0, |old| (key.len() + old.len()) as u64);
        match change {
            Change::Keep => {}
            Change::Remove => {
                self.by_key.remove(key);
                self.bytes -= freed;
            }
            Change::Put(value) => {
                let bytes = self.bytes - freed + (key.len() + value.len()) as u64;
                if let Some(limit) = max_bytes
                    && bytes > limit
                    && bytes > self.bytes
                {
                    return Err(StorageError::Full {
                        detail: format!(
                            "{bytes} bytes, [storage] max_mib allows {limit}: raise it or delete keys"
                        ),
                    });
                }
                self.bytes = bytes;
                match self.by_key.get_mut(key) {
                    Some(old) => *old = value,
                    None => {
                        self.by_key.insert(Bytes::copy_from_slice(key), value);
                    }
                }
            }
        }
        Ok(())
    }
}

impl MemoryStorage {
    /// An update that panics leaves the map whole: the lock is only ever held across whole changes.
    fn lock(&self) -> std::sync::MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageEngine for MemoryStorage {
    fn get(&self, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
        Ok(self.lock().by_key.get(key.as_bytes()).cloned())
    }

    fn update(&self, batch: Vec<Box<dyn Update>>) {
        for mut update in batch {
            let outcome = {
                let mut records = self.lock();
                let stored = records.by_key.get(update.key().as_bytes()).cloned();
                update.change(stored).and_then(|change| {
                    let key = update.key().clone();
                    records.apply(key.as_bytes(), change, self.max_bytes)
                })
            };
            if outcome.is_ok() {
                update.applied();
            }
            update.finished(outcome);
        }
    }

    fn scan(&self, range: Range<'_>) -> Result<Page, StorageError> {
        let start = if range.after { Bound::Excluded(range.start) } else { Bound::Included(range.start) };
        let end = range.end.map_or(Bound::Unbounded, Bound::Excluded);
        let mut page = Page::default();
        if range.end.is_some_and(|end| end <= range.start) {
            return Ok(page);
        }
        let mut bytes = 0;
        for (key, value) in self.lock().by_key.range::<[u8], _>((start, end)) {
            if page.records.len() >= range.limit || (bytes >= range.max_bytes && !page.records.is_empty()) {
                page.more = true;
                break;
            }
            bytes += key.len() + value.len();
            page.records.push((key.clone(), value.clone()));
        }
        Ok(page)
    }

    fn checkpoint(&self, _: &Path) -> Result<(), StorageError> {
        Err(StorageError::Io { detail: "the memory engine has nothing durable to copy; use \"lmdb\"".into() })
    }

    fn capability(&self) -> Capability {
        Capability { durable: false, ack_when_durable: false, survives_restart: false }
    }
}
