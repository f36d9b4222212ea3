//! What was acked and is not in the tree yet, on the disk: batches, one after the other, in two files that take turns.
//!
//! A generation of batches fills one file. When the tree has taken all of it, the generation after next writes over that file
//! from its start: a file that is only ever written over needs no change of its metadata, which makes a flush several times as
//! fast.
//!
//! Checksums are seeded with a random number that stands in the head of the file and is new for each generation. So what an
//! older one left behind is no batch any more, and nobody can store a value that looks like one. A batch that was not written
//! whole when the power went is the last one, and was not acked. What was acked and is missing is never passed over: a batch that
//! was begun behind it shows it, each head says how far the generation before reached, and the tree says how far it
//! holds the log. Then the store refuses to open. Only damage to the very last batch, before the tree has it, looks like a torn one.
//!
//! Source: write-ahead logging (Gray); salts as in SQLite's WAL.

mod format;
mod read;
#[cfg(test)]
pub(crate) mod tests;

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use quorate_core::storage::StorageError;

use crate::map::LogMark;
use crate::newer::Overlay;

use format::{BATCH_HEAD_BYTES, FIRST_BATCH, HEAD_BYTES, Head, encode};
pub(crate) use read::{read, remove};

const FILES: [&str; 2] = ["log-0", "log-1"];
/// A file grows by so much at a time.
const GROWN_BYTES: u64 = 1024 * 1024;
/// What is kept for the next batch, at most.
const KEPT_BUFFER_BYTES: usize = 1024 * 1024;

/// The two files, for writing. Each generation fills the file that its last bit names.
pub(crate) struct Log {
    folder: PathBuf,
    files: [LogFile; 2],
    reached: LogMark,
    /// Of the generation; none before one has begun.
    seed: Option<u64>,
    /// Where the next batch begins.
    position: u64,
    buffer: Vec<u8>,
}

impl Log {
    /// Makes empty files, for what comes after `held`.
    ///
    /// # Errors
    /// If there are files already, or the folder cannot be written.
    pub(crate) fn create(folder: &Path, held: LogMark) -> Result<Log, StorageError> {
        let create = || -> std::io::Result<[File; 2]> {
            let files = [create_file(folder, 0, held)?, create_file(folder, 1, held)?];
            File::open(folder)?.sync_all()?;
            Ok(files)
        };
        let files = create().map_err(|error| failed("cannot create the log in", folder, &error))?;
        Ok(Log {
            files: files.map(LogFile::new),
            folder: folder.to_owned(),
            reached: held,
            seed: None,
            position: FIRST_BATCH as u64,
            buffer: Vec::new(),
        })
    }

    /// Adds a batch to a generation: that of the last batch, or a later one, which writes over the file it fills. Returns when
    /// it is on the disk: how far the log reaches with it.
    ///
    /// # Errors
    /// If it may not be: then nothing may be added any more before the files were removed. What was written of it is
    /// blotted out if the disk still takes that.
    pub(crate) fn append(&mut self, generation: u64, changes: &Overlay) -> Result<LogMark, StorageError> {
        assert!(generation >= self.reached.generation, "generations only grow");
        assert!(
            generation > self.reached.generation || self.seed.is_some(),
            "a generation begins with a head"
        );
        let at = (generation % 2) as usize;
        let appended =
            self.begin_generation(generation).and_then(|seed| self.append_batch(at, seed, changes));
        self.buffer.clear();
        self.buffer.shrink_to(KEPT_BUFFER_BYTES);
        appended.map_err(|error| {
            let file = &mut self.files[at];
            let _ = file.write(&[0; BATCH_HEAD_BYTES], self.position).and_then(|()| file.sync());
            failed("cannot write", &self.folder.join(FILES[at]), &error)
        })?;
        Ok(self.reached)
    }

    /// The head reaches the disk with the first batch. The tree has what is written over, so until then nobody asks for it.
    fn begin_generation(&mut self, generation: u64) -> std::io::Result<u64> {
        if let Some(seed) = self.seed.filter(|_| generation == self.reached.generation) {
            return Ok(seed);
        }
        self.position = FIRST_BATCH as u64;
        let seed = fresh_seed()?;
        let head = Head { seed, generation, before: self.reached }.encode();
        self.files[(generation % 2) as usize].write(&head, 0)?;
        (self.seed, self.reached) = (Some(seed), LogMark { generation, batches: 0 });
        Ok(seed)
    }

    fn append_batch(&mut self, at: usize, seed: u64, changes: &Overlay) -> std::io::Result<()> {
        encode(&mut self.buffer, seed, self.reached.batches, changes);
        let file = &mut self.files[at];
        file.write(&self.buffer, self.position)?;
        let end = self.position + self.buffer.len() as u64;
        if end > file.bytes {
            let grown = end.next_multiple_of(GROWN_BYTES);
            file.write(&vec![0; (grown - end) as usize], end)?;
            file.bytes = grown;
        }
        file.sync()?;
        self.reached.batches += 1;
        self.position = end;
        Ok(())
    }
}

/// A file that is only written over, and grows.
struct LogFile {
    file: File,
    /// How far it has been written.
    bytes: u64,
    #[cfg(test)]
    steps: tests::Steps,
}

impl LogFile {
    fn new(file: File) -> LogFile {
        LogFile {
            file,
            bytes: FIRST_BATCH as u64,
            #[cfg(test)]
            steps: tests::Steps::default(),
        }
    }

    fn write(&mut self, bytes: &[u8], position: u64) -> std::io::Result<()> {
        #[cfg(test)]
        self.steps.written(bytes, position);
        self.file.write_all_at(bytes, position)
    }

    fn sync(&mut self) -> std::io::Result<()> {
        #[cfg(test)]
        self.steps.synced()?;
        self.file.sync_data()
    }
}

/// Under its name only once its head is on the disk.
fn create_file(folder: &Path, at: u8, held: LogMark) -> std::io::Result<File> {
    let name = FILES[usize::from(at)];
    let (path, unfinished) = (folder.join(name), folder.join(format!("{name}.new")));
    if path.exists() {
        return Err(std::io::Error::new(ErrorKind::AlreadyExists, format!("{name} is there already")));
    }
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(&unfinished)?;
    let mut first_page = vec![0; FIRST_BATCH];
    let head = Head { seed: fresh_seed()?, generation: 0, before: held };
    first_page[..HEAD_BYTES].copy_from_slice(&head.encode());
    (&file).write_all(&first_page)?;
    file.sync_all()?;
    fs::rename(unfinished, path)?;
    Ok(file)
}

/// What nobody can guess. No decision hangs on it, and this engine is no part of the simulation.
#[allow(clippy::disallowed_methods)]
fn fresh_seed() -> std::io::Result<u64> {
    getrandom::u64().map_err(std::io::Error::other)
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> StorageError {
    let detail = format!("{what} {}: {error}", path.display());
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StorageError::Full { detail },
        _ => StorageError::Io { detail },
    }
}
