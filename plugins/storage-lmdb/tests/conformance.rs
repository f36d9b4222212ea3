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

struct Put {
    key: StorageKey,
    value: Bytes,
    done: Sender<Result<(), StorageError>>,
}

impl Update for Put {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, _: Option<Bytes>) -> Result<Change, StorageError> {
        Ok(Change::Put(self.value.clone()))
    }

    fn applied(&mut self) {}

    fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
        let _ = self.done.send(outcome);
    }
}

fn put(engine: &LmdbStorage, name: &str, value: &[u8]) -> Result<(), StorageError> {
    let (done, outcome) = channel();
    let key = StorageKey::of_table(Table::Facts, name.as_bytes());
    engine.update(vec![Box::new(Put { key, value: Bytes::copy_from_slice(value), done })]);
    outcome.recv().unwrap()
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
    // As a kill leaves it.
    let log = std::fs::read(folder.path().join("log-1")).unwrap();
    drop(engine);
    assert!(!folder.path().join("log-1").exists(), "a clean stop leaves no log");
    let damaged = log.windows(5).position(|bytes| bytes == b"first").unwrap();
    for (at, refused) in [(None, false), (Some(damaged), true)] {
        let mut log = log.clone();
        if let Some(at) = at {
            log[at] ^= 1;
        }
        std::fs::write(folder.path().join("log-1"), &log).unwrap();
        let opened = open(config(Durability::Fsync), folder.path());
        assert_eq!(opened.is_err(), refused);
        if let Err(error) = opened {
            assert!(error.to_string().contains("log-1 is damaged at byte 4096"), "{error}");
            assert!(error.to_string().contains("move the data folder away"), "{error}");
        }
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
