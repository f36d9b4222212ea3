//! WAL recovery: reads the changes that the WAL has and the tree lacks.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use quorate_core::storage::StorageError;

use super::files::{FILE_NAMES, file_of, io_error};
use super::format::{Batch, FIRST_BATCH_OFFSET, FileHeader, WalPosition, decode_body, last_batch_begun};
use crate::space::page_growth;
use crate::write_buffer::BufferPart;

/// Changes of the WAL that the tree lacks.
#[derive(Default)]
pub(crate) struct Recovered {
    pub(crate) changes: BufferPart,
    /// WAL position up to which the tree has all changes once it has `changes`.
    pub(crate) through: WalPosition,
}

/// Reads the changes that the tree lacks. `in_tree` is the WAL position up to which the tree has
/// all changes.
///
/// # Errors
/// If a file cannot be read, or an acknowledged batch is damaged or missing.
pub(crate) fn recover(folder: &Path, in_tree: WalPosition) -> Result<Recovered, StorageError> {
    let mut files: Vec<RecoveredFile> = Vec::new();
    for name in FILE_NAMES {
        files.extend(RecoveredFile::read(folder.join(name), in_tree)?);
    }
    files.sort_by_key(|file| file.header.generation);
    for file in &files {
        let previous_end = file.header.previous_end;
        let has_previous = |other: &RecoveredFile| {
            other.header.generation == previous_end.generation && other.end() >= previous_end
        };
        if previous_end > in_tree && !files.iter().any(has_previous) {
            return Err(file.previous_is_damaged());
        }
    }
    let mut recovered = Recovered { through: in_tree, ..Recovered::default() };
    // A file with a header and no valid batch has no changes: the file is new, or a power cut tore
    // the first batch of its generation.
    for file in files.into_iter().filter(|file| file.end() > in_tree && !file.batches.is_empty()) {
        let skipped = if file.header.generation == in_tree.generation { in_tree.batches } else { 0 };
        recovered.through = file.end();
        for body in file.batches.into_iter().skip(skipped as usize) {
            for (key, value) in decode_body(body).ok_or_else(|| damaged(&file.path, FIRST_BATCH_OFFSET))? {
                let new = value.as_ref().map(Bytes::len);
                let tree_pages = new.map_or(0, |new| page_growth(key.len(), None, new));
                recovered.changes.insert(key, value, tree_pages);
            }
        }
    }
    Ok(recovered)
}

/// Content of one WAL file.
struct RecoveredFile {
    path: PathBuf,
    header: FileHeader,
    /// Bodies of the valid batches, in order.
    batches: Vec<Bytes>,
}

impl RecoveredFile {
    /// Reads a file. Returns `None` if there is no such file.
    fn read(path: PathBuf, in_tree: WalPosition) -> Result<Option<RecoveredFile>, StorageError> {
        let bytes = match fs::read(&path) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("cannot read", &path, &error)),
        };
        let header = FileHeader::decode(&bytes).ok_or_else(|| damaged(&path, 0))?;
        let (mut batches, mut offset) = (Vec::new(), FIRST_BATCH_OFFSET);
        while let Some(batch) = Batch::decode(&bytes, offset, header.seed, batches.len() as u64) {
            batches.push(batch.body);
            offset = batch.end;
        }
        // A power cut may have torn the first invalid batch, which is no error. A header of a later
        // batch shows that the invalid one was acknowledged. Then it is damaged.
        if let Some(last) = last_batch_begun(&bytes, offset, header.seed)
            && last > batches.len() as u64
            && (WalPosition { generation: header.generation, batches: last }) > in_tree
        {
            return Err(damaged(&path, offset));
        }
        Ok(Some(RecoveredFile { path, header, batches }))
    }

    /// Returns the position after the last valid batch.
    fn end(&self) -> WalPosition {
        WalPosition { generation: self.header.generation, batches: self.batches.len() as u64 }
    }

    /// Builds the error for missing batches of the generation before this file's generation.
    fn previous_is_damaged(&self) -> StorageError {
        let other = self.path.with_file_name(FILE_NAMES[file_of(self.header.previous_end.generation)]);
        let (this, other) = (self.path.display(), other.display());
        StorageError::Io {
            detail: format!(
                "{other} is damaged: writes that were acked before {this} began are missing in {other} and in the tree: {REFILL}"
            ),
        }
    }
}

const REFILL: &str = "move the data folder away and start the node again, its replicas refill it";

fn damaged(path: &Path, offset: usize) -> StorageError {
    let path = path.display();
    let detail =
        format!("{path} is damaged at byte {offset}, and acked writes may be lost with it: {REFILL}");
    StorageError::Io { detail }
}
