use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::*;
use crate::newer::Overlay;

/// What was done to a file, in order with what was done to the other: for whoever asks what a power cut may leave.
#[derive(Clone, Default)]
pub(super) struct Steps {
    file: usize,
    fails: bool,
    seen: Option<Arc<Mutex<Vec<Step>>>>,
}

enum Step {
    Written { file: usize, bytes: Vec<u8>, position: usize },
    Synced { file: usize },
    Acked,
}

impl Steps {
    pub(super) fn written(&self, bytes: &[u8], position: u64) {
        if let Some(seen) = &self.seen {
            let (file, bytes, position) = (self.file, bytes.to_vec(), position as usize);
            seen.lock().unwrap().push(Step::Written { file, bytes, position });
        }
    }

    pub(super) fn synced(&mut self) -> std::io::Result<()> {
        if std::mem::take(&mut self.fails) {
            return Err(std::io::Error::other("the disk is gone"));
        }
        if let Some(seen) = &self.seen {
            seen.lock().unwrap().push(Step::Synced { file: self.file });
        }
        Ok(())
    }
}

fn batch(name: &str, value: Option<&[u8]>) -> Overlay {
    Overlay::from([(Bytes::copy_from_slice(name.as_bytes()), value.map(Bytes::copy_from_slice))])
}

const NOTHING: LogMark = LogMark { generation: 0, batches: 0 };

fn state_after(folder: &Path, held: LogMark) -> Result<Overlay, StorageError> {
    read(folder, held).map(|logged| logged.changes.changes)
}

/// Chance that is the same each time; `word` is where it stands.
pub(crate) fn random(word: &mut u64, below: usize) -> usize {
    *word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*word >> 33) as usize % below
}

/// Generations that are written over each other, removed records, and values of all sizes come back in order.
#[test]
fn returns_what_was_added() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::create(folder.path(), NOTHING).unwrap();
    assert_eq!(state_after(folder.path(), NOTHING).unwrap(), Overlay::new());
    let mut reached = vec![NOTHING];
    for generation in 1..=5_u64 {
        for number in 0..=(7 - generation) {
            let value = vec![generation as u8; (number * 300_000) as usize];
            log.append(generation, &batch(&format!("{number}"), Some(&value))).unwrap();
            let through = log.append(generation, &batch("gone", (number % 2 == 0).then_some(b"v"))).unwrap();
            assert_eq!(through, LogMark { generation, batches: 2 * number + 2 });
        }
        reached.push(log.reached);
        let held = reached[reached.len().saturating_sub(3)];
        let found = state_after(folder.path(), held).unwrap();
        assert_eq!(found[&b"0"[..]], Some(Bytes::new()));
        let (last, size) = ((7 - generation).to_string(), (7 - generation) * 300_000);
        assert_eq!(found[last.as_bytes()].as_ref().unwrap()[..], vec![generation as u8; size as usize]);
        assert_eq!(found[&b"gone"[..]].is_some(), (7 - generation).is_multiple_of(2));
        let older = (8 - generation).to_string();
        assert_eq!(found.contains_key(older.as_bytes()), generation > 1, "the generation before is kept");
        let overwritten = (9 - generation).to_string();
        assert!(!found.contains_key(overwritten.as_bytes()), "and the one before that written over");
        assert_eq!(state_after(folder.path(), log.reached).unwrap(), Overlay::new(), "the tree has it all");
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
        let mut log = Log::create(folder.path(), NOTHING).unwrap();
        for generation in 1..=generations {
            for number in 0..3 {
                log.append(generation, &batch(&format!("{number}"), Some(&[generation as u8; 40]))).unwrap();
            }
        }
        let held = LogMark { generation: generations.saturating_sub(2), batches: 3 };
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
                let found = state_after(folder.path(), held).unwrap();
                let whole = torn[..ends] == after[..ends];
                assert_eq!(found.contains_key(&b"last"[..]), whole, "cut at {cut} of {begins} to {ends}");
                assert_eq!(found[&b"2"[..]], Some(Bytes::from(vec![generations as u8; 40])));
            }
        }
    }
}

/// The power may go at any step, and leave of what was not flushed any sectors, old or new: what was acked and the tree does
/// not have is found, and nothing is refused.
#[test]
fn a_power_cut_loses_nothing_acked() {
    const SECTOR: usize = 512;
    let mut word = 11;
    for _ in 0..40 {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::create(folder.path(), NOTHING).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        for (file, of) in log.files.iter_mut().enumerate() {
            of.steps = Steps { file, fails: false, seen: Some(seen.clone()) };
        }
        // Each batch writes a record of its own. The tree has the generation before the last when the next begins.
        let mut acked: Vec<(LogMark, String)> = Vec::new();
        for generation in 1..=5 {
            for number in 0..=random(&mut word, 4) {
                let name = format!("{generation} {number}");
                let value = vec![generation as u8; random(&mut word, 2_000)];
                let through = log.append(generation, &batch(&name, Some(&value))).unwrap();
                acked.push((through, name));
                seen.lock().unwrap().push(Step::Acked);
            }
        }
        drop(log);
        // The files as they are for sure, and what may be there of what was written since.
        let mut disk = [vec![0; FIRST_BATCH], vec![0; FIRST_BATCH]];
        for (name, bytes) in FILES.iter().zip(&mut disk) {
            bytes.copy_from_slice(&Head { seed: 1, generation: 0, before: NOTHING }.encode_page());
            fs::write(folder.path().join(name), &bytes).unwrap();
        }
        let mut pending: Vec<(usize, Vec<u8>, usize)> = Vec::new();
        let mut known = 0;
        for step in &*seen.lock().unwrap() {
            match step {
                Step::Written { file, bytes, position } => pending.push((*file, bytes.clone(), *position)),
                Step::Synced { file } => {
                    for (_, bytes, position) in pending.extract_if(.., |(of, _, _)| of == file) {
                        lay_over(&mut disk[*file], &bytes, position);
                    }
                }
                Step::Acked => known += 1,
            }
            let mut cut = disk.clone();
            for (file, bytes, position) in &pending {
                let mut at = 0;
                while at < bytes.len() {
                    let end = bytes.len().min((position + at) / SECTOR * SECTOR + SECTOR - position);
                    if random(&mut word, 2) == 0 {
                        lay_over(&mut cut[*file], &bytes[at..end], position + at);
                    }
                    at = end;
                }
            }
            for (name, bytes) in FILES.iter().zip(&cut) {
                fs::write(folder.path().join(name), bytes).unwrap();
            }
            let newest = acked.get(known).or(acked.last()).unwrap().0.generation;
            let held = acked[..known].iter().rev().find(|(mark, _)| mark.generation + 2 <= newest);
            let held = held.map_or(NOTHING, |(mark, _)| *mark);
            let found = state_after(folder.path(), held).unwrap();
            for (mark, name) in &acked[..known] {
                assert_eq!(
                    found.contains_key(name.as_bytes()),
                    *mark > held,
                    "{name} of {known}, held {held:?}"
                );
            }
            assert!(found.len() <= acked[..known].iter().filter(|(mark, _)| *mark > held).count() + 1);
        }
    }
}

impl Head {
    fn encode_page(self) -> Vec<u8> {
        let mut page = self.encode().to_vec();
        page.resize(FIRST_BATCH, 0);
        page
    }
}

fn lay_over(disk: &mut Vec<u8>, bytes: &[u8], position: usize) {
    disk.resize(disk.len().max(position + bytes.len()), 0);
    disk[position..position + bytes.len()].copy_from_slice(bytes);
}

/// A batch that was acked and is damaged is never passed over, in the newest generation and in the one before, unless the tree
/// has it. The last one of all looks like a torn one: it alone can be told from nothing.
#[test]
fn damage_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::create(folder.path(), NOTHING).unwrap();
    let mut ends = Vec::new();
    for generation in 1..=4 {
        for number in 0..4 {
            log.append(generation, &batch(&format!("{number}"), Some(&[generation as u8; 40]))).unwrap();
        }
        ends.push(log.position as usize);
    }
    let held = LogMark { generation: 2, batches: 4 };
    let last_begins = log.position as usize - BATCH_HEAD_BYTES - 8 - 1 - 40;
    for (file, end, last) in [(0, ends[3], last_begins), (1, ends[2], ends[2])] {
        let path = folder.path().join(FILES[file]);
        let whole = fs::read(&path).unwrap();
        for at in (0..HEAD_BYTES).chain(FIRST_BATCH..end) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&path, &bytes).unwrap();
            match state_after(folder.path(), held) {
                Err(error) => assert!(error.to_string().contains("is damaged"), "{at}: {error}"),
                Ok(_) => assert!(at >= last, "acked batches are passed over: {at} of {last}"),
            }
            if at >= FIRST_BATCH {
                assert_eq!(
                    state_after(folder.path(), log.reached).unwrap(),
                    Overlay::new(),
                    "the tree has it"
                );
            }
        }
        fs::write(&path, &whole).unwrap();
    }
    state_after(folder.path(), held).unwrap();
}

/// A generation of which only the head reached the disk holds nothing, and nothing follows on it.
#[test]
fn a_head_alone_is_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::create(folder.path(), NOTHING).unwrap();
    let held = log.append(1, &batch("k", Some(b"v"))).unwrap();
    log.append(2, &batch("torn", Some(b"v"))).unwrap();
    let path = folder.path().join(FILES[0]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[FIRST_BATCH] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let logged = read(folder.path(), held).unwrap();
    assert_eq!((logged.through, logged.changes.size.records), (held, 0));
    // What begins now follows on what the tree has, and is found after another power cut.
    remove(folder.path()).unwrap();
    let mut log = Log::create(folder.path(), logged.through).unwrap();
    log.append(2, &batch("next", Some(b"v"))).unwrap();
    assert!(state_after(folder.path(), held).unwrap().contains_key(&b"next"[..]));
}

/// A file that is gone, or a tree older than what the log follows on (a backup that was put back), is found out.
#[test]
fn a_gap_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let begun = LogMark { generation: 7, batches: 3 };
    let mut log = Log::create(folder.path(), begun).unwrap();
    assert!(state_after(folder.path(), NOTHING).is_err(), "before anything is logged, too");
    for generation in [8, 9] {
        log.append(generation, &batch("k", Some(b"v"))).unwrap();
    }
    let marks = |batches: u64, generation: u64| LogMark { generation, batches };
    for (held, refused) in [(marks(3, 7), false), (marks(1, 8), false), (marks(2, 7), true), (NOTHING, true)]
    {
        let outcome = state_after(folder.path(), held);
        assert_eq!(outcome.is_err(), refused, "{held:?}");
    }
    fs::remove_file(folder.path().join(FILES[0])).unwrap();
    let error = state_after(folder.path(), begun).unwrap_err().to_string();
    assert!(error.contains("log-0 is damaged") && error.contains("move the data folder away"), "{error}");
    assert_eq!(state_after(folder.path(), marks(1, 8)).unwrap().len(), 1);
}

/// A value that holds whole batches, as they stand in another log, is a value, and searching it costs no more than reading it.
#[test]
fn a_value_is_no_batch() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::create(folder.path(), NOTHING).unwrap();
    let mut forged = Vec::new();
    encode(&mut forged, 0, 7, &batch("forged", Some(&[7; 500])));
    // Heads that name bodies of all that follows.
    let mut many = Vec::new();
    while many.len() < 4 * 1024 * 1024 {
        many.extend_from_slice(&forged[..20]);
        many.extend_from_slice(&1_000_000_u64.to_le_bytes());
    }
    log.append(1, &batch("k", Some(&forged))).unwrap();
    let begins = log.position as usize;
    log.append(1, &batch("last", Some(&many))).unwrap();
    let path = folder.path().join(FILES[1]);
    let mut bytes = fs::read(&path).unwrap();
    bytes[begins + BATCH_HEAD_BYTES] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let found = state_after(folder.path(), NOTHING).unwrap();
    assert_eq!(found.into_keys().collect::<Vec<_>>(), ["k"]);
}

/// What could not be written whole is blotted out, so that it does not come back.
#[test]
fn a_failed_batch_is_blotted_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::create(folder.path(), NOTHING).unwrap();
    log.append(1, &batch("k", Some(b"v"))).unwrap();
    log.files[1].steps.fails = true;
    let error = log.append(1, &batch("failed", Some(b"v"))).unwrap_err().to_string();
    assert!(error.contains("cannot write") && error.contains("log-1"), "{error}");
    assert_eq!(state_after(folder.path(), NOTHING).unwrap().into_keys().collect::<Vec<_>>(), ["k"]);
}
