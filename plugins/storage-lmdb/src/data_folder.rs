//! The data folder: its lock, and the format mark in the file `FORMAT`.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use fs4::FileExt;
use quorate_core::storage::StorageError;

const FORMAT_FILE: &str = "FORMAT";
/// Format 2 has a write-ahead log beside the tree; format 1 has only the tree.
const FORMAT: u32 = 2;
const LOCK_FILE: &str = "quorate.lock";

/// A folder that this process has locked.
pub(crate) struct DataFolder {
    path: PathBuf,
    /// Locked as long as the folder is in use, because LMDB must not be opened twice.
    _lock: File,
}

impl DataFolder {
    /// Creates the folder if it is missing, locks it and checks its format.
    pub(crate) fn open(path: &Path) -> Result<DataFolder, StorageError> {
        let failed = |what: &str, error: &dyn std::fmt::Display| StorageError::Io {
            detail: format!("{what} {}: {error}", path.display()),
        };
        fs::create_dir_all(path).map_err(|error| failed("cannot create data folder", &error))?;
        let lock =
            File::create(path.join(LOCK_FILE)).map_err(|error| failed("cannot lock data folder", &error))?;
        if FileExt::try_lock(&lock).is_err() {
            return Err(StorageError::Io {
                detail: format!(
                    "data folder {} is in use by another process: stop that process, or set another folder in [node] data",
                    path.display()
                ),
            });
        }
        check_format(path)?;
        Ok(DataFolder { path: path.to_owned(), _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
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
        // The new mark stops builds that know only older formats: they would ignore the log.
        Some(version) if version < FORMAT => write_format(folder),
        Some(version) => Err(StorageError::Io {
            detail: format!(
                "data folder {} has format {version}, this build reads up to {FORMAT}: start the newer build",
                folder.display()
            ),
        }),
        None => Err(StorageError::Io {
            detail: format!(
                "{} has unexpected content: check that [node] data is a data folder of quorate",
                path.display()
            ),
        }),
    }
}

/// Writes the format mark, as a whole: a crash leaves the old mark or the new one.
pub(crate) fn write_format(folder: &Path) -> Result<(), StorageError> {
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
