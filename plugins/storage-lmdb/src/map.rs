//! The memory-mapped file. All of LMDB's API is used here and nowhere else.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use fs4::FileExt;
use lmdb::{Cursor, Database, DatabaseFlags, Environment, EnvironmentFlags, Transaction, WriteFlags};
use quorate_core::storage::{Page, Range, StorageError};

use crate::config::Config;

const FORMAT_FILE: &str = "FORMAT";
/// 2: with a log beside the tree.
const FORMAT: u32 = 2;
const LOCK_FILE: &str = "quorate.lock";
const MAX_READERS: u32 = 1024;
const MIB: u64 = 1024 * 1024;
/// 16 TiB.
const MAX_MAP_MIB: u64 = 16 * 1024 * 1024;
const COUNT_FREE_PAGES_BELOW: u64 = 64 * MIB;
/// Cursor operations by LMDB's numbers (`MDB_cursor_op`).
const FIRST: u32 = 0;
const SET_RANGE: u32 = 17;
const NEXT: u32 = 8;

/// Changes that are newer than the file, by key; `None`: removed.
pub(crate) type Overlay = BTreeMap<Bytes, Option<Bytes>>;

pub(crate) struct Map {
    environment: Environment,
    database: Database,
    folder: PathBuf,
    map_bytes: u64,
    reserve_bytes: u64,
    /// Held as long as the folder is in use: LMDB must not be opened twice.
    _lock: File,
}

impl Map {
    pub(crate) fn open(config: &Config, folder: &Path) -> Result<Map, StorageError> {
        let failed = |what: &str, error: &dyn std::fmt::Display| StorageError::Io {
            detail: format!("{what} {}: {error}", folder.display()),
        };
        fs::create_dir_all(folder).map_err(|error| failed("cannot create data folder", &error))?;
        let lock = File::create(folder.join(LOCK_FILE))
            .map_err(|error| failed("cannot lock data folder", &error))?;
        if FileExt::try_lock(&lock).is_err() {
            return Err(StorageError::Io {
                detail: format!("data folder {} is in use by another process", folder.display()),
            });
        }
        check_format(folder)?;
        if !(1..=MAX_MAP_MIB).contains(&config.map_size_mib) {
            let detail = format!("map_size_mib = {}: use 1 to {MAX_MAP_MIB}", config.map_size_mib);
            return Err(StorageError::Io { detail });
        }
        let map_bytes = config.map_size_mib * MIB;
        let environment = Environment::new()
            .set_flags(EnvironmentFlags::NO_TLS | EnvironmentFlags::NO_READAHEAD)
            .set_max_readers(MAX_READERS)
            .set_map_size(map_bytes as usize)
            .open(folder)
            .map_err(|error| failed("cannot open data folder", &error))?;
        let database = environment
            .create_db(None, DatabaseFlags::empty())
            .map_err(|error| failed("cannot open the tree in", &error))?;
        let reserve_bytes = config.reserve_mib.saturating_mul(MIB).min(map_bytes / 8);
        Ok(Map { environment, database, folder: folder.to_owned(), map_bytes, reserve_bytes, _lock: lock })
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let transaction = self.environment.begin_ro_txn().map_err(io)?;
        match transaction.get(self.database, &key) {
            Ok(value) => Ok(Some(Bytes::copy_from_slice(value))),
            Err(lmdb::Error::NotFound) => Ok(None),
            Err(error) => Err(io(error)),
        }
    }

    /// The tree as it is at this moment.
    pub(crate) fn snapshot(&self) -> Result<Snapshot<'_>, StorageError> {
        Ok(Snapshot { transaction: self.environment.begin_ro_txn().map_err(io)?, database: self.database })
    }

    /// Begins a batch that will be committed as one.
    pub(crate) fn begin(&self) -> Result<Batch<'_>, StorageError> {
        Ok(Batch { transaction: self.environment.begin_rw_txn().map_err(io)?, database: self.database })
    }

    /// An error if a batch that stores something must not begin: the disk or the map is nearly full. What is refused
    /// here was not begun, so nothing of it can be half done.
    pub(crate) fn check_room(&self) -> Result<(), StorageError> {
        self.room().map(|_| ())
    }

    /// Bytes that may still be stored before the reserve is touched, or why there are none.
    pub(crate) fn room(&self) -> Result<u64, StorageError> {
        let free_disk = fs4::available_space(&self.folder).unwrap_or(u64::MAX);
        if free_disk < self.reserve_bytes {
            return Err(StorageError::Full {
                detail: format!(
                    "{} MiB left on the disk of {}, [storage] reserve_mib keeps {}: free some space",
                    free_disk / MIB,
                    self.folder.display(),
                    self.reserve_bytes / MIB
                ),
            });
        }
        let page_bytes = u64::from(self.environment.stat().map_err(io)?.page_size());
        let used = self.environment.info().map_err(io)?.last_pgno() as u64 * page_bytes;
        let mut left = self.map_bytes.saturating_sub(used);
        // Pages that were freed count, too. Counting them takes a while, so only when it matters.
        if left < self.reserve_bytes + COUNT_FREE_PAGES_BELOW {
            left += self.environment.freelist().map_err(io)? as u64 * page_bytes;
        }
        match left.checked_sub(self.reserve_bytes) {
            None | Some(0) => Err(self.map_full()),
            Some(room) => Ok(room.min(free_disk - self.reserve_bytes)),
        }
    }

    pub(crate) fn map_full(&self) -> StorageError {
        StorageError::Full {
            detail: format!(
                "the map of {} MiB in {} is full: raise [storage] map_size_mib and restart the node",
                self.map_bytes / MIB,
                self.folder.display()
            ),
        }
    }

    /// A compacted, consistent copy of what is committed.
    pub(crate) fn copy_to(&self, folder: &Path) -> Result<(), StorageError> {
        let failed = |error: String| StorageError::Io {
            detail: format!("checkpoint to {}: {error}", folder.display()),
        };
        fs::create_dir_all(folder).map_err(|error| failed(error.to_string()))?;
        if fs::read_dir(folder).map_err(|error| failed(error.to_string()))?.next().is_some() {
            return Err(failed("the folder is not empty".into()));
        }
        let path = CString::new(folder.as_os_str().as_bytes()).map_err(|error| failed(error.to_string()))?;
        // SAFETY: the environment is open as long as `self` is, and `path` is a C string that outlives the call.
        let code = unsafe {
            lmdb_sys::mdb_env_copy2(self.environment.env(), path.as_ptr(), lmdb_sys::MDB_CP_COMPACT)
        };
        if code != 0 {
            return Err(failed(lmdb::Error::from_err_code(code).to_string()));
        }
        write_format(folder)
    }
}

/// The tree at one moment.
pub(crate) struct Snapshot<'map> {
    transaction: lmdb::RoTransaction<'map>,
    database: Database,
}

impl Snapshot<'_> {
    /// Records of a range, as they are under `overlay`.
    ///
    /// lmdb's iterators take an error for the end of the data, so the loop is our own.
    pub(crate) fn scan(&self, range: Range<'_>, overlay: &Overlay) -> Result<Page, StorageError> {
        let cursor = self.transaction.open_ro_cursor(self.database).map_err(io)?;
        // LMDB takes no empty key to seek to.
        let first = match range.start {
            [] => cursor.get(None, None, FIRST),
            start => cursor.get(Some(start), None, SET_RANGE),
        };
        let mut stored = match first {
            Ok((Some(key), value)) => Some((key, value)),
            Ok((None, _)) | Err(lmdb::Error::NotFound) => None,
            Err(error) => return Err(io(error)),
        };
        let from = (std::ops::Bound::Included(range.start), std::ops::Bound::Unbounded);
        let mut newer = overlay.range::<[u8], _>(from).peekable();
        let mut page = Page::default();
        let mut bytes = 0;
        loop {
            let newer_first = match (&stored, newer.peek()) {
                (None, None) => return Ok(page),
                (Some((key, _)), Some((newer_key, _))) => newer_key.as_ref() <= *key,
                (None, Some(_)) => true,
                (Some(_), None) => false,
            };
            let (key, value): (&[u8], Option<&[u8]>) = if newer_first {
                let (key, value) = newer.next().expect("peeked");
                (key.as_ref(), value.as_deref())
            } else {
                let (key, value) = stored.expect("matched");
                (key, Some(value))
            };
            if range.end.is_some_and(|end| key >= end) {
                return Ok(page);
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
            if stored.is_some_and(|(stored_key, _)| stored_key <= key) {
                stored = match cursor.get(None, None, NEXT) {
                    Ok((Some(key), value)) => Some((key, value)),
                    Ok((None, _)) | Err(lmdb::Error::NotFound) => None,
                    Err(error) => return Err(io(error)),
                };
            }
        }
    }
}

/// Changes on their way into one commit. Dropped without it, they are undone.
pub(crate) struct Batch<'map> {
    transaction: lmdb::RwTransaction<'map>,
    database: Database,
}

impl Batch<'_> {
    /// Stores a record, or removes it.
    pub(crate) fn apply(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StorageError> {
        let done = match value {
            Some(value) => self.transaction.put(self.database, &key, &value, WriteFlags::empty()),
            None => match self.transaction.del(self.database, &key, None) {
                Err(lmdb::Error::NotFound) => Ok(()),
                other => other,
            },
        };
        done.map_err(io)
    }

    pub(crate) fn commit(self) -> Result<(), StorageError> {
        self.transaction.commit().map_err(io)
    }
}

fn io(error: lmdb::Error) -> StorageError {
    match error {
        lmdb::Error::MapFull => StorageError::Full {
            detail: "the map is full: raise [storage] map_size_mib and restart the node".into(),
        },
        // ENOSPC and EDQUOT.
        lmdb::Error::Other(28 | 122) => StorageError::Full { detail: format!("the disk is full: {error}") },
        other => StorageError::Io { detail: format!("lmdb: {other}") },
    }
}

fn check_format(folder: &Path) -> Result<(), StorageError> {
    let path = folder.join(FORMAT_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !folder.join("data.mdb").exists() => {
            return write_format(folder);
        }
        Err(error) => {
            return Err(StorageError::Io {
                detail: format!("cannot read the format mark {}: {error}", path.display()),
            });
        }
    };
    match text.trim().strip_prefix("quorate-lmdb ").and_then(|version| version.parse::<u32>().ok()) {
        Some(FORMAT) => Ok(()),
        // A build that reads only older formats must not open it without what is in the log.
        Some(version) if version < FORMAT => write_format(folder),
        Some(version) => Err(StorageError::Io {
            detail: format!(
                "data folder {} has format {version}, this build reads up to {FORMAT}: start the newer build",
                folder.display()
            ),
        }),
        None => Err(StorageError::Io {
            detail: format!("{} is not a format mark of quorate: is this its data folder?", path.display()),
        }),
    }
}

fn write_format(folder: &Path) -> Result<(), StorageError> {
    let write = || -> std::io::Result<()> {
        let unfinished = folder.join("FORMAT.new");
        let mut file = File::create(&unfinished)?;
        writeln!(file, "quorate-lmdb {FORMAT}")?;
        file.sync_all()?;
        fs::rename(&unfinished, folder.join(FORMAT_FILE))?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|error| StorageError::Io {
        detail: format!("cannot write to {}: {error}", folder.display()),
    })
}
