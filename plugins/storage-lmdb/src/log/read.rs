//! What a log held when the process ended.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use quorate_core::storage::StorageError;

use super::format::{Batch, FIRST_BATCH, Head, decode, last_begun};
use super::{FILES, failed};
use crate::map::{LogMark, growth};
use crate::newer::Part;

/// What the tree does not hold yet.
#[derive(Default)]
pub(crate) struct Logged {
    pub(crate) changes: Part,
    /// With them the tree holds the log up to here.
    pub(crate) through: LogMark,
}

/// Reads what the tree, which holds the log up to `held`, lacks.
///
/// # Errors
/// If a file cannot be read, or something that was acked is damaged or gone.
pub(crate) fn read(folder: &Path, held: LogMark) -> Result<Logged, StorageError> {
    let mut files: Vec<LogFile> = Vec::new();
    for name in FILES {
        files.extend(LogFile::read(folder.join(name), held)?);
    }
    files.sort_by_key(|file| file.head.generation);
    for file in &files {
        let before = file.head.before;
        let other =
            files.iter().any(|other| other.head.generation == before.generation && other.reaches() >= before);
        if before > held && !other {
            return Err(file.lacks_what_was_before());
        }
    }
    let mut logged = Logged { through: held, ..Logged::default() };
    // A head without a batch is what a power cut left of a generation's first one.
    for file in files.into_iter().filter(|file| file.reaches() > held && !file.batches.is_empty()) {
        let skipped = if file.head.generation == held.generation { held.batches } else { 0 };
        logged.through = file.reaches();
        for body in file.batches.into_iter().skip(skipped as usize) {
            for (key, value) in decode(body).ok_or_else(|| damaged(&file.path, FIRST_BATCH))? {
                let new = value.as_ref().map(Bytes::len);
                let pages = new.map_or(0, |new| growth(key.len(), None, new));
                logged.changes.insert(key, value, pages);
            }
        }
    }
    Ok(logged)
}

struct LogFile {
    path: PathBuf,
    head: Head,
    batches: Vec<Bytes>,
}

impl LogFile {
    /// `None` if there is no such file.
    fn read(path: PathBuf, held: LogMark) -> Result<Option<LogFile>, StorageError> {
        let bytes = match fs::read(&path) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("cannot read", &path, &error)),
        };
        let head = Head::of(&bytes).ok_or_else(|| damaged(&path, 0))?;
        let (mut batches, mut position) = (Vec::new(), FIRST_BATCH);
        while let Some(batch) = Batch::at(&bytes, position, head.seed, batches.len() as u64) {
            batches.push(batch.body);
            position = batch.end;
        }
        // The one after the last whole one may be torn. Those behind it were begun when it had been acked.
        if let Some(last) = last_begun(&bytes, position, head.seed)
            && last > batches.len() as u64
            && (LogMark { generation: head.generation, batches: last }) > held
        {
            return Err(damaged(&path, position));
        }
        Ok(Some(LogFile { path, head, batches }))
    }

    fn reaches(&self) -> LogMark {
        LogMark { generation: self.head.generation, batches: self.batches.len() as u64 }
    }

    fn lacks_what_was_before(&self) -> StorageError {
        let other = self.path.with_file_name(FILES[(self.head.before.generation % 2) as usize]);
        let (this, other) = (self.path.display(), other.display());
        StorageError::Io {
            detail: format!(
                "{other} is damaged: what was acked before {this} began is neither there nor in the tree: {REFILL}"
            ),
        }
    }
}

const REFILL: &str = "move the data folder away and start the node again, its replicas refill it";

fn damaged(path: &Path, position: usize) -> StorageError {
    let path = path.display();
    let detail =
        format!("{path} is damaged at byte {position}, and acked writes may be lost with it: {REFILL}");
    StorageError::Io { detail }
}

/// Removes the files, once the tree holds all that was in them.
///
/// # Errors
/// If they cannot be removed.
pub(crate) fn remove(folder: &Path) -> Result<(), StorageError> {
    for path in FILES.map(|name| folder.join(name)) {
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed("cannot remove", &path, &error)),
        }
    }
    let removed = File::open(folder).and_then(|folder| folder.sync_all());
    removed.map_err(|error| failed("cannot remove the log in", folder, &error))
}
