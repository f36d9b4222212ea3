//! The database on disk.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Bound;
use std::path::Path;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};
use quorate_core::storage::{Page, Range, StorageError};

use crate::config::Config;

const RECORDS: &str = "records";
/// Records that a checkpoint copies in one commit.
const COPY_BATCH: usize = 1_024;

/// Changes by key. `None` removes the record.
pub(crate) type Changes = BTreeMap<Bytes, Option<Bytes>>;

pub(crate) struct Store {
    database: Database,
    records: Keyspace,
}

impl Store {
    pub(crate) fn open(config: &Config, folder: &Path) -> Result<Store, StorageError> {
        let failed = |error: fjall::Error| match error {
            fjall::Error::Locked => StorageError::Io {
                detail: format!(
                    "data folder {} is in use by another process: stop that process, or set another folder in [node] data",
                    folder.display()
                ),
            },
            other => {
                StorageError::Io { detail: format!("cannot open data folder {}: {other}", folder.display()) }
            }
        };
        let cache_bytes = config.cache_mib.saturating_mul(1024 * 1024);
        let database = Database::builder(folder).cache_size(cache_bytes).open().map_err(failed)?;
        let records = database.keyspace(RECORDS, KeyspaceCreateOptions::default).map_err(failed)?;
        Ok(Store { database, records })
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let value = self.records.get(key).map_err(io)?;
        // A copy, because a slice would keep its whole block in memory.
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    pub(crate) fn scan(&self, range: &Range<'_>) -> Result<Page, StorageError> {
        let mut page = Page::default();
        if range.end.is_some_and(|end| end <= range.start) {
            return Ok(page);
        }
        let start = if range.after { Bound::Excluded(range.start) } else { Bound::Included(range.start) };
        let end = range.end.map_or(Bound::Unbounded, Bound::Excluded);
        let mut bytes = 0;
        // A range of a snapshot, because a range of the keyspace itself may show half of a batch.
        for record in self.database.snapshot().range::<&[u8], _>(&self.records, (start, end)) {
            let (key, value) = record.into_inner().map_err(io)?;
            if page.records.len() >= range.limit || (bytes >= range.max_bytes && !page.records.is_empty()) {
                page.more = true;
                break;
            }
            bytes += key.len() + value.len();
            page.records.push((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)));
        }
        Ok(page)
    }

    /// Commits all changes or none. They are durable when this returns.
    pub(crate) fn commit(&self, changes: &Changes) -> Result<(), StorageError> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(&self.records, &key[..], &value[..]),
                None => batch.remove(&self.records, &key[..]),
            }
        }
        batch.commit().map_err(io)
    }

    /// Copies all committed records into an empty folder, as a database of its own.
    pub(crate) fn copy_to(&self, folder: &Path) -> Result<(), StorageError> {
        let failed = |error: std::io::Error| StorageError::Io {
            detail: format!("cannot copy the store to {}: {error}", folder.display()),
        };
        fs::create_dir_all(folder).map_err(failed)?;
        if fs::read_dir(folder).map_err(failed)?.next().is_some() {
            return Err(failed(std::io::Error::other("the folder is not empty: use an empty or a new one")));
        }
        let copy = Store::open(&Config::default(), folder)?;
        let mut gathered = Changes::new();
        for record in self.database.snapshot().iter(&self.records) {
            let (key, value) = record.into_inner().map_err(io)?;
            gathered.insert(Bytes::copy_from_slice(&key), Some(Bytes::copy_from_slice(&value)));
            if gathered.len() >= COPY_BATCH {
                copy.commit(&std::mem::take(&mut gathered))?;
            }
        }
        copy.commit(&gathered)
    }
}

fn io(error: fjall::Error) -> StorageError {
    match error {
        fjall::Error::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            StorageError::Full { detail: format!("the disk is full: {error}") }
        }
        other => StorageError::Io { detail: format!("fjall: {other}") },
    }
}
