//! The LMDB engine keeps the contract of storage engines, and what is its own: locks, formats, full maps.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use bytes::Bytes;
use quorate_core::StorageKey;
use quorate_core::key::Table;
use quorate_core::storage::{Change, StorageEngine, StorageError, Update};
use quorate_storage_lmdb::{Config, Durability, LmdbStorage, open};

fn config(durability: Durability) -> Config {
    Config { durability, interval_ms: 5, map_size_mib: 256, reserve_mib: 1 }
}

#[test]
fn fsync_keeps_the_contract() {
    quorate_core::conformance::storage::run(|folder| {
        Arc::new(open(config(Durability::Fsync), folder).unwrap())
    });
}

#[test]
fn interval_keeps_the_contract() {
    quorate_core::conformance::storage::run(|folder| {
        Arc::new(open(config(Durability::Interval), folder).unwrap())
    });
}

struct Set {
    key: StorageKey,
    change: Change,
    done: Sender<Result<(), StorageError>>,
}

impl Update for Set {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, _: Option<Bytes>) -> Result<Change, StorageError> {
        Ok(self.change.clone())
    }

    fn applied(&mut self) {}

    fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
        let _ = self.done.send(outcome);
    }
}

fn change(engine: &LmdbStorage, name: &str, change: Change) -> Result<(), StorageError> {
    let (done, outcome) = channel();
    let key = StorageKey::of_table(Table::Facts, name.as_bytes());
    engine.update(vec![Box::new(Set { key, change, done })]);
    outcome.recv().unwrap()
}

fn put(engine: &LmdbStorage, name: &str, value: &[u8]) -> Result<(), StorageError> {
    change(engine, name, Change::Put(Bytes::copy_from_slice(value)))
}

fn get(engine: &LmdbStorage, name: &str) -> Option<Bytes> {
    engine.get(&StorageKey::of_table(Table::Facts, name.as_bytes())).unwrap()
}

fn error_of(folder: &Path) -> String {
    open(config(Durability::Fsync), folder).err().expect("refused").to_string()
}

/// LMDB must not be opened twice: the second one is refused, the first goes on.
#[test]
fn a_folder_is_opened_once() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(config(Durability::Fsync), folder.path()).unwrap();
    assert!(error_of(folder.path()).contains("in use by another process"));
    put(&first, "k", b"v").unwrap();
    drop(first);
    open(config(Durability::Fsync), folder.path()).unwrap();
}

/// A folder of a newer format, or of something else, is refused by name.
#[test]
fn a_newer_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("FORMAT"), "quorate-lmdb 99\n").unwrap();
    assert!(error_of(folder.path()).contains("format 99"));
    std::fs::write(folder.path().join("FORMAT"), "something else").unwrap();
    assert!(error_of(folder.path()).contains("not a format mark"));
}

/// A folder of the format without a log is opened, and builds that know no log refuse it afterwards.
#[test]
fn an_older_format_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(config(Durability::Fsync), folder.path()).unwrap();
    put(&engine, "k", b"v").unwrap();
    drop(engine);
    std::fs::write(folder.path().join("FORMAT"), "quorate-lmdb 1\n").unwrap();
    let engine = open(config(Durability::Fsync), folder.path()).unwrap();
    let key = StorageKey::of_table(Table::Facts, b"k");
    assert_eq!(engine.get(&key).unwrap().unwrap(), "v");
    assert_eq!(std::fs::read_to_string(folder.path().join("FORMAT")).unwrap(), "quorate-lmdb 2\n");
}

/// What was acked and can't be read any more is not passed over: the folder is refused, and the error says what to do.
#[test]
fn a_damaged_log_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let slow = Config { interval_ms: 60_000, ..config(Durability::Fsync) };
    let engine = open(slow, folder.path()).unwrap();
    for name in ["first", "second"] {
        put(&engine, name, b"value").unwrap();
    }
    let killed = tempfile::tempdir().unwrap();
    copy_as_killed(folder.path(), killed.path());
    drop(engine);
    assert!(!folder.path().join("log-1").exists(), "a clean stop leaves no log");
    let path = killed.path().join("log-1");
    let log = std::fs::read(&path).unwrap();
    let damaged = log.windows(5).position(|bytes| bytes == b"first").unwrap();
    let mut bytes = log.clone();
    bytes[damaged] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let error = open(config(Durability::Fsync), killed.path()).err().expect("refused").to_string();
    assert!(error.contains("log-1 is damaged at byte 4096"), "{error}");
    assert!(error.contains("move the data folder away"), "{error}");
    std::fs::write(&path, &log).unwrap();
    let engine = open(config(Durability::Fsync), killed.path()).unwrap();
    assert_eq!(get(&engine, "first").unwrap(), "value");
}

/// A process that is killed before its first commit leaves its log, and an empty tree.
fn copy_as_killed(folder: &Path, to: &Path) {
    for file in ["log-0", "log-1", "FORMAT"] {
        std::fs::copy(folder.join(file), to.join(file)).unwrap();
    }
}

/// A full map refuses writes, names the setting, loses nothing, and serves reads; with a larger one, writes go on.
#[test]
fn a_full_map_loses_nothing() {
    for durability in [Durability::Fsync, Durability::Interval] {
        let folder = tempfile::tempdir().unwrap();
        let small = Config { map_size_mib: 4, reserve_mib: 1, ..config(durability) };
        let engine = open(small, folder.path()).unwrap();
        let (mut stored, mut refused) = (0, 0);
        // What is not in the tree yet is taken to need more room than it does: a few are refused before it is full.
        let error = loop {
            match put(&engine, &format!("{stored:04}"), &[7; 10_000]) {
                Ok(()) => (stored, refused) = (stored + 1, 0),
                Err(error) if refused == 100 => break error,
                Err(_) => refused += 1,
            }
            if refused > 0 {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            assert!(stored < 1_000, "the map has 4 MiB");
        };
        assert!(
            matches!(&error, StorageError::Full { detail } if detail.contains("map_size_mib")),
            "{error}"
        );
        assert!(stored > 50, "{stored}");
        let check = |engine: &LmdbStorage| {
            for number in 0..stored {
                let key = StorageKey::of_table(Table::Facts, format!("{number:04}").as_bytes());
                assert_eq!(engine.get(&key).unwrap().map(|value| value.len()), Some(10_000));
            }
        };
        check(&engine);
        assert!(put(&engine, "another", &[7; 10_000]).is_err());
        drop(engine);
        let engine = open(config(durability), folder.path()).unwrap();
        check(&engine);
        put(&engine, "another", &[7; 10_000]).unwrap();
    }
}

/// What was acked fits: small records, strewn over a tree of full pages, take a page each. Nobody is refused for ever either: what
/// makes the tree no larger is still taken, and what is removed makes room.
#[test]
fn scattered_records_fit_a_full_map() {
    for durability in [Durability::Fsync, Durability::Interval] {
        let folder = tempfile::tempdir().unwrap();
        let small = Config { map_size_mib: 8, reserve_mib: 1, interval_ms: 20, ..config(durability) };
        let engine = open(small.clone(), folder.path()).unwrap();
        let name = |number: u64, of: &str| format!("{number:06}{of}");
        let many = 20_000;
        for first in (0..many).step_by(500) {
            put_all(&engine, (first..first + 500).map(|number| (name(number, ""), vec![1; 100])));
        }
        // A stride that meets another page each time.
        let (mut stored, mut refused) = (Vec::new(), 0);
        let mut number = 0;
        while refused < 20 {
            number = (number + 7_919) % many;
            let batch = (0..100).map(|at| name((number + at * 211) % many, &format!(" {}", stored.len())));
            let batch: Vec<_> = batch.map(|name| (name, vec![2; 100])).collect();
            let outcomes = put_all(&engine, batch.clone());
            stored.extend(
                batch
                    .into_iter()
                    .zip(&outcomes)
                    .filter(|(_, outcome)| outcome.is_ok())
                    .map(|((name, _), _)| name),
            );
            match outcomes.into_iter().find_map(Result::err) {
                None => refused = 0,
                Some(StorageError::Full { .. }) => refused += 1,
                Some(error) => panic!("{error}"),
            }
            if refused > 0 {
                std::thread::sleep(std::time::Duration::from_millis(25));
            }
        }
        assert!(stored.len() > 1_000, "{}", stored.len());
        put(&engine, &name(5, ""), &[3; 100]).expect("it grows by nothing");
        drop(engine);
        let engine = open(small, folder.path()).unwrap();
        for stored in &stored {
            assert_eq!(get(&engine, stored).unwrap(), vec![2; 100]);
        }
        assert_eq!(get(&engine, &name(5, "")).unwrap(), vec![3; 100]);
        for first in (0..many).step_by(1_000) {
            let removed = (first..first + 1_000).map(|number| (name(number, ""), Change::Remove));
            for outcome in change_all(&engine, removed) {
                outcome.expect("it makes room");
            }
        }
        // All of it is in the tree.
        engine.checkpoint(&folder.path().join("copy")).unwrap();
        put(&engine, "another", &[7; 1_000]).expect("there is room again");
    }
}

fn put_all(
    engine: &LmdbStorage,
    records: impl IntoIterator<Item = (String, Vec<u8>)>,
) -> Vec<Result<(), StorageError>> {
    change_all(engine, records.into_iter().map(|(name, value)| (name, Change::Put(value.into()))))
}

fn change_all(
    engine: &LmdbStorage,
    changes: impl IntoIterator<Item = (String, Change)>,
) -> Vec<Result<(), StorageError>> {
    let (batch, outcomes): (Vec<_>, Vec<_>) = changes
        .into_iter()
        .map(|(name, change)| {
            let (done, outcome) = channel();
            let key = StorageKey::of_table(Table::Facts, name.as_bytes());
            (Box::new(Set { key, change, done }) as Box<dyn Update>, outcome)
        })
        .unzip();
    engine.update(batch);
    outcomes.into_iter().map(|outcome| outcome.recv().unwrap()).collect()
}

/// A log that the tree has no room for, and a disk that takes no new log: the store opens, shows what was acked, refuses writes
/// with the reason, and goes on when there is room.
#[test]
fn a_full_disk_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let slow = Config { map_size_mib: 64, interval_ms: 60_000, ..config(Durability::Fsync) };
    let engine = open(slow.clone(), folder.path()).unwrap();
    for number in 0..300 {
        put(&engine, &format!("{number}"), &[number as u8; 10_000]).unwrap();
    }
    let killed = tempfile::tempdir().unwrap();
    copy_as_killed(folder.path(), killed.path());
    drop(engine);
    let holds_all = |engine: &LmdbStorage| {
        for number in 0..300 {
            assert_eq!(get(engine, &format!("{number}")).unwrap(), vec![number as u8; 10_000]);
        }
    };
    for durability in [Durability::Fsync, Durability::Interval] {
        let tiny = Config { map_size_mib: 2, reserve_mib: 0, interval_ms: 5, ..config(durability) };
        let engine = open(tiny, killed.path()).unwrap();
        holds_all(&engine);
        let error = put(&engine, "another", b"v").unwrap_err();
        assert!(
            matches!(&error, StorageError::Full { detail } if detail.contains("map_size_mib")),
            "{error}"
        );
    }
    // No new log can be begun: the disk of this name is always full.
    std::os::unix::fs::symlink("/dev/full", killed.path().join("log-0.new")).unwrap();
    let engine = open(Config { interval_ms: 5, ..slow }, killed.path()).unwrap();
    holds_all(&engine);
    let error = put(&engine, "another", b"v").unwrap_err();
    assert!(
        matches!(&error, StorageError::Full { detail } if detail.contains("cannot create the log")),
        "{error}"
    );
    std::fs::remove_file(killed.path().join("log-0.new")).unwrap();
    while put(&engine, "another", b"v").is_err() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    holds_all(&engine);
}
