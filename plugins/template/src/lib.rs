//! A storage engine in memory, as a starting point for your own. The doc comment of
//! [`StorageEngine`] is the contract.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quorate_core::StorageKey;
use quorate_core::plugin::{OpenError, PluginContext};
use quorate_core::storage::{Capability, Page, Range, RecordAction, StorageEngine, StorageError, Update};
use serde::Deserialize;

/// This plugin's name: `[storage] engine = "my-engine"`.
pub const NAME: &str = "my-engine";

/// Keys of `[storage]` besides `engine`. An unknown key is an error that names it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Largest number of records of the node. Further ones are refused. Default: no limit.
    pub max_records: Option<usize>,
}

/// Opens the engine. A durable engine must also do this here: create the context's data folder,
/// lock it, and check the format of its files.
///
/// # Errors
/// If the engine cannot be opened. The error has the reason and the remedy.
pub fn open(config: Config, _context: &PluginContext<'_>) -> Result<MyEngine, OpenError> {
    Ok(MyEngine { config, records: Mutex::default() })
}

/// The records of one node.
pub struct MyEngine {
    config: Config,
    records: Mutex<BTreeMap<Bytes, Bytes>>,
}

impl MyEngine {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Bytes, Bytes>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one read-change-write. It holds the lock from the read to the write, which makes the
    /// update atomic.
    fn apply(&self, update: &mut dyn Update) -> Result<(), StorageError> {
        let mut records = self.lock();
        let key = update.key().to_bytes();
        let stored = records.get(&key).cloned();
        let is_new = stored.is_none();
        match update.change(stored)? {
            RecordAction::Keep => {}
            RecordAction::Remove => {
                records.remove(&key);
            }
            RecordAction::Put(value) => {
                if let Some(limit) = self.config.max_records.filter(|&limit| is_new && records.len() >= limit)
                {
                    let detail = format!(
                        "the limit of {limit} records ([storage] max_records) is reached: raise it or delete keys"
                    );
                    return Err(StorageError::Full { detail });
                }
                records.insert(key, value);
            }
        }
        Ok(())
    }
}

impl StorageEngine for MyEngine {
    fn get(&self, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
        Ok(self.lock().get(key.as_bytes()).cloned())
    }

    /// Runs a batch of updates. An engine on disk applies the whole batch, commits it with one
    /// flush, and calls `finished` only then.
    fn update(&self, batch: Vec<Box<dyn Update>>) {
        for mut update in batch {
            let outcome = self.apply(&mut *update);
            if outcome.is_ok() {
                update.applied();
            }
            update.finished(outcome);
        }
    }

    fn scan(&self, range: Range<'_>) -> Result<Page, StorageError> {
        let mut page = Page::default();
        if range.end.is_some_and(|end| end <= range.start) {
            return Ok(page);
        }
        let start = if range.after { Bound::Excluded(range.start) } else { Bound::Included(range.start) };
        let end = range.end.map_or(Bound::Unbounded, Bound::Excluded);
        let mut bytes = 0;
        for (key, value) in self.lock().range::<[u8], _>((start, end)) {
            if page.records.len() >= range.limit || (bytes >= range.max_bytes && !page.records.is_empty()) {
                page.more = true;
                break;
            }
            bytes += key.len() + value.len();
            page.records.push((key.clone(), value.clone()));
        }
        Ok(page)
    }

    fn checkpoint(&self, _folder: &Path) -> Result<(), StorageError> {
        Err(StorageError::Io { detail: "my-engine has nothing durable to copy".into() })
    }

    /// Returns the promises of this engine. The conformance suite checks them.
    fn capability(&self) -> Capability {
        Capability { durable: false, ack_when_durable: false, survives_restart: false }
    }
}
