use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use quorate_core::StorageKey;
use quorate_core::key::Table;

use super::*;
use crate::Config;
use crate::newer::COMMIT_EARLY_RECORDS;

/// Where something can go wrong.
#[derive(Default)]
pub(super) struct Trouble {
    pub(super) before_log: Spot,
    pub(super) after_log: Spot,
    pub(super) before_commit: Spot,
    pub(super) after_piece: Spot,
    pub(super) after_commit: Spot,
}

/// Holds a thread back, or lets a step fail: the next one, or all.
#[derive(Default)]
pub(super) struct Spot {
    gate: Mutex<()>,
    takes: Mutex<Duration>,
    fail: Mutex<Option<(StorageError, bool)>>,
}

impl Spot {
    pub(super) fn stop_here(&self) -> Result<(), StorageError> {
        drop(self.gate.lock().unwrap());
        let takes = *self.takes.lock().unwrap();
        std::thread::sleep(takes);
        let mut fail = self.fail.lock().unwrap();
        let Some((error, always)) = fail.take() else { return Ok(()) };
        *fail = always.then(|| (error.clone(), true));
        Err(error)
    }

    fn fails(&self, always: bool) {
        let detail = "the disk is gone".to_owned();
        *self.fail.lock().unwrap() = Some((StorageError::Io { detail }, always));
    }
}

fn key(name: &str) -> StorageKey {
    StorageKey::of_table(Table::Facts, name.as_bytes())
}

fn start(folder: &Path, durability: Durability, interval_ms: u64) -> Writer {
    let config = Config { map_size_mib: 1024, reserve_mib: 1, ..Config::default() };
    let map = Arc::new(Map::open(&config, folder).unwrap());
    Writer::start(map, folder.to_owned(), durability, interval_ms).unwrap()
}

/// Records that only the log holds.
fn logged(writer: &Writer) -> usize {
    let held = writer.shared.map.held().unwrap();
    log::read(&writer.shared.folder, held).unwrap().changes.size.records
}

struct Append {
    key: StorageKey,
    byte: u8,
    told: Sender<String>,
    engine: Arc<Shared>,
}

impl Update for Append {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, stored: Option<Bytes>) -> Result<Change, StorageError> {
        let mut value = stored.map_or(Vec::new(), |stored| stored.to_vec());
        value.push(self.byte);
        Ok(Change::Put(value.into()))
    }

    fn applied(&mut self) {
        let _ = self.told.send(format!("{} applied", self.byte as char));
    }

    fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
        // That a batch failed is told under the lock: nothing can be applied before all have heard.
        let locked = self.engine.state.try_lock().is_err();
        let how = if outcome.is_ok() { "durable" } else { "failed" };
        let _ =
            self.told.send(format!("{} {how}{}", self.byte as char, if locked { " at once" } else { "" }));
    }
}

fn appending(writer: &Writer, told: &Sender<String>, byte: u8) -> Vec<Box<dyn Update>> {
    vec![Box::new(Append { key: key("k"), byte, told: told.clone(), engine: writer.shared.clone() })]
}

fn hear(told: &Receiver<String>) -> String {
    told.recv_timeout(Duration::from_secs(30)).expect("each update is told in bounded time")
}

/// An update that was applied on top of one that could not be logged goes with it, before anything later begins; then the
/// record is what it was, in the log, too, and writes go on.
#[test]
fn a_failed_batch_takes_with_it_what_stands_on_it() {
    for (after, during_commit) in [(false, false), (true, false), (true, true)] {
        let folder = tempfile::tempdir().unwrap();
        let writer = start(folder.path(), Durability::Fsync, 60_000);
        let (told, heard) = channel();
        let append = |byte| appending(&writer, &told, byte);
        let stored = || writer.get(key("k").as_bytes()).unwrap().unwrap();
        writer.update(append(b'a'));
        assert_eq!((hear(&heard), hear(&heard)), ("a applied".into(), "a durable".into()));

        let trouble = &writer.shared.trouble;
        let commit = during_commit.then(|| trouble.before_commit.gate.lock().unwrap());
        if during_commit {
            writer.shared.lock().hurry = true;
            writer.shared.wake_committer.notify_one();
            while writer.shared.lock().committing.records == 0 {
                std::thread::yield_now();
            }
        }
        let spot = if after { &trouble.after_log } else { &trouble.before_log };
        let gate = spot.gate.lock().unwrap();
        spot.fails(false);
        writer.update(append(b'b'));
        while writer.shared.lock().logging.changes.is_empty() {
            std::thread::yield_now();
        }
        writer.update(append(b'c'));
        assert_eq!((hear(&heard), hear(&heard)), ("b applied".into(), "c applied".into()));
        assert_eq!(stored(), "a", "readers see what is durable");
        drop(gate);
        assert_eq!((hear(&heard), hear(&heard)), ("b failed at once".into(), "c failed at once".into()));
        assert_eq!(stored(), "a");
        drop(commit);
        while writer.shared.lock().stopped.is_some() {
            std::thread::yield_now();
        }
        assert_eq!(logged(&writer), 0, "the log holds nothing that failed");

        writer.update(append(b'd'));
        assert_eq!((hear(&heard), hear(&heard)), ("d applied".into(), "d durable".into()));
        assert_eq!(stored(), "ad");
        assert_eq!(logged(&writer), 1);
    }
}

/// Has a commit begin, and does not wait for it.
fn hurry(writer: &Writer) {
    writer.shared.lock().hurry = true;
    writer.shared.wake_committer.notify_one();
}

/// A commit that waits for the batch that is being written goes on when that fails, and the log begins afresh.
#[test]
fn a_waiting_commit_outlives_a_failed_batch() {
    let folder = tempfile::tempdir().unwrap();
    let writer = start(folder.path(), Durability::Fsync, 60_000);
    let (told, heard) = channel();
    let append = |byte| appending(&writer, &told, byte);
    writer.update(append(b'a'));
    assert_eq!((hear(&heard), hear(&heard)), ("a applied".into(), "a durable".into()));
    let trouble = &writer.shared.trouble;
    let gate = trouble.before_log.gate.lock().unwrap();
    trouble.before_log.fails(false);
    writer.update(append(b'b'));
    while writer.shared.lock().logging.size.records == 0 {
        std::thread::yield_now();
    }
    hurry(&writer);
    while writer.shared.lock().committer != Committer::Waits {
        std::thread::yield_now();
    }
    assert_eq!(writer.waiting(), 1, "the one that is being written counts");
    drop(gate);
    assert_eq!((hear(&heard), hear(&heard)), ("b applied".into(), "b failed at once".into()));
    while writer.shared.lock().stopped.is_some() {
        std::thread::yield_now();
    }
    writer.update(append(b'c'));
    assert_eq!((hear(&heard), hear(&heard)), ("c applied".into(), "c durable".into()));
    assert_eq!(writer.get(key("k").as_bytes()).unwrap().unwrap(), "ac");
}

/// A commit fails while the next generation has begun, and then the log does: where it begins afresh its batches have a head, and
/// are found.
#[test]
fn a_log_that_begins_inside_a_generation_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let writer = start(folder.path(), Durability::Fsync, 60_000);
    let (told, heard) = channel();
    let append = |byte| appending(&writer, &told, byte);
    writer.update(append(b'a'));
    assert_eq!((hear(&heard), hear(&heard)), ("a applied".into(), "a durable".into()));
    let trouble = &writer.shared.trouble;
    let commit = trouble.before_commit.gate.lock().unwrap();
    trouble.before_commit.fails(false);
    hurry(&writer);
    while writer.shared.lock().committing.records == 0 {
        std::thread::yield_now();
    }
    writer.update(append(b'b'));
    assert_eq!((hear(&heard), hear(&heard)), ("b applied".into(), "b durable".into()));
    let log = trouble.before_log.gate.lock().unwrap();
    trouble.before_log.fails(false);
    writer.update(append(b'c'));
    while writer.shared.lock().logging.size.records == 0 {
        std::thread::yield_now();
    }
    drop(commit);
    while writer.shared.lock().stopped.is_none() {
        std::thread::yield_now();
    }
    drop(log);
    assert_eq!((hear(&heard), hear(&heard)), ("c applied".into(), "c failed at once".into()));
    while writer.shared.lock().stopped.is_some() {
        std::thread::yield_now();
    }
    writer.update(append(b'd'));
    assert_eq!((hear(&heard), hear(&heard)), ("d applied".into(), "d durable".into()));
    assert_eq!(logged(&writer), 1, "a kill now would not lose it");
    assert_eq!(writer.get(key("k").as_bytes()).unwrap().unwrap(), "abd");
}

/// A thread that is woken for what is over by then can be woken again.
#[test]
fn a_thread_that_was_woken_in_vain_sleeps_again() {
    let folder = tempfile::tempdir().unwrap();
    let writer = start(folder.path(), Durability::Fsync, 60_000);
    let sleeps = |state: &State| state.logger == Logger::Asleep && state.committer == Committer::Asleep;
    let until_both_sleep = || {
        for _ in 0..10_000 {
            if sleeps(&writer.shared.lock()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("a thread waits, and is taken to be at work");
    };
    until_both_sleep();
    // As `wake` does, where another thread takes away the reason before the one that was woken has the lock.
    let mut state = writer.shared.lock();
    (state.logger, state.committer) = (Logger::Busy, Committer::Busy);
    drop(state);
    writer.shared.wake_logger.notify_one();
    writer.shared.wake_committer.notify_one();
    until_both_sleep();
}

/// While the tree takes nothing, what was acked is kept and shown, and new updates are refused; then it goes on.
#[test]
fn a_failed_commit_loses_nothing() {
    for durability in [Durability::Fsync, Durability::Interval] {
        let folder = tempfile::tempdir().unwrap();
        let writer = start(folder.path(), durability, 1);
        let (told, heard) = channel();
        let append = |byte| appending(&writer, &told, byte);
        writer.shared.trouble.before_commit.fails(true);
        writer.update(append(b'a'));
        assert_eq!(hear(&heard), "a applied");
        while writer.shared.lock().stopped.is_none() {
            std::thread::yield_now();
        }
        assert_eq!(writer.get(key("k").as_bytes()).unwrap().unwrap(), "a");
        if durability == Durability::Fsync {
            assert_eq!(hear(&heard), "a durable");
        }
        writer.update(append(b'b'));
        assert_eq!(hear(&heard), "b failed");
        assert!(writer.commit_all().is_err());
        *writer.shared.trouble.before_commit.fail.lock().unwrap() = None;
        while writer.shared.lock().stopped.is_some() {
            std::thread::yield_now();
        }
        writer.commit_all().unwrap();
        assert_eq!(writer.shared.map.get(key("k").as_bytes()).unwrap().unwrap(), "a");
    }
}

struct Set {
    key: StorageKey,
    to: Option<Bytes>,
    number: usize,
    acked: Sender<usize>,
}

impl Update for Set {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, _: Option<Bytes>) -> Result<Change, StorageError> {
        Ok(self.to.clone().map_or(Change::Remove, Change::Put))
    }

    fn applied(&mut self) {}

    fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
        if outcome.is_ok() {
            let _ = self.acked.send(self.number);
        }
    }
}

fn set(writer: &Writer, changes: impl IntoIterator<Item = (String, Option<Bytes>)>) {
    let (acked, heard) = channel();
    let each = acked.clone();
    let update = move |(number, (name, to)): (usize, (String, Option<Bytes>))| {
        Box::new(Set { key: key(&name), to, number, acked: each.clone() }) as Box<dyn Update>
    };
    let batch: Vec<_> = changes.into_iter().enumerate().map(update).collect();
    drop(acked);
    let count = batch.len();
    writer.update(batch);
    if writer.shared.logs {
        assert_eq!(heard.iter().take(count).count(), count);
    }
}

/// The tree says that it holds the log only when it holds all of it: killed between two pieces of a commit, the rest is found.
#[test]
fn a_commit_in_pieces_may_be_cut() {
    let folder = tempfile::tempdir().unwrap();
    let writer = start(folder.path(), Durability::Fsync, 60_000);
    writer.shared.trouble.after_piece.fails(true);
    let gate = writer.shared.trouble.before_commit.gate.lock().unwrap();
    let count = COMMIT_EARLY_RECORDS + 1_000;
    let name = |number: usize| format!("{number}");
    for first in (0..count).step_by(1_000) {
        set(&writer, (first..count.min(first + 1_000)).map(|number| (name(number), Some("v".into()))));
    }
    drop(gate);
    assert!(writer.commit_all().is_err());
    drop(writer);
    let writer = start(folder.path(), Durability::Fsync, 60_000);
    for number in 0..count {
        assert_eq!(writer.get(key(&name(number)).as_bytes()).unwrap().unwrap(), "v", "{number}");
    }
    assert_eq!(logged(&writer), 0);
}

/// A page shows the tree under what is on its way into it, under what is settled, wherever it begins and whatever bounds it.
#[test]
fn a_page_is_of_all_parts() {
    let folder = tempfile::tempdir().unwrap();
    let writer = start(folder.path(), Durability::Interval, 60_000);
    let (mut word, mut expected) = (5_u64, BTreeMap::new());
    let mut random = |below| crate::log::tests::random(&mut word, below);
    let mut gate = None;
    for part in 0..3_usize {
        for _ in 0..[10, 10, 40][part] {
            // The last of all are of the newest part alone.
            let name = format!("{:02}", random([30, 30, 40][part]));
            let value = (random(3) > 0).then(|| Bytes::from(format!("{part}{}", "x".repeat(random(20)))));
            set(&writer, [(name.clone(), value.clone())]);
            expected.insert(key(&name).to_bytes(), value);
        }
        match part {
            0 => writer.commit_all().unwrap(),
            1 => {
                gate = Some(writer.shared.trouble.before_commit.gate.lock().unwrap());
                writer.flush();
                while writer.shared.lock().committing.records == 0 {
                    std::thread::yield_now();
                }
            }
            _ => {}
        }
    }
    let live: Vec<(Bytes, Bytes)> =
        expected.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    let keys: Vec<Bytes> = (0..40).map(|number| key(&format!("{number:02}")).to_bytes()).collect();
    for start in &keys {
        for (after, limit, max_bytes) in [
            (false, 100, 10_000),
            (true, 100, 10_000),
            (false, 1, 10_000),
            (true, 3, 10_000),
            (true, 100, 25),
        ] {
            for end in [None, Some(&keys[20]), Some(start)] {
                let end = end.map(|end| end.as_ref());
                let page = writer.scan(Range { start, after, end, limit, max_bytes }).unwrap();
                let inside = live.iter().filter(|(key, _)| key >= start && !(after && key == start));
                let inside: Vec<_> =
                    inside.filter(|(key, _)| end.is_none_or(|end| key.as_ref() < end)).collect();
                let mut bytes = 0;
                let fits = |(key, value): &&&(Bytes, Bytes)| {
                    let fits = bytes < max_bytes;
                    bytes += key.len() + value.len();
                    fits
                };
                let wanted: Vec<_> =
                    inside.iter().take(limit).take_while(fits).map(|found| (*found).clone()).collect();
                assert_eq!(
                    page.more,
                    wanted.len() < inside.len(),
                    "{start:?} {after} {limit} {max_bytes} {end:?}"
                );
                assert_eq!(page.records, wanted);
            }
        }
    }
    drop(gate);
}

/// Killed at any step of log and commit, over and over, with many turns of the log's files between: each record is what it
/// was last acked to be, or what was asked for later.
#[test]
fn a_kill_loses_nothing_acked() {
    let folder = tempfile::tempdir().unwrap();
    let mut word = 7_u64;
    let mut random = |below| crate::log::tests::random(&mut word, below);
    // What was asked for each record, in order, and how much of it was acked for sure.
    let mut asked: BTreeMap<String, (Vec<Option<Bytes>>, usize)> = BTreeMap::new();
    let mut generations = 0;
    for life in 0..200 {
        let writer = start(folder.path(), Durability::Fsync, 1);
        for (name, (values, acked)) in &mut asked {
            let found = writer.get(key(name).as_bytes()).unwrap();
            let possible = &values[*acked..];
            assert!(possible.contains(&found), "life {life}: {name} is {found:?}, and could be {possible:?}");
            (*values, *acked) = (vec![found], 0);
        }
        let mut submitted: Vec<(String, usize)> = Vec::new();
        let (acked, heard) = channel();
        let trouble = &writer.shared.trouble;
        for spot in [&trouble.before_log, &trouble.before_commit] {
            *spot.takes.lock().unwrap() = Duration::from_micros([0, random(3_000) as u64][random(2)]);
        }
        // A clean stop now and then.
        let (submissions, is_killed) = (random(60), random(5) > 0);
        for number in 0..submissions {
            if is_killed && number + 8 == submissions {
                [&trouble.before_commit, &trouble.after_commit][random(2)].fails(true);
            }
            let mut batch: Vec<Box<dyn Update>> = Vec::new();
            for _ in 0..=random(4) {
                let name = format!("{}", random(20));
                let (values, _) = asked.entry(name.clone()).or_insert_with(|| (vec![None], 0));
                let value = format!("{life} {} {}", submitted.len(), "x".repeat(random(2_000)));
                let to = (random(4) > 0).then(|| Bytes::from(value));
                values.push(to.clone());
                let (key, number) = (key(&name), submitted.len());
                submitted.push((name, values.len() - 1));
                batch.push(Box::new(Set { key, to, number, acked: acked.clone() }));
            }
            writer.update(batch);
            std::thread::sleep(Duration::from_micros(random(800) as u64));
        }
        if is_killed {
            [&trouble.before_log, &trouble.after_log][random(2)].fails(true);
        }
        generations += writer.shared.lock().generation;
        drop(writer);
        for number in heard.try_iter() {
            let (name, at) = &submitted[number];
            let (_, acked) = asked.get_mut(name).unwrap();
            *acked = (*acked).max(*at);
        }
    }
    assert!(generations > 300, "{generations}");
}
