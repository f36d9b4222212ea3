//! What was acked and is not in the tree yet, on the disk: batches, one after the other, in two files that take turns.
//!
//! A generation of batches fills one file. When the tree has taken all of it, the generation after next writes over that file
//! from its start: a file that is only ever written over needs no change of its metadata, which makes a flush several times as
//! fast.
//!
//! Checksums are seeded with a random number that stands in the head of the file and is new for each generation. So what an
//! older one left behind is no batch any more, and nobody can store a value that looks like one. A batch that was not written
//! whole when the power went is the last one, and was not acked. If whole ones follow it, it was damaged later: then the store
//! refuses to open, since what was acked can't be told.
//!
//! Source: write-ahead logging (Gray); salts as in SQLite's WAL.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use quorate_core::storage::StorageError;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::map::Overlay;

const FILES: [&str; 2] = ["log-0", "log-1"];
/// Begins a file; seed, generation and the checksum of all three follow.
const FILE_MARK: &[u8; 8] = b"qlmdblg1";
const HEAD_BYTES: usize = 32;
/// Where the first batch begins: on a page of its own.
const FIRST_BATCH: usize = 4096;
/// A file grows by so much at a time.
const GROWN_BYTES: u64 = 1024 * 1024;
/// Begins a batch, after its checksum.
const BATCH_MARK: &[u8; 4] = b"qbat";
/// Checksum, mark, number in the generation, length of the body.
const BATCH_HEAD_BYTES: usize = 8 + 4 + 8 + 8;
/// Stands for the length of the value of a record that is removed.
const REMOVED: u32 = u32::MAX;

/// The two files, for writing. Each generation fills the file that its last bit names.
pub(crate) struct Log {
    folder: PathBuf,
    files: [File; 2],
    /// How far each has been written.
    bytes: [u64; 2],
    generation: u64,
    seed: u64,
    /// Batches of the generation, and where the next one begins.
    batches: u64,
    position: u64,
    buffer: Vec<u8>,
}

impl Log {
    /// Makes empty files.
    ///
    /// # Errors
    /// If there are files already, or the folder cannot be written.
    pub(crate) fn create(folder: &Path) -> Result<Log, StorageError> {
        let files = || -> std::io::Result<[File; 2]> {
            let files = [create_file(folder, 0)?, create_file(folder, 1)?];
            File::open(folder)?.sync_all()?;
            Ok(files)
        };
        Ok(Log {
            files: files().map_err(|error| failed("cannot create the log in", folder, &error))?,
            folder: folder.to_owned(),
            bytes: [FIRST_BATCH as u64; 2],
            generation: 0,
            seed: 0,
            batches: 0,
            position: 0,
            buffer: Vec::new(),
        })
    }

    /// Adds a batch to a generation: that of the last batch, or a later one, which writes over the file it fills. Returns when
    /// it is on the disk.
    ///
    /// # Errors
    /// If it may not be: then nothing may be added any more before the files were removed.
    pub(crate) fn append(&mut self, generation: u64, changes: &Overlay) -> Result<(), StorageError> {
        let file = (generation % 2) as usize;
        let append = || -> std::io::Result<()> {
            if generation != self.generation {
                self.seed = fresh_seed()?;
                self.files[file].write_all_at(&head(self.seed, generation), 0)?;
                // Before any batch is written over: otherwise a torn one could not be told from a damaged one.
                self.files[file].sync_data()?;
                (self.generation, self.batches, self.position) = (generation, 0, FIRST_BATCH as u64);
            }
            encode(&mut self.buffer, self.seed, self.batches, changes);
            self.files[file].write_all_at(&self.buffer, self.position)?;
            self.batches += 1;
            self.position += self.buffer.len() as u64;
            if self.position > self.bytes[file] {
                let grown = self.position.next_multiple_of(GROWN_BYTES);
                self.files[file].write_all_at(&vec![0; (grown - self.position) as usize], self.position)?;
                self.bytes[file] = grown;
            }
            self.files[file].sync_data()
        };
        let mut append = append;
        append().map_err(|error| failed("cannot write", &self.folder.join(FILES[file]), &error))
    }
}

/// Under its name only once its head is on the disk.
fn create_file(folder: &Path, at: u8) -> std::io::Result<File> {
    let name = FILES[usize::from(at)];
    let (path, unfinished) = (folder.join(name), folder.join(format!("{name}.new")));
    if path.exists() {
        return Err(std::io::Error::new(ErrorKind::AlreadyExists, format!("{name} is there already")));
    }
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(&unfinished)?;
    let mut first_page = vec![0; FIRST_BATCH];
    first_page[..HEAD_BYTES].copy_from_slice(&head(fresh_seed()?, 0));
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

/// Reads what the files hold, the oldest batch first. Whoever has all of it in the tree removes the files.
///
/// # Errors
/// If a file cannot be read, or acked batches are damaged.
pub(crate) fn read(folder: &Path) -> Result<Vec<Overlay>, StorageError> {
    let mut found: Vec<(u64, Vec<Overlay>)> = Vec::new();
    for (path, bytes) in read_files(folder)? {
        let head = Head::of(&bytes).ok_or_else(|| damaged(&path, 0))?;
        let (mut batches, mut position) = (Vec::new(), FIRST_BATCH);
        while let Some(batch) = Batch::at(&bytes, position, head.seed)
            && batch.number == batches.len() as u64
        {
            batches.push(decode(batch.body).ok_or_else(|| damaged(&path, position))?);
            position = batch.end;
        }
        if batch_follows(&bytes, position, head.seed) {
            return Err(damaged(&path, position));
        }
        found.push((head.generation, batches));
    }
    found.sort_by_key(|(generation, _)| *generation);
    Ok(found.into_iter().flat_map(|(_, batches)| batches).collect())
}

/// Removes the files, once the tree holds all that was in them.
///
/// # Errors
/// If they cannot be removed.
pub(crate) fn remove(folder: &Path) -> Result<(), StorageError> {
    let mut files = read_files(folder)?;
    // The newer one last: without it the other would take back what is in the tree.
    files.sort_by_key(|(_, bytes)| Head::of(bytes).map(|head| head.generation));
    files.into_iter().try_for_each(|(path, _)| {
        let removed = fs::remove_file(&path).and_then(|()| File::open(folder)?.sync_all());
        removed.map_err(|error| failed("cannot remove", &path, &error))
    })
}

fn read_files(folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>, StorageError> {
    let mut files = Vec::new();
    for path in FILES.map(|name| folder.join(name)) {
        match fs::read(&path) {
            Ok(bytes) => files.push((path, bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed("cannot read", &path, &error)),
        }
    }
    Ok(files)
}

fn head(seed: u64, generation: u64) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(FILE_MARK);
    head[8..16].copy_from_slice(&seed.to_le_bytes());
    head[16..24].copy_from_slice(&generation.to_le_bytes());
    let sum = xxh3_64_with_seed(&head[..24], seed);
    head[24..].copy_from_slice(&sum.to_le_bytes());
    head
}

struct Head {
    seed: u64,
    generation: u64,
}

impl Head {
    fn of(bytes: &[u8]) -> Option<Head> {
        let stored = bytes.get(..HEAD_BYTES)?;
        let found = Head { seed: u64_at(stored, 8), generation: u64_at(stored, 16) };
        (stored == head(found.seed, found.generation)).then_some(found)
    }
}

/// A batch that is whole.
struct Batch<'a> {
    number: u64,
    body: &'a [u8],
    end: usize,
}

impl Batch<'_> {
    fn at(bytes: &[u8], position: usize, seed: u64) -> Option<Batch<'_>> {
        let batch = bytes.get(position..)?;
        if batch.len() < BATCH_HEAD_BYTES || &batch[8..12] != BATCH_MARK {
            return None;
        }
        let length = usize::try_from(u64_at(batch, 20)).ok()?;
        let body = batch[BATCH_HEAD_BYTES..].get(..length)?;
        let end = BATCH_HEAD_BYTES + length;
        let is_whole = u64_at(batch, 0) == xxh3_64_with_seed(&batch[8..end], seed);
        is_whole.then(|| Batch { number: u64_at(batch, 12), body, end: position + end })
    }
}

/// True if a whole batch stands somewhere behind `position`.
fn batch_follows(bytes: &[u8], position: usize, seed: u64) -> bool {
    let rest = bytes.get(position..).unwrap_or_default();
    rest.windows(BATCH_MARK.len())
        .enumerate()
        .filter(|(_, window)| window == BATCH_MARK)
        .any(|(at, _)| at >= 8 && Batch::at(bytes, position + at - 8, seed).is_some())
}

fn encode(buffer: &mut Vec<u8>, seed: u64, number: u64, changes: &Overlay) {
    buffer.clear();
    buffer.resize(BATCH_HEAD_BYTES, 0);
    for (key, value) in changes {
        buffer.extend_from_slice(&(key.len() as u32).to_le_bytes());
        buffer.extend_from_slice(&value.as_ref().map_or(REMOVED, |value| value.len() as u32).to_le_bytes());
        buffer.extend_from_slice(key);
        buffer.extend_from_slice(value.as_deref().unwrap_or_default());
    }
    let length = (buffer.len() - BATCH_HEAD_BYTES) as u64;
    buffer[8..12].copy_from_slice(BATCH_MARK);
    buffer[12..20].copy_from_slice(&number.to_le_bytes());
    buffer[20..28].copy_from_slice(&length.to_le_bytes());
    let sum = xxh3_64_with_seed(&buffer[8..], seed);
    buffer[..8].copy_from_slice(&sum.to_le_bytes());
}

fn decode(mut body: &[u8]) -> Option<Overlay> {
    let mut changes = Overlay::new();
    while !body.is_empty() {
        let (lengths, rest) = body.split_at_checked(8)?;
        let (key_bytes, value_bytes) = (u32_at(lengths, 0), u32_at(lengths, 4));
        let (key, rest) = rest.split_at_checked(key_bytes as usize)?;
        let kept = if value_bytes == REMOVED { 0 } else { value_bytes as usize };
        let (value, rest) = rest.split_at_checked(kept)?;
        let value = (value_bytes != REMOVED).then(|| Bytes::copy_from_slice(value));
        changes.insert(Bytes::copy_from_slice(key), value);
        body = rest;
    }
    Some(changes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> StorageError {
    let detail = format!("{what} {}: {error}", path.display());
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StorageError::Full { detail },
        _ => StorageError::Io { detail },
    }
}

fn damaged(path: &Path, position: usize) -> StorageError {
    StorageError::Io {
        detail: format!(
            "{} is damaged at byte {position}, and acked writes may be lost with it: move the data folder away and start the \
             node again, its replicas refill it",
            path.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(name: &str, value: Option<&[u8]>) -> Overlay {
        Overlay::from([(Bytes::copy_from_slice(name.as_bytes()), value.map(Bytes::copy_from_slice))])
    }

    /// What the store would hold.
    fn state(folder: &Path) -> Result<Overlay, StorageError> {
        let mut state = Overlay::new();
        for changes in read(folder)? {
            state.extend(changes);
        }
        Ok(state)
    }

    /// Generations that are written over each other, removed records, and values of all sizes come back in order.
    #[test]
    fn returns_what_was_added() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::create(folder.path()).unwrap();
        assert_eq!(state(folder.path()).unwrap(), Overlay::new());
        for generation in 1..=5_u64 {
            for number in 0..=(7 - generation) {
                let value = vec![generation as u8; (number * 300_000) as usize];
                log.append(generation, &batch(&format!("{number}"), Some(&value))).unwrap();
                log.append(generation, &batch("gone", (number % 2 == 0).then_some(b"v"))).unwrap();
            }
            let found = state(folder.path()).unwrap();
            assert_eq!(found[&b"0"[..]], Some(Bytes::new()));
            let (last, size) = ((7 - generation).to_string(), (7 - generation) * 300_000);
            assert_eq!(found[last.as_bytes()].as_ref().unwrap()[..], vec![generation as u8; size as usize]);
            assert_eq!(found[&b"gone"[..]].is_some(), (7 - generation).is_multiple_of(2));
            let older = (8 - generation).to_string();
            assert_eq!(found.contains_key(older.as_bytes()), generation > 1, "the generation before is kept");
            let overwritten = (9 - generation).to_string();
            assert!(!found.contains_key(overwritten.as_bytes()), "and the one before that written over");
        }
        drop(log);
        remove(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    /// Wherever the power went while a batch was written, over nothing or over an older generation: those before are kept.
    #[test]
    fn a_torn_batch_ends_the_log() {
        for generations in [1, 3_u64] {
            let folder = tempfile::tempdir().unwrap();
            let mut log = Log::create(folder.path()).unwrap();
            for generation in 1..=generations {
                for number in 0..3 {
                    log.append(generation, &batch(&format!("{number}"), Some(&[generation as u8; 40])))
                        .unwrap();
                }
            }
            let path = folder.path().join(FILES[1]);
            let before = fs::read(&path).unwrap();
            let begins = log.position as usize;
            log.append(generations, &batch("last", Some(&[9; 100]))).unwrap();
            let after = fs::read(&path).unwrap();
            let ends = log.position as usize;
            for cut in begins..ends {
                for torn in [
                    [&after[..cut], &before[cut..]].concat(),
                    [&before[..begins], &vec![0; cut - begins], &after[cut..]].concat(),
                ] {
                    fs::write(&path, &torn).unwrap();
                    let found = state(folder.path()).unwrap();
                    let whole = torn[..ends] == after[..ends];
                    assert_eq!(found.contains_key(&b"last"[..]), whole, "cut at {cut} of {begins} to {ends}");
                    assert_eq!(found[&b"2"[..]], Some(Bytes::from(vec![generations as u8; 40])));
                }
            }
        }
    }

    /// A batch that was acked and is damaged is never passed over, in the newest generation and in the one before.
    #[test]
    fn damage_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::create(folder.path()).unwrap();
        for generation in 1..=4 {
            for number in 0..4 {
                log.append(generation, &batch(&format!("{number}"), Some(&[generation as u8; 40]))).unwrap();
            }
        }
        let last = log.position as usize - BATCH_HEAD_BYTES - 8 - 1 - 40;
        for path in FILES.map(|name| folder.path().join(name)) {
            let whole = fs::read(&path).unwrap();
            for at in (0..HEAD_BYTES).chain(FIRST_BATCH..last) {
                let mut bytes = whole.clone();
                bytes[at] ^= 0x10;
                fs::write(&path, &bytes).unwrap();
                let error = state(folder.path()).expect_err("acked batches follow").to_string();
                assert!(error.contains("is damaged at byte"), "{at}: {error}");
            }
            fs::write(&path, &whole).unwrap();
        }
        state(folder.path()).unwrap();
    }

    /// A value that holds a whole batch, as it stands in another log, is a value.
    #[test]
    fn a_value_is_no_batch() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::create(folder.path()).unwrap();
        let mut forged = Vec::new();
        encode(&mut forged, 0, 0, &batch("forged", Some(b"v")));
        log.append(1, &batch("k", Some(&forged))).unwrap();
        log.append(1, &batch("last", Some(&forged))).unwrap();
        let path = folder.path().join(FILES[1]);
        let mut bytes = fs::read(&path).unwrap();
        let begins = log.position as usize - forged.len() - 4;
        bytes[begins] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(state(folder.path()).unwrap().into_keys().collect::<Vec<_>>(), ["k"]);
    }
}
