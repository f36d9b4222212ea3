//! The B+ tree in the memory-mapped file `data.mdb`. Only this file uses LMDB's API.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytes::Bytes;
use lmdb::{Cursor, Database, DatabaseFlags, Environment, EnvironmentFlags, Transaction, WriteFlags};
use quorate_core::storage::{Page, Range, StorageError};

use crate::config::Config;
use crate::data_folder::{DataFolder, write_format};
use crate::space::FreeSpace;
use crate::wal::WalPosition;
use crate::write_buffer::Changes;

const MAX_READERS: u32 = 1024;
const MIB: u64 = 1024 * 1024;
/// Free bytes of the map, besides the reserve. With fewer, the engine also counts freed pages.
const COUNT_FREED_PAGES_BELOW: u64 = 64 * MIB;
/// Cursor operations by LMDB's numbers (`MDB_cursor_op`).
const SET_RANGE: u32 = 17;
const NEXT: u32 = 8;
/// Key of the tree's own record: the WAL position up to which the tree has all changes. It sorts
/// before all storage keys, which begin with the letter of a table.
const WAL_POSITION_KEY: &[u8] = b"\0log";
/// Lower bound of the storage keys.
const FIRST_KEY: &[u8] = &[1];

/// The open tree of a data folder.
pub(crate) struct Tree {
    environment: Environment,
    database: Database,
    map_bytes: u64,
    reserve_bytes: u64,
    /// Last field, because fields are dropped in order: the folder stays locked until the
    /// environment is closed.
    folder: DataFolder,
}

impl Tree {
    pub(crate) fn open(config: &Config, path: &Path) -> Result<Tree, StorageError> {
        let folder = DataFolder::open(path)?;
        let failed = |what: &str, error: &dyn std::fmt::Display| StorageError::Io {
            detail: format!("{what} {}: {error}", path.display()),
        };
        let map_bytes = config.map_size_mib * MIB;
        let environment = Environment::new()
            .set_flags(EnvironmentFlags::NO_TLS | EnvironmentFlags::NO_READAHEAD)
            .set_max_readers(MAX_READERS)
            .set_map_size(map_bytes as usize)
            .open(path)
            .map_err(|error| failed("cannot open data folder", &error))?;
        let database = environment
            .create_db(None, DatabaseFlags::empty())
            .map_err(|error| failed("cannot open the tree in", &error))?;
        let reserve_bytes = config.reserve_mib.saturating_mul(MIB).min(map_bytes / 8);
        Ok(Tree { environment, database, map_bytes, reserve_bytes, folder })
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let transaction = self.environment.begin_ro_txn().map_err(lmdb_error)?;
        match transaction.get(self.database, &key) {
            Ok(value) => Ok(Some(Bytes::copy_from_slice(value))),
            Err(lmdb::Error::NotFound) => Ok(None),
            Err(error) => Err(lmdb_error(error)),
        }
    }

    /// Begins a read transaction, which sees the tree as of this moment.
    pub(crate) fn snapshot(&self) -> Result<Snapshot<'_>, StorageError> {
        let transaction = self.environment.begin_ro_txn().map_err(lmdb_error)?;
        Ok(Snapshot { transaction, database: self.database })
    }

    /// Begins a write transaction. LMDB runs one at a time.
    pub(crate) fn begin_write(&self) -> Result<WriteTransaction<'_>, StorageError> {
        let transaction = self.environment.begin_rw_txn().map_err(lmdb_error)?;
        Ok(WriteTransaction { transaction, database: self.database })
    }

    /// Reads the WAL position up to which the tree has all changes.
    pub(crate) fn wal_position(&self) -> Result<WalPosition, StorageError> {
        let Some(record) = self.get(WAL_POSITION_KEY)? else { return Ok(WalPosition::default()) };
        let number = |at: usize| Some(u64::from_le_bytes(record.get(at..at + 8)?.try_into().ok()?));
        match (number(0), number(8)) {
            (Some(generation), Some(batches)) => Ok(WalPosition { generation, batches }),
            _ => Err(StorageError::Io {
                detail: format!("the tree in {} is damaged", self.folder.path().display()),
            }),
        }
    }

    /// Measures the space that can still be used without touching the reserve (`reserve_mib`).
    pub(crate) fn free_space(&self) -> Result<FreeSpace, StorageError> {
        let free_disk = fs4::available_space(self.folder.path()).unwrap_or(u64::MAX);
        let page_bytes = u64::from(self.environment.stat().map_err(lmdb_error)?.page_size());
        let used = self.environment.info().map_err(lmdb_error)?.last_pgno() as u64 * page_bytes;
        let mut free_map = self.map_bytes.saturating_sub(used);
        // Freed pages are free space too. Counting them is slow, so they are counted only when the
        // map is nearly full.
        if free_map < self.reserve_bytes + COUNT_FREED_PAGES_BELOW {
            free_map += self.environment.freelist().map_err(lmdb_error)? as u64 * page_bytes;
        }
        Ok(FreeSpace {
            tree_pages: free_map.saturating_sub(self.reserve_bytes) / page_bytes,
            disk_bytes: free_disk.saturating_sub(self.reserve_bytes),
        })
    }

    /// Builds the error for a change that needs more space than `free`.
    ///
    /// The error names the map if fewer than `tree_pages` pages are free in it. Otherwise it names
    /// the disk, which lacks space for the tree and the WAL.
    pub(crate) fn full_error(&self, free: FreeSpace, tree_pages: usize) -> StorageError {
        let folder = self.folder.path().display();
        let detail = if tree_pages as u64 > free.tree_pages {
            let map = self.map_bytes / MIB;
            format!(
                "the map of {map} MiB in {folder} is full: raise [storage] map_size_mib and restart the node"
            )
        } else {
            let (left, kept) = ((free.disk_bytes + self.reserve_bytes) / MIB, self.reserve_bytes / MIB);
            format!(
                "{left} MiB left on the disk of {folder}, [storage] reserve_mib keeps {kept}: free some space"
            )
        };
        StorageError::Full { detail }
    }

    /// Writes a compacted, consistent copy of the tree into an empty folder.
    pub(crate) fn copy_to(&self, folder: &Path) -> Result<(), StorageError> {
        let failed = |error: String| StorageError::Io {
            detail: format!("cannot copy the store to {}: {error}", folder.display()),
        };
        fs::create_dir_all(folder).map_err(|error| failed(error.to_string()))?;
        if fs::read_dir(folder).map_err(|error| failed(error.to_string()))?.next().is_some() {
            return Err(failed("the folder is not empty: use an empty or a new one".into()));
        }
        let path = CString::new(folder.as_os_str().as_bytes()).map_err(|error| failed(error.to_string()))?;
        // SAFETY: the environment is open as long as `self` exists. `path` is a C string that
        // outlives the call.
        let code = unsafe {
            lmdb_sys::mdb_env_copy2(self.environment.env(), path.as_ptr(), lmdb_sys::MDB_CP_COMPACT)
        };
        if code != 0 {
            return Err(failed(lmdb::Error::from_err_code(code).to_string()));
        }
        write_format(folder)
    }
}

/// The tree as of one moment.
pub(crate) struct Snapshot<'tree> {
    transaction: lmdb::RoTransaction<'tree>,
    database: Database,
}

impl Snapshot<'_> {
    /// Reads a page of a range: the tree's records, merged with the changes in the write buffer.
    ///
    /// `buffered` has the newest changes first. The loop over the cursor is our own, because the
    /// iterators of the crate `lmdb` report an error as the end of the data.
    pub(crate) fn scan(&self, range: Range<'_>, buffered: [&Changes; 2]) -> Result<Page, StorageError> {
        let cursor = self.transaction.open_ro_cursor(self.database).map_err(lmdb_error)?;
        let from = range.start.max(FIRST_KEY);
        let mut stored = cursor_record(cursor.get(Some(from), None, SET_RANGE))?;
        let bounds = (std::ops::Bound::Included(from), std::ops::Bound::Unbounded);
        let mut buffered = buffered.map(|changes| changes.range::<[u8], _>(bounds).peekable());
        let mut page = Page::default();
        let mut bytes = 0;
        loop {
            let buffered_keys =
                buffered.iter_mut().filter_map(|part| part.peek().map(|&(key, _)| key.as_ref()));
            let Some(key) = buffered_keys.chain(stored.map(|(key, _)| key)).min() else { return Ok(page) };
            if range.end.is_some_and(|end| key >= end) {
                return Ok(page);
            }
            let is_stored = stored.is_some_and(|(stored, _)| stored == key);
            let mut value = stored.filter(|_| is_stored).map(|(_, value)| value);
            // The newest part is last here, so its change wins.
            for part in buffered.iter_mut().rev() {
                if let Some((_, changed)) = part.next_if(|(buffered, _)| buffered.as_ref() == key) {
                    value = changed.as_deref();
                }
            }
            if let Some(value) = value
                && !(range.after && key == range.start)
            {
                if page.records.len() >= range.limit || (bytes >= range.max_bytes && !page.records.is_empty())
                {
                    page.more = true;
                    return Ok(page);
                }
                bytes += key.len() + value.len();
                page.records.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            }
            if is_stored {
                stored = cursor_record(cursor.get(None, None, NEXT))?;
            }
        }
    }
}

type CursorResult<'a> = lmdb::Result<(Option<&'a [u8]>, &'a [u8])>;
type Record<'a> = (&'a [u8], &'a [u8]);

/// Returns key and value at a cursor, or `None` at the end of the tree.
fn cursor_record(result: CursorResult<'_>) -> Result<Option<Record<'_>>, StorageError> {
    match result {
        Ok((Some(key), value)) => Ok(Some((key, value))),
        Ok((None, _)) | Err(lmdb::Error::NotFound) => Ok(None),
        Err(error) => Err(lmdb_error(error)),
    }
}

/// Changes that one commit makes together. Dropping the transaction without a commit undoes them.
pub(crate) struct WriteTransaction<'tree> {
    transaction: lmdb::RwTransaction<'tree>,
    database: Database,
}

impl WriteTransaction<'_> {
    /// Stores a record, or removes it if `value` is `None`.
    pub(crate) fn apply(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StorageError> {
        let outcome = match value {
            Some(value) => self.transaction.put(self.database, &key, &value, WriteFlags::empty()),
            None => match self.transaction.del(self.database, &key, None) {
                Err(lmdb::Error::NotFound) => Ok(()),
                other => other,
            },
        };
        outcome.map_err(lmdb_error)
    }

    /// Stores the WAL position up to which the tree has all changes with this commit.
    pub(crate) fn set_wal_position(&mut self, position: WalPosition) -> Result<(), StorageError> {
        let bytes = [position.generation.to_le_bytes(), position.batches.to_le_bytes()].concat();
        self.apply(WAL_POSITION_KEY, Some(&bytes))
    }

    pub(crate) fn commit(self) -> Result<(), StorageError> {
        self.transaction.commit().map_err(lmdb_error)
    }
}

fn lmdb_error(error: lmdb::Error) -> StorageError {
    match error {
        lmdb::Error::MapFull => StorageError::Full {
            detail: "the map is full: raise [storage] map_size_mib and restart the node".into(),
        },
        // Reported as full, because smaller commits of the same changes can succeed.
        lmdb::Error::TxnFull => {
            StorageError::Full { detail: "one commit changes more pages than LMDB allows".into() }
        }
        // ENOSPC and EDQUOT.
        lmdb::Error::Other(28 | 122) => StorageError::Full { detail: format!("the disk is full: {error}") },
        other => StorageError::Io { detail: format!("lmdb: {other}") },
    }
}
