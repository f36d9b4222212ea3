//! The open WAL: appends batches.

use std::path::{Path, PathBuf};

use quorate_core::storage::StorageError;

use super::files::{FILE_NAMES, WalFile, file_of, io_error, random_seed};
use super::format::{BATCH_HEADER_BYTES, FIRST_BATCH_OFFSET, FileHeader, WalPosition, encode_batch};
use crate::write_buffer::Changes;

/// Bytes by which a file grows at a time.
const GROWTH_BYTES: u64 = 1024 * 1024;
/// Largest number of bytes of memory that are kept to encode the next batch.
const KEPT_BUFFER_BYTES: usize = 1024 * 1024;

/// The WAL, open for writing.
pub(crate) struct Wal {
    folder: PathBuf,
    /// The two files. Generation g is in `files[g % 2]`.
    pub(super) files: [WalFile; 2],
    /// Position after the last batch.
    pub(super) end: WalPosition,
    /// Offset after the last batch, in the file of its generation.
    pub(super) end_offset: u64,
    /// Seed of the checksums in the log's current generation. `None` before the first batch.
    seed: Option<u64>,
    encoded: Vec<u8>,
}

impl Wal {
    /// Creates both files, without batches. The log goes on at the position `previous_end`, up to
    /// which the tree has all changes.
    ///
    /// # Errors
    /// If the files exist already, or the folder cannot be written.
    pub(crate) fn create(folder: &Path, previous_end: WalPosition) -> Result<Wal, StorageError> {
        let files = WalFile::create_both(folder, previous_end)
            .map_err(|error| io_error("cannot create the log in", folder, &error))?;
        Ok(Wal {
            files,
            folder: folder.to_owned(),
            end: previous_end,
            end_offset: FIRST_BATCH_OFFSET as u64,
            seed: None,
            encoded: Vec::new(),
        })
    }

    /// Appends a batch, and returns the position after it once the batch is on the disk.
    ///
    /// `generation` is the generation of the last batch, or a later one. The first batch of a later
    /// generation overwrites that generation's file from the start.
    ///
    /// # Errors
    /// If a write or a flush failed, so that the batch may not be on the disk. The caller must then
    /// replace the WAL before it appends again. If the disk still accepts writes, zeros overwrite
    /// the batch's header, so that WAL recovery does not return the batch.
    pub(crate) fn append(&mut self, generation: u64, changes: &Changes) -> Result<WalPosition, StorageError> {
        assert!(generation >= self.end.generation, "generations only grow");
        assert!(
            generation > self.end.generation || self.seed.is_some(),
            "a generation begins with a file header"
        );
        let index = file_of(generation);
        let appended =
            self.begin_generation(generation).and_then(|seed| self.append_batch(index, seed, changes));
        self.encoded.clear();
        self.encoded.shrink_to(KEPT_BUFFER_BYTES);
        appended.map_err(|error| {
            let file = &mut self.files[index];
            let _ = file.write(&[0; BATCH_HEADER_BYTES], self.end_offset).and_then(|()| file.sync());
            io_error("cannot write", &self.folder.join(FILE_NAMES[index]), &error)
        })?;
        Ok(self.end)
    }

    /// Writes the file header of a new generation, and returns the seed of its checksums.
    ///
    /// The flush of the generation's first batch makes the header durable. That is early enough,
    /// because the tree has all changes of the generation that is overwritten.
    fn begin_generation(&mut self, generation: u64) -> std::io::Result<u64> {
        if let Some(seed) = self.seed.filter(|_| generation == self.end.generation) {
            return Ok(seed);
        }
        self.end_offset = FIRST_BATCH_OFFSET as u64;
        let seed = random_seed()?;
        let header = FileHeader { seed, generation, previous_end: self.end }.encode();
        self.files[file_of(generation)].write(&header, 0)?;
        (self.seed, self.end) = (Some(seed), WalPosition { generation, batches: 0 });
        Ok(seed)
    }

    fn append_batch(&mut self, index: usize, seed: u64, changes: &Changes) -> std::io::Result<()> {
        encode_batch(&mut self.encoded, seed, self.end.batches, changes);
        let file = &mut self.files[index];
        file.write(&self.encoded, self.end_offset)?;
        let end_offset = self.end_offset + self.encoded.len() as u64;
        if end_offset > file.bytes {
            let grown = end_offset.next_multiple_of(GROWTH_BYTES);
            file.write(&vec![0; (grown - end_offset) as usize], end_offset)?;
            file.bytes = grown;
        }
        file.sync()?;
        self.end.batches += 1;
        self.end_offset = end_offset;
        Ok(())
    }
}
