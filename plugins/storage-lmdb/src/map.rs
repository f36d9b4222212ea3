//! The memory-mapped file. All of LMDB's API is used here and nowhere else.

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
use crate::newer::Overlay;

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
const SET_RANGE: u32 = 17;
const NEXT: u32 = 8;
/// A record of the tree's own, before all others: how much of the log it holds. Storage keys begin with the letter of a table.
const LOG_MARK: &[u8] = b"\0log";
/// Where the others begin.
const FIRST_KEY: &[u8] = &[1];
const PAGE_BYTES: usize = 4096;
/// A record that takes more than this in a page has its value in pages of its own (`me_nodemax`: two to a page).
const MOST_IN_PAGE: usize = 2038;
const HEADER_IN_PAGE: usize = 8;
const PAGE_HEADER: usize = 16;

/// How far into the log something reaches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(crate) struct LogMark {
    pub(crate) generation: u64,
    /// Batches of that generation.
    pub(crate) batches: u64,
}

/// What may still be stored before the reserve is touched.
#[derive(Clone, Copy, Default)]
pub(crate) struct Room {
    pages: u64,
    disk_bytes: u64,
}

impl Room {
    /// Pages of the tree fit, and bytes of the log beside them.
    pub(crate) fn fits(self, pages: usize, log_bytes: usize) -> bool {
        let bytes = (pages * PAGE_BYTES + log_bytes) as u64;
        pages as u64 <= self.pages && bytes <= self.disk_bytes
    }
}

/// Pages by which the tree grows at most if a record of `stored` bytes, or none, becomes one of `new` bytes.
///
/// A record that is new, or larger than before, may split its page, however small it is. What a commit copies beside that is
/// free again with the commit after the next.
pub(crate) fn growth(key_bytes: usize, stored: Option<usize>, new: usize) -> usize {
    let own_pages = |value: usize| match HEADER_IN_PAGE + key_bytes + value {
        in_page if in_page <= MOST_IN_PAGE => 0,
        _ => (PAGE_HEADER + value).div_ceil(PAGE_BYTES),
    };
    // The page has the number of the first of its own pages instead.
    let in_page = |value: usize| if own_pages(value) > 0 { 8 } else { value };
    match stored {
        None => own_pages(new) + 1,
        Some(stored) => {
            let splits = usize::from(in_page(new) > in_page(stored));
            own_pages(new).saturating_sub(own_pages(stored)) + splits
        }
    }
}

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

    /// How much of the log the tree holds.
    pub(crate) fn held(&self) -> Result<LogMark, StorageError> {
        let Some(mark) = self.get(LOG_MARK)? else { return Ok(LogMark::default()) };
        let number = |at: usize| Some(u64::from_le_bytes(mark.get(at..at + 8)?.try_into().ok()?));
        match (number(0), number(8)) {
            (Some(generation), Some(batches)) => Ok(LogMark { generation, batches }),
            _ => {
                Err(StorageError::Io { detail: format!("the tree in {} is damaged", self.folder.display()) })
            }
        }
    }

    /// What may be stored before the reserve is touched.
    pub(crate) fn room(&self) -> Result<Room, StorageError> {
        let free_disk = fs4::available_space(&self.folder).unwrap_or(u64::MAX);
        let page_bytes = u64::from(self.environment.stat().map_err(io)?.page_size());
        let used = self.environment.info().map_err(io)?.last_pgno() as u64 * page_bytes;
        let mut left = self.map_bytes.saturating_sub(used);
        // Pages that were freed count, too. Counting them takes a while, so only when it matters.
        if left < self.reserve_bytes + COUNT_FREE_PAGES_BELOW {
            left += self.environment.freelist().map_err(io)? as u64 * page_bytes;
        }
        Ok(Room {
            pages: left.saturating_sub(self.reserve_bytes) / page_bytes,
            disk_bytes: free_disk.saturating_sub(self.reserve_bytes),
        })
    }

    /// Why there is not room enough: for so many pages of the tree in the map, or for them and the log on the disk.
    pub(crate) fn full(&self, room: Room, pages: usize) -> StorageError {
        let folder = self.folder.display();
        let detail = if pages as u64 > room.pages {
            let map = self.map_bytes / MIB;
            format!(
                "the map of {map} MiB in {folder} is full: raise [storage] map_size_mib and restart the node"
            )
        } else {
            let (left, kept) = ((room.disk_bytes + self.reserve_bytes) / MIB, self.reserve_bytes / MIB);
            format!(
                "{left} MiB left on the disk of {folder}, [storage] reserve_mib keeps {kept}: free some space"
            )
        };
        StorageError::Full { detail }
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
    /// Records of a range, as they are under `newer`, the newest first.
    ///
    /// lmdb's iterators take an error for the end of the data, so the loop is our own.
    pub(crate) fn scan(&self, range: Range<'_>, newer: [&Overlay; 2]) -> Result<Page, StorageError> {
        let cursor = self.transaction.open_ro_cursor(self.database).map_err(io)?;
        let from = range.start.max(FIRST_KEY);
        let mut stored = record(cursor.get(Some(from), None, SET_RANGE))?;
        let bounds = (std::ops::Bound::Included(from), std::ops::Bound::Unbounded);
        let mut newer = newer.map(|overlay| overlay.range::<[u8], _>(bounds).peekable());
        let mut page = Page::default();
        let mut bytes = 0;
        loop {
            let newer_keys = newer.iter_mut().filter_map(|part| part.peek().map(|&(key, _)| key.as_ref()));
            let Some(key) = newer_keys.chain(stored.map(|(key, _)| key)).min() else { return Ok(page) };
            if range.end.is_some_and(|end| key >= end) {
                return Ok(page);
            }
            let is_stored = stored.is_some_and(|(stored, _)| stored == key);
            let mut value = stored.filter(|_| is_stored).map(|(_, value)| value);
            for part in newer.iter_mut().rev() {
                if let Some((_, changed)) = part.next_if(|(newer, _)| newer.as_ref() == key) {
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
                stored = record(cursor.get(None, None, NEXT))?;
            }
        }
    }
}

type Found<'a> = lmdb::Result<(Option<&'a [u8]>, &'a [u8])>;
type Record<'a> = (&'a [u8], &'a [u8]);

/// Key and value, or none at the end.
fn record(found: Found<'_>) -> Result<Option<Record<'_>>, StorageError> {
    match found {
        Ok((Some(key), value)) => Ok(Some((key, value))),
        Ok((None, _)) | Err(lmdb::Error::NotFound) => Ok(None),
        Err(error) => Err(io(error)),
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

    /// Notes how much of the log the tree holds with this commit.
    pub(crate) fn holds(&mut self, mark: LogMark) -> Result<(), StorageError> {
        let bytes = [mark.generation.to_le_bytes(), mark.batches.to_le_bytes()].concat();
        self.apply(LOG_MARK, Some(&bytes))
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
        // Smaller commits take it.
        lmdb::Error::TxnFull => StorageError::Full { detail: "the commit is too large".into() },
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
