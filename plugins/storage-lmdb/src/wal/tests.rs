use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use quorate_core::storage::StorageError;

use super::files::FILE_NAMES;
use super::format::{
    BATCH_HEADER_BYTES, FILE_HEADER_BYTES, FIRST_BATCH_OFFSET, FileHeader, WalPosition, encode_batch,
};
use super::io_trace::{IoStep, IoTrace};
use super::{Wal, recover, remove};
use crate::random::Random;
use crate::write_buffer::Changes;

fn batch(name: &str, value: Option<&[u8]>) -> Changes {
    Changes::from([(Bytes::copy_from_slice(name.as_bytes()), value.map(Bytes::copy_from_slice))])
}

const EMPTY: WalPosition = WalPosition { generation: 0, batches: 0 };

fn recovered(folder: &Path, in_tree: WalPosition) -> Result<Changes, StorageError> {
    recover(folder, in_tree).map(|recovered| recovered.changes.changes)
}

/// Recovery returns the changes of the last two of several generations. Older generations were
/// overwritten. The changes include removals and values of all sizes.
#[test]
fn recovery_returns_appended_changes() {
    let folder = tempfile::tempdir().unwrap();
    let mut wal = Wal::create(folder.path(), EMPTY).unwrap();
    assert_eq!(recovered(folder.path(), EMPTY).unwrap(), Changes::new());
    let mut ends = vec![EMPTY];
    for generation in 1..=5_u64 {
        for number in 0..=(7 - generation) {
            let value = vec![generation as u8; (number * 300_000) as usize];
            wal.append(generation, &batch(&format!("{number}"), Some(&value))).unwrap();
            let through = wal.append(generation, &batch("gone", (number % 2 == 0).then_some(b"v"))).unwrap();
            assert_eq!(through, WalPosition { generation, batches: 2 * number + 2 });
        }
        ends.push(wal.end);
        let in_tree = ends[ends.len().saturating_sub(3)];
        let found = recovered(folder.path(), in_tree).unwrap();
        assert_eq!(found[&b"0"[..]], Some(Bytes::new()));
        let (last, size) = ((7 - generation).to_string(), (7 - generation) * 300_000);
        assert_eq!(found[last.as_bytes()].as_ref().unwrap()[..], vec![generation as u8; size as usize]);
        assert_eq!(found[&b"gone"[..]].is_some(), (7 - generation).is_multiple_of(2));
        let older = (8 - generation).to_string();
        assert_eq!(
            found.contains_key(older.as_bytes()),
            generation > 1,
            "the generation before is recovered"
        );
        let overwritten = (9 - generation).to_string();
        assert!(!found.contains_key(overwritten.as_bytes()), "the one before that is overwritten");
        assert_eq!(recovered(folder.path(), wal.end).unwrap(), Changes::new(), "the tree has all");
    }
    drop(wal);
    remove(folder.path()).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Recovery drops a batch that was torn at any byte, in a new file or over an older generation, and
/// keeps the batches before it.
#[test]
fn a_torn_batch_ends_the_log() {
    for generations in [1, 3_u64] {
        let folder = tempfile::tempdir().unwrap();
        let mut wal = Wal::create(folder.path(), EMPTY).unwrap();
        for generation in 1..=generations {
            for number in 0..3 {
                wal.append(generation, &batch(&format!("{number}"), Some(&[generation as u8; 40]))).unwrap();
            }
        }
        let in_tree = WalPosition { generation: generations.saturating_sub(2), batches: 3 };
        let path = folder.path().join(FILE_NAMES[1]);
        let before = fs::read(&path).unwrap();
        let begins = wal.end_offset as usize;
        wal.append(generations, &batch("last", Some(&[9; 100]))).unwrap();
        let after = fs::read(&path).unwrap();
        let ends = wal.end_offset as usize;
        for cut in begins..ends {
            for torn in [
                [&after[..cut], &before[cut..]].concat(),
                [&before[..begins], &vec![0; cut - begins], &after[cut..]].concat(),
            ] {
                fs::write(&path, &torn).unwrap();
                let found = recovered(folder.path(), in_tree).unwrap();
                let whole = torn[..ends] == after[..ends];
                assert_eq!(found.contains_key(&b"last"[..]), whole, "cut at {cut} of {begins} to {ends}");
                assert_eq!(found[&b"2"[..]], Some(Bytes::from(vec![generations as u8; 40])));
            }
        }
    }
}

/// A power cut after any step, which leaves any sectors of the writes that were not flushed, loses
/// no acknowledged batch. Recovery never reports damage.
#[test]
fn a_power_cut_loses_nothing_acked() {
    const SECTOR: usize = 512;
    let mut random = Random(11);
    for _ in 0..40 {
        let folder = tempfile::tempdir().unwrap();
        let mut wal = Wal::create(folder.path(), EMPTY).unwrap();
        let steps = Arc::new(Mutex::new(Vec::new()));
        for (index, file) in wal.files.iter_mut().enumerate() {
            file.trace = IoTrace { file: index, fails: false, steps: Some(steps.clone()) };
        }
        // Each batch has a record of its own. When generation g begins, the tree has all
        // generations up to g - 2.
        let mut acked: Vec<(WalPosition, String)> = Vec::new();
        for generation in 1..=5 {
            for number in 0..=random.below(4) {
                let name = format!("{generation} {number}");
                let value = vec![generation as u8; random.below(2_000)];
                let through = wal.append(generation, &batch(&name, Some(&value))).unwrap();
                acked.push((through, name));
                steps.lock().unwrap().push(IoStep::Ack);
            }
        }
        drop(wal);
        // `disk` is the content that is durable for sure, `unflushed` the writes since the last
        // flush.
        let mut disk = [vec![0; FIRST_BATCH_OFFSET], vec![0; FIRST_BATCH_OFFSET]];
        for (name, bytes) in FILE_NAMES.iter().zip(&mut disk) {
            bytes.copy_from_slice(&FileHeader { seed: 1, generation: 0, previous_end: EMPTY }.encode_page());
            fs::write(folder.path().join(name), &bytes).unwrap();
        }
        let mut unflushed: Vec<(usize, Vec<u8>, usize)> = Vec::new();
        let mut acked_count = 0;
        for step in &*steps.lock().unwrap() {
            match step {
                IoStep::Write { file, bytes, offset } => unflushed.push((*file, bytes.clone(), *offset)),
                IoStep::Sync { file } => {
                    for (_, bytes, offset) in unflushed.extract_if(.., |(of, _, _)| of == file) {
                        overwrite(&mut disk[*file], &bytes, offset);
                    }
                }
                IoStep::Ack => acked_count += 1,
            }
            let mut cut = disk.clone();
            for (file, bytes, offset) in &unflushed {
                let mut at = 0;
                while at < bytes.len() {
                    let end = bytes.len().min((offset + at) / SECTOR * SECTOR + SECTOR - offset);
                    if random.below(2) == 0 {
                        overwrite(&mut cut[*file], &bytes[at..end], offset + at);
                    }
                    at = end;
                }
            }
            for (name, bytes) in FILE_NAMES.iter().zip(&cut) {
                fs::write(folder.path().join(name), bytes).unwrap();
            }
            let newest = acked.get(acked_count).or(acked.last()).unwrap().0.generation;
            let in_tree = acked[..acked_count].iter().rev().find(|(end, _)| end.generation + 2 <= newest);
            let in_tree = in_tree.map_or(EMPTY, |(end, _)| *end);
            let found = recovered(folder.path(), in_tree).unwrap();
            for (end, name) in &acked[..acked_count] {
                assert_eq!(
                    found.contains_key(name.as_bytes()),
                    *end > in_tree,
                    "{name} of {acked_count}, in tree {in_tree:?}"
                );
            }
            assert!(found.len() <= acked[..acked_count].iter().filter(|(end, _)| *end > in_tree).count() + 1);
        }
    }
}

impl FileHeader {
    fn encode_page(self) -> Vec<u8> {
        let mut page = self.encode().to_vec();
        page.resize(FIRST_BATCH_OFFSET, 0);
        page
    }
}

fn overwrite(disk: &mut Vec<u8>, bytes: &[u8], offset: usize) {
    disk.resize(disk.len().max(offset + bytes.len()), 0);
    disk[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// Recovery never skips a damaged batch in the last two generations, unless the tree has it. The
/// very last batch is an exception: damage to it looks like a torn batch.
#[test]
fn a_damaged_batch_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut wal = Wal::create(folder.path(), EMPTY).unwrap();
    let mut ends = Vec::new();
    for generation in 1..=4 {
        for number in 0..4 {
            wal.append(generation, &batch(&format!("{number}"), Some(&[generation as u8; 40]))).unwrap();
        }
        ends.push(wal.end_offset as usize);
    }
    let in_tree = WalPosition { generation: 2, batches: 4 };
    let last_begins = wal.end_offset as usize - BATCH_HEADER_BYTES - 8 - 1 - 40;
    for (file, end, last) in [(0, ends[3], last_begins), (1, ends[2], ends[2])] {
        let path = folder.path().join(FILE_NAMES[file]);
        let whole = fs::read(&path).unwrap();
        for at in (0..FILE_HEADER_BYTES).chain(FIRST_BATCH_OFFSET..end) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&path, &bytes).unwrap();
            match recovered(folder.path(), in_tree) {
                Err(error) => assert!(error.to_string().contains("is damaged"), "{at}: {error}"),
                Ok(_) => assert!(at >= last, "acknowledged batches are skipped: {at} of {last}"),
            }
            if at >= FIRST_BATCH_OFFSET {
                assert_eq!(recovered(folder.path(), wal.end).unwrap(), Changes::new(), "the tree has it");
            }
        }
        fs::write(&path, &whole).unwrap();
    }
    recovered(folder.path(), in_tree).unwrap();
}

/// Recovery ignores a generation without a whole batch. The next log goes on at the tree's
/// position.
#[test]
fn a_file_header_alone_has_no_changes() {
    let folder = tempfile::tempdir().unwrap();
    let mut wal = Wal::create(folder.path(), EMPTY).unwrap();
    let in_tree = wal.append(1, &batch("k", Some(b"v"))).unwrap();
    wal.append(2, &batch("torn", Some(b"v"))).unwrap();
    let path = folder.path().join(FILE_NAMES[0]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[FIRST_BATCH_OFFSET] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let found = recover(folder.path(), in_tree).unwrap();
    assert_eq!((found.through, found.changes.size.records), (in_tree, 0));
    // The next log goes on at the tree's position, and is recovered after another power cut.
    remove(folder.path()).unwrap();
    let mut wal = Wal::create(folder.path(), found.through).unwrap();
    wal.append(2, &batch("next", Some(b"v"))).unwrap();
    assert!(recovered(folder.path(), in_tree).unwrap().contains_key(&b"next"[..]));
}

/// Recovery fails if a file is missing, or the tree is too old for the log (a restored backup).
#[test]
fn a_gap_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let created_at = WalPosition { generation: 7, batches: 3 };
    let mut wal = Wal::create(folder.path(), created_at).unwrap();
    assert!(recovered(folder.path(), EMPTY).is_err(), "also before the first batch");
    for generation in [8, 9] {
        wal.append(generation, &batch("k", Some(b"v"))).unwrap();
    }
    let position = |batches: u64, generation: u64| WalPosition { generation, batches };
    for (in_tree, fails) in
        [(position(3, 7), false), (position(1, 8), false), (position(2, 7), true), (EMPTY, true)]
    {
        let outcome = recovered(folder.path(), in_tree);
        assert_eq!(outcome.is_err(), fails, "{in_tree:?}");
    }
    fs::remove_file(folder.path().join(FILE_NAMES[0])).unwrap();
    let error = recovered(folder.path(), created_at).unwrap_err().to_string();
    assert!(error.contains("log-0 is damaged") && error.contains("move the data folder away"), "{error}");
    assert_eq!(recovered(folder.path(), position(1, 8)).unwrap().len(), 1);
}

/// A value that contains whole batches of another log is not mistaken for batches. Searching it for
/// batch headers costs no more than reading it.
#[test]
fn a_value_is_no_batch() {
    let folder = tempfile::tempdir().unwrap();
    let mut wal = Wal::create(folder.path(), EMPTY).unwrap();
    let mut forged = Vec::new();
    encode_batch(&mut forged, 0, 7, &batch("forged", Some(&[7; 500])));
    // Forged headers, each with the length of a large body.
    let mut many = Vec::new();
    while many.len() < 4 * 1024 * 1024 {
        many.extend_from_slice(&forged[..20]);
        many.extend_from_slice(&1_000_000_u64.to_le_bytes());
    }
    wal.append(1, &batch("k", Some(&forged))).unwrap();
    let begins = wal.end_offset as usize;
    wal.append(1, &batch("last", Some(&many))).unwrap();
    let path = folder.path().join(FILE_NAMES[1]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[begins + BATCH_HEADER_BYTES] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let found = recovered(folder.path(), EMPTY).unwrap();
    assert_eq!(found.into_keys().collect::<Vec<_>>(), ["k"]);
}

/// Zeros overwrite the header of a batch that could not be written, so that recovery does not
/// return it.
#[test]
fn a_failed_batch_is_blotted_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut wal = Wal::create(folder.path(), EMPTY).unwrap();
    wal.append(1, &batch("k", Some(b"v"))).unwrap();
    wal.files[1].trace.fails = true;
    let error = wal.append(1, &batch("failed", Some(b"v"))).unwrap_err().to_string();
    assert!(error.contains("cannot write") && error.contains("log-1"), "{error}");
    assert_eq!(recovered(folder.path(), EMPTY).unwrap().into_keys().collect::<Vec<_>>(), ["k"]);
}
