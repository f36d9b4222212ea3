use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use quorate_core::StorageKey;
use quorate_core::key::Table;
use quorate_core::storage::RecordAction;

use super::state::{CheckpointerState, WalThreadState};
use super::*;
use crate::config::Config;
use crate::random::Random;
use crate::write_buffer::CHECKPOINT_RECORDS;

fn key(name: &str) -> StorageKey {
    StorageKey::of_table(Table::NodeMetadata, name.as_bytes())
}

fn start(folder: &Path, durability: Durability, interval_ms: u64) -> Engine {
    let config = Config { map_size_mib: 1024, reserve_mib: 1, ..Config::default() };
    let tree = Tree::open(&config, folder).unwrap();
    Engine::start(tree, folder.to_owned(), durability, interval_ms).unwrap()
}

/// Counts the records that only the WAL would have if the process were killed now.
fn records_to_recover(engine: &Engine) -> usize {
    let in_tree = engine.shared.tree.wal_position().unwrap();
    wal::recover(&engine.shared.folder, in_tree).unwrap().changes.size.records
}

/// Update that appends a byte to its record, and reports its progress.
struct Append {
    key: StorageKey,
    byte: u8,
    events: Sender<String>,
    engine: Arc<EngineCore>,
}

impl Update for Append {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, stored: Option<Bytes>) -> Result<RecordAction, StorageError> {
        let mut value = stored.map_or(Vec::new(), |stored| stored.to_vec());
        value.push(self.byte);
        Ok(RecordAction::Put(value.into()))
    }

    fn applied(&mut self) {
        let _ = self.events.send(format!("{} applied", self.byte as char));
    }

    fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
        // The engine reports a failed batch while it holds the lock, so that no later update begins
        // first.
        let under_lock = if self.engine.state.try_lock().is_err() { " under lock" } else { "" };
        let how = if outcome.is_ok() { "durable" } else { "failed" };
        let _ = self.events.send(format!("{} {how}{under_lock}", self.byte as char));
    }
}

fn append_to(engine: &Engine, events: &Sender<String>, byte: u8) -> Vec<Box<dyn Update>> {
    vec![Box::new(Append { key: key("k"), byte, events: events.clone(), engine: engine.shared.clone() })]
}

fn next(events: &Receiver<String>) -> String {
    events.recv_timeout(Duration::from_secs(30)).expect("each update is finished in bounded time")
}

fn wait_until(engine: &Engine, condition: impl Fn(&State) -> bool) {
    while !condition(&engine.shared.lock()) {
        std::thread::yield_now();
    }
}

/// A failed WAL batch also fails the updates applied on top of it, before any later update begins.
/// The record keeps its old value, in the WAL too, and later writes succeed.
#[test]
fn a_failed_batch_fails_later_updates() {
    for (after, during_checkpoint) in [(false, false), (true, false), (true, true)] {
        let folder = tempfile::tempdir().unwrap();
        let engine = start(folder.path(), Durability::Fsync, 60_000);
        let (sender, events) = channel();
        let append = |byte| append_to(&engine, &sender, byte);
        let stored = || engine.get(key("k").as_bytes()).unwrap().unwrap();
        engine.update(append(b'a'));
        assert_eq!((next(&events), next(&events)), ("a applied".into(), "a durable".into()));

        let faults = &engine.shared.faults;
        let checkpoint = during_checkpoint.then(|| faults.before_checkpoint.block());
        if during_checkpoint {
            request_checkpoint(&engine);
            wait_until(&engine, |state| state.frozen_size.records > 0);
        }
        let point = if after { &faults.after_append } else { &faults.before_append };
        let gate = point.block();
        point.fail_once();
        engine.update(append(b'b'));
        wait_until(&engine, |state| !state.wal_batch.changes.is_empty());
        engine.update(append(b'c'));
        assert_eq!((next(&events), next(&events)), ("b applied".into(), "c applied".into()));
        assert_eq!(stored(), "a", "readers see what is durable");
        drop(gate);
        assert_eq!(
            (next(&events), next(&events)),
            ("b failed under lock".into(), "c failed under lock".into())
        );
        assert_eq!(stored(), "a");
        drop(checkpoint);
        wait_until(&engine, |state| state.failure.is_none());
        assert_eq!(records_to_recover(&engine), 0, "the WAL has no failed change");

        engine.update(append(b'd'));
        assert_eq!((next(&events), next(&events)), ("d applied".into(), "d durable".into()));
        assert_eq!(stored(), "ad");
        assert_eq!(records_to_recover(&engine), 1);
    }
}

/// Requests a checkpoint, and does not wait for it.
fn request_checkpoint(engine: &Engine) {
    engine.shared.lock().checkpoint_requested = true;
    engine.shared.checkpointer_wakeup.notify_one();
}

/// A checkpoint that waits for a WAL batch goes on when the batch fails, and a new WAL is created.
#[test]
fn a_waiting_checkpoint_survives_a_failed_batch() {
    let folder = tempfile::tempdir().unwrap();
    let engine = start(folder.path(), Durability::Fsync, 60_000);
    let (sender, events) = channel();
    let append = |byte| append_to(&engine, &sender, byte);
    engine.update(append(b'a'));
    assert_eq!((next(&events), next(&events)), ("a applied".into(), "a durable".into()));
    let faults = &engine.shared.faults;
    let gate = faults.before_append.block();
    faults.before_append.fail_once();
    engine.update(append(b'b'));
    wait_until(&engine, |state| state.wal_batch.size.records > 0);
    request_checkpoint(&engine);
    wait_until(&engine, |state| state.checkpointer == CheckpointerState::WaitingForWal);
    assert_eq!(engine.waiting(), 1, "the update in flight counts");
    drop(gate);
    assert_eq!((next(&events), next(&events)), ("b applied".into(), "b failed under lock".into()));
    wait_until(&engine, |state| state.failure.is_none());
    engine.update(append(b'c'));
    assert_eq!((next(&events), next(&events)), ("c applied".into(), "c durable".into()));
    assert_eq!(engine.get(key("k").as_bytes()).unwrap().unwrap(), "ac");
}

/// A checkpoint fails after the next generation has begun, and then a WAL batch fails. The new WAL
/// begins with a file header, and its batches are recovered.
#[test]
fn a_new_wal_within_a_generation_is_recovered() {
    let folder = tempfile::tempdir().unwrap();
    let engine = start(folder.path(), Durability::Fsync, 60_000);
    let (sender, events) = channel();
    let append = |byte| append_to(&engine, &sender, byte);
    engine.update(append(b'a'));
    assert_eq!((next(&events), next(&events)), ("a applied".into(), "a durable".into()));
    let faults = &engine.shared.faults;
    let checkpoint = faults.before_checkpoint.block();
    faults.before_checkpoint.fail_once();
    request_checkpoint(&engine);
    wait_until(&engine, |state| state.frozen_size.records > 0);
    engine.update(append(b'b'));
    assert_eq!((next(&events), next(&events)), ("b applied".into(), "b durable".into()));
    let append_gate = faults.before_append.block();
    faults.before_append.fail_once();
    engine.update(append(b'c'));
    wait_until(&engine, |state| state.wal_batch.size.records > 0);
    drop(checkpoint);
    wait_until(&engine, |state| state.failure.is_some());
    drop(append_gate);
    assert_eq!((next(&events), next(&events)), ("c applied".into(), "c failed under lock".into()));
    wait_until(&engine, |state| state.failure.is_none());
    engine.update(append(b'd'));
    assert_eq!((next(&events), next(&events)), ("d applied".into(), "d durable".into()));
    assert_eq!(records_to_recover(&engine), 1, "a kill now would not lose it");
    assert_eq!(engine.get(key("k").as_bytes()).unwrap().unwrap(), "abd");
}

/// A thread that is notified although it has no work becomes idle again, and can be notified again.
#[test]
fn a_thread_notified_in_vain_is_idle_again() {
    let folder = tempfile::tempdir().unwrap();
    let engine = start(folder.path(), Durability::Fsync, 60_000);
    let are_idle = |state: &State| {
        state.wal_thread == WalThreadState::Idle && state.checkpointer == CheckpointerState::Idle
    };
    let wait_until_idle = || {
        for _ in 0..10_000 {
            if are_idle(&engine.shared.lock()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("a thread waits, and its state is `Running`");
    };
    wait_until_idle();
    // As `unlock_and_notify` does. The reason is gone before the notified thread has the lock.
    let mut state = engine.shared.lock();
    (state.wal_thread, state.checkpointer) = (WalThreadState::Running, CheckpointerState::Running);
    drop(state);
    engine.shared.wal_thread_wakeup.notify_one();
    engine.shared.checkpointer_wakeup.notify_one();
    wait_until_idle();
}

/// While checkpoints fail, acknowledged changes stay readable and new updates are refused. Once one
/// succeeds, the tree has the changes.
#[test]
fn a_failed_checkpoint_loses_nothing() {
    for durability in [Durability::Fsync, Durability::Interval] {
        let folder = tempfile::tempdir().unwrap();
        let engine = start(folder.path(), durability, 1);
        let (sender, events) = channel();
        let append = |byte| append_to(&engine, &sender, byte);
        // No checkpoint passes until the change is acknowledged, because a failed one would refuse it.
        let gate = engine.shared.faults.before_checkpoint.block();
        engine.update(append(b'a'));
        assert_eq!(next(&events), "a applied");
        if durability == Durability::Fsync {
            assert!(next(&events).starts_with("a durable"));
        }
        engine.shared.faults.before_checkpoint.fail_always();
        drop(gate);
        wait_until(&engine, |state| state.failure.is_some());
        assert_eq!(engine.get(key("k").as_bytes()).unwrap().unwrap(), "a");
        engine.update(append(b'b'));
        // The checkpointer may hold the lock at this moment, so the event may end in "under lock".
        assert!(next(&events).starts_with("b failed"));
        assert!(engine.checkpoint_and_wait().is_err());
        engine.shared.faults.before_checkpoint.repair();
        wait_until(&engine, |state| state.failure.is_none());
        engine.checkpoint_and_wait().unwrap();
        assert_eq!(engine.shared.tree.get(key("k").as_bytes()).unwrap().unwrap(), "a");
    }
}

/// Update that sets or removes a record, and reports its number once it is durable.
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

    fn change(&mut self, _: Option<Bytes>) -> Result<RecordAction, StorageError> {
        Ok(self.to.clone().map_or(RecordAction::Remove, RecordAction::Put))
    }

    fn applied(&mut self) {}

    fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
        if outcome.is_ok() {
            let _ = self.acked.send(self.number);
        }
    }
}

fn set(engine: &Engine, changes: impl IntoIterator<Item = (String, Option<Bytes>)>) {
    let (acked, acks) = channel();
    let each = acked.clone();
    let update = move |(number, (name, to)): (usize, (String, Option<Bytes>))| {
        Box::new(Set { key: key(&name), to, number, acked: each.clone() }) as Box<dyn Update>
    };
    let batch: Vec<_> = changes.into_iter().enumerate().map(update).collect();
    drop(acked);
    let count = batch.len();
    engine.update(batch);
    if engine.shared.uses_wal {
        assert_eq!(acks.iter().take(count).count(), count);
    }
}

/// A kill between two pieces of a checkpoint loses nothing: the tree gets its WAL position with the
/// last piece only.
#[test]
fn a_kill_within_a_checkpoint_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let engine = start(folder.path(), Durability::Fsync, 60_000);
    engine.shared.faults.after_piece.fail_always();
    let gate = engine.shared.faults.before_checkpoint.block();
    let count = CHECKPOINT_RECORDS + 1_000;
    let name = |number: usize| format!("{number}");
    for first in (0..count).step_by(1_000) {
        set(&engine, (first..count.min(first + 1_000)).map(|number| (name(number), Some("v".into()))));
    }
    drop(gate);
    assert!(engine.checkpoint_and_wait().is_err());
    drop(engine);
    let engine = start(folder.path(), Durability::Fsync, 60_000);
    for number in 0..count {
        assert_eq!(engine.get(key(&name(number)).as_bytes()).unwrap().unwrap(), "v", "{number}");
    }
    assert_eq!(records_to_recover(&engine), 0);
}

/// A scan merges the tree, the frozen and the active part, for all starts and limits of a page.
#[test]
fn a_page_merges_tree_and_buffer() {
    let folder = tempfile::tempdir().unwrap();
    let engine = start(folder.path(), Durability::Interval, 60_000);
    let (mut random, mut expected) = (Random(5), BTreeMap::new());
    let mut gate = None;
    for part in 0..3_usize {
        for _ in 0..[10, 10, 40][part] {
            // Keys from 30 on are in the active part alone.
            let name = format!("{:02}", random.below([30, 30, 40][part]));
            let value =
                (random.below(3) > 0).then(|| Bytes::from(format!("{part}{}", "x".repeat(random.below(20)))));
            set(&engine, [(name.clone(), value.clone())]);
            expected.insert(key(&name).to_bytes(), value);
        }
        match part {
            0 => engine.checkpoint_and_wait().unwrap(),
            1 => {
                gate = Some(engine.shared.faults.before_checkpoint.block());
                engine.flush();
                wait_until(&engine, |state| state.frozen_size.records > 0);
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
                let page = engine.scan(Range { start, after, end, limit, max_bytes }).unwrap();
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

/// After a kill at any step of WAL and checkpoint, each record has its last acknowledged value or a
/// later submitted one. The 200 runs overwrite the WAL files many times.
#[test]
fn a_kill_loses_nothing_acked() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random(7);
    // Per record: the submitted values, in order, and the index of the last acknowledged one.
    let mut submitted_values: BTreeMap<String, (Vec<Option<Bytes>>, usize)> = BTreeMap::new();
    let mut generations = 0;
    for run in 0..200 {
        let engine = start(folder.path(), Durability::Fsync, 1);
        for (name, (values, acked)) in &mut submitted_values {
            let found = engine.get(key(name).as_bytes()).unwrap();
            let possible = &values[*acked..];
            assert!(possible.contains(&found), "run {run}: {name} is {found:?}, not one of {possible:?}");
            (*values, *acked) = (vec![found], 0);
        }
        let mut submitted: Vec<(String, usize)> = Vec::new();
        let (acked, acks) = channel();
        let faults = &engine.shared.faults;
        for point in [&faults.before_append, &faults.before_checkpoint] {
            point.delay(Duration::from_micros([0, random.below(3_000) as u64][random.below(2)]));
        }
        // One run in five ends with a clean stop.
        let (submissions, is_killed) = (random.below(60), random.below(5) > 0);
        for number in 0..submissions {
            if is_killed && number + 8 == submissions {
                [&faults.before_checkpoint, &faults.after_checkpoint][random.below(2)].fail_always();
            }
            let mut batch: Vec<Box<dyn Update>> = Vec::new();
            for _ in 0..=random.below(4) {
                let name = format!("{}", random.below(20));
                let (values, _) = submitted_values.entry(name.clone()).or_insert_with(|| (vec![None], 0));
                let value = format!("{run} {} {}", submitted.len(), "x".repeat(random.below(2_000)));
                let to = (random.below(4) > 0).then(|| Bytes::from(value));
                values.push(to.clone());
                let (key, number) = (key(&name), submitted.len());
                submitted.push((name, values.len() - 1));
                batch.push(Box::new(Set { key, to, number, acked: acked.clone() }));
            }
            engine.update(batch);
            std::thread::sleep(Duration::from_micros(random.below(800) as u64));
        }
        if is_killed {
            [&faults.before_append, &faults.after_append][random.below(2)].fail_always();
        }
        generations += engine.shared.lock().wal_generation;
        drop(engine);
        for number in acks.try_iter() {
            let (name, at) = &submitted[number];
            let (_, acked) = submitted_values.get_mut(name).unwrap();
            *acked = (*acked).max(*at);
        }
    }
    assert!(generations > 300, "{generations}");
}
