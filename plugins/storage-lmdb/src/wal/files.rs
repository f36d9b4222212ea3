//! The two files of the WAL: creation, overwriting, removal.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use quorate_core::storage::StorageError;

use super::format::{FILE_HEADER_BYTES, FIRST_BATCH_OFFSET, FileHeader, WalPosition};
#[cfg(test)]
use super::io_trace::IoTrace;

pub(super) const FILE_NAMES: [&str; 2] = ["log-0", "log-1"];

/// Returns the index of the file that a generation fills: the last bit of the generation's number.
pub(super) fn file_of(generation: u64) -> usize {
    (generation % 2) as usize
}

/// A file of the WAL that is overwritten in place, and grows.
pub(super) struct WalFile {
    file: File,
    /// Length of the file, in bytes. A write beyond it makes the file longer.
    pub(super) bytes: u64,
    #[cfg(test)]
    pub(super) trace: IoTrace,
}

impl WalFile {
    /// Creates both files, without batches. The log goes on at the position `previous_end`.
    pub(super) fn create_both(folder: &Path, previous_end: WalPosition) -> std::io::Result<[WalFile; 2]> {
        let [first, second] = FILE_NAMES;
        let files =
            [WalFile::create(folder, first, previous_end)?, WalFile::create(folder, second, previous_end)?];
        File::open(folder)?.sync_all()?;
        Ok(files)
    }

    /// Creates a file without batches. It gets its name only after its header is on the disk, so a
    /// crash never leaves a file of this name without a header.
    fn create(folder: &Path, name: &str, previous_end: WalPosition) -> std::io::Result<WalFile> {
        let (path, unfinished) = (folder.join(name), folder.join(format!("{name}.new")));
        if path.exists() {
            return Err(std::io::Error::new(
                ErrorKind::AlreadyExists,
                format!("the file {name} exists already"),
            ));
        }
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(&unfinished)?;
        let mut first_page = vec![0; FIRST_BATCH_OFFSET];
        let header = FileHeader { seed: random_seed()?, generation: 0, previous_end };
        first_page[..FILE_HEADER_BYTES].copy_from_slice(&header.encode());
        (&file).write_all(&first_page)?;
        file.sync_all()?;
        fs::rename(unfinished, path)?;
        Ok(WalFile {
            file,
            bytes: FIRST_BATCH_OFFSET as u64,
            #[cfg(test)]
            trace: IoTrace::default(),
        })
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        #[cfg(test)]
        self.trace.record_write(bytes, offset);
        self.file.write_all_at(bytes, offset)
    }

    pub(super) fn sync(&mut self) -> std::io::Result<()> {
        #[cfg(test)]
        self.trace.record_sync()?;
        self.file.sync_data()
    }
}

/// Removes the files. Call it only when the tree has all acknowledged changes that are in them.
///
/// # Errors
/// If they cannot be removed.
pub(crate) fn remove(folder: &Path) -> Result<(), StorageError> {
    for path in FILE_NAMES.map(|name| folder.join(name)) {
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("cannot remove", &path, &error)),
        }
    }
    let removed = File::open(folder).and_then(|folder| folder.sync_all());
    removed.map_err(|error| io_error("cannot remove the log in", folder, &error))
}

/// Draws the seed of a generation's checksums. No client can guess it.
///
/// Randomness is allowed here: no decision depends on the seed, and the simulation does not contain
/// this engine.
#[allow(clippy::disallowed_methods)]
pub(super) fn random_seed() -> std::io::Result<u64> {
    getrandom::u64().map_err(std::io::Error::other)
}

pub(super) fn io_error(what: &str, path: &Path, error: &std::io::Error) -> StorageError {
    let detail = format!("{what} {}: {error}", path.display());
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StorageError::Full { detail },
        _ => StorageError::Io { detail },
    }
}
