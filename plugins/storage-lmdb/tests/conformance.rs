//! Contract tests of the LMDB engine, and tests of its lock, formats, recovery and free space.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use bytes::Bytes;
use quorate_core::key::Table;
use quorate_core::plugin::{OpenError, PluginContext};
use quorate_core::storage::{RecordAction, StorageEngine, StorageError, Update};
use quorate_core::{Member, StorageKey};
use quorate_storage_lmdb::{Config, Durability, LmdbStorage};

/// Opens the engine as node "n1" would.
fn open(config: Config, folder: &Path) -> Result<LmdbStorage, OpenError> {
    let this = Member::new("n1", "127.0.0.1:7400", "");
    quorate_storage_lmdb::open(config, &PluginContext { data_folder: folder, this: &this })
}

fn config(durability: Durability) -> Config {
    Config { durability, interval_ms: 5, map_size_mib: 256, reserve_mib: 1 }
}

#[test]
fn fsync_keeps_the_contract() {
    quorate_core::conformance::storage::run(|context| {
        Arc::new(quorate_storage_lmdb::open(config(Durability::Fsync), context).unwrap())
    });
}

#[test]
fn interval_keeps_the_contract() {
    quorate_core::conformance::storage::run(|context| {
        Arc::new(quorate_storage_lmdb::open(config(Durability::Interval), context).unwrap())
    });
}

/// Update that makes a given change, and reports its outcome.
struct Set {
    key: StorageKey,
    change: RecordAction,
    done: Sender<Result<(), StorageError>>,
}

impl Update for Set {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, _: Option<Bytes>) -> Result<RecordAction, StorageError> {
        Ok(self.change.clone())
    }

    fn applied(&mut self) {}

    fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
        let _ = self.done.send(outcome);
    }
}

fn change(engine: &LmdbStorage, name: &str, change: RecordAction) -> Result<(), StorageError> {
    let (done, outcome) = channel();
    let key = StorageKey::of_table(Table::NodeMetadata, name.as_bytes());
    engine.update(vec![Box::new(Set { key, change, done })]);
    outcome.recv().unwrap()
}

fn put(engine: &LmdbStorage, name: &str, value: &[u8]) -> Result<(), StorageError> {
    change(engine, name, RecordAction::Put(Bytes::copy_from_slice(value)))
}

fn get(engine: &LmdbStorage, name: &str) -> Option<Bytes> {
    engine.get(&StorageKey::of_table(Table::NodeMetadata, name.as_bytes())).unwrap()
}

fn error_of(folder: &Path) -> String {
    open(config(Durability::Fsync), folder).err().expect("refused").to_string()
}

/// A folder cannot be opened twice, as LMDB requires. The first engine goes on.
#[test]
fn a_folder_is_opened_once() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(config(Durability::Fsync), folder.path()).unwrap();
    assert!(error_of(folder.path()).contains("in use by another process"));
    put(&first, "k", b"v").unwrap();
    drop(first);
    open(config(Durability::Fsync), folder.path()).unwrap();
}

/// A folder with a newer or an unknown format mark is refused. The error names the mark.
#[test]
fn a_newer_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("FORMAT"), "quorate-lmdb 99\n").unwrap();
    assert!(error_of(folder.path()).contains("format 99"));
    std::fs::write(folder.path().join("FORMAT"), "something else").unwrap();
    assert!(error_of(folder.path()).contains("has unexpected content"));
}

/// A folder of format 1, without a log, is opened and marked as format 2. Builds that do not know
/// the log refuse it afterwards.
#[test]
fn an_older_format_is_upgraded() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(config(Durability::Fsync), folder.path()).unwrap();
    put(&engine, "k", b"v").unwrap();
    drop(engine);
    std::fs::write(folder.path().join("FORMAT"), "quorate-lmdb 1\n").unwrap();
    let engine = open(config(Durability::Fsync), folder.path()).unwrap();
    let key = StorageKey::of_table(Table::NodeMetadata, b"k");
    assert_eq!(engine.get(&key).unwrap().unwrap(), "v");
    assert_eq!(std::fs::read_to_string(folder.path().join("FORMAT")).unwrap(), "quorate-lmdb 2\n");
}

/// A folder with a damaged acknowledged batch is refused. The error names the file, and the remedy.
#[test]
fn a_damaged_log_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let without_checkpoints = Config { interval_ms: 60_000, ..config(Durability::Fsync) };
    let engine = open(without_checkpoints, folder.path()).unwrap();
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

/// Copies the files that a process leaves if it is killed before its first checkpoint: no tree.
fn copy_as_killed(folder: &Path, to: &Path) {
    for file in ["log-0", "log-1", "FORMAT"] {
        std::fs::copy(folder.join(file), to.join(file)).unwrap();
    }
}

/// A full map refuses writes, and serves reads. The error names the setting. With a larger map,
/// writes succeed again.
#[test]
fn a_full_map_loses_nothing() {
    for durability in [Durability::Fsync, Durability::Interval] {
        let folder = tempfile::tempdir().unwrap();
        let small = Config { map_size_mib: 4, reserve_mib: 1, ..config(durability) };
        let engine = open(small, folder.path()).unwrap();
        let (mut stored, mut refused) = (0, 0);
        // Buffered changes count with an upper bound of their space, so a few puts are refused
        // although the map has space.
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
                let key = StorageKey::of_table(Table::NodeMetadata, format!("{number:04}").as_bytes());
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

/// The map has space for all acknowledged records, also if they are small and scattered over full
/// pages, where each can split a page. On the full map, changes that do not make the tree larger
/// are accepted, and removed records free space.
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
        // Each step is large enough to reach another page.
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
        put(&engine, &name(5, ""), &[3; 100]).expect("the tree does not grow");
        drop(engine);
        let engine = open(small, folder.path()).unwrap();
        for stored in &stored {
            assert_eq!(get(&engine, stored).unwrap(), vec![2; 100]);
        }
        assert_eq!(get(&engine, &name(5, "")).unwrap(), vec![3; 100]);
        for first in (0..many).step_by(1_000) {
            let removed = (first..first + 1_000).map(|number| (name(number, ""), RecordAction::Remove));
            for outcome in change_all(&engine, removed) {
                outcome.expect("a removed record frees space");
            }
        }
        // The copy waits for a checkpoint, so the tree has all changes.
        engine.checkpoint(&folder.path().join("copy")).unwrap();
        put(&engine, "another", &[7; 1_000]).expect("there is free space again");
    }
}

fn put_all(
    engine: &LmdbStorage,
    records: impl IntoIterator<Item = (String, Vec<u8>)>,
) -> Vec<Result<(), StorageError>> {
    change_all(engine, records.into_iter().map(|(name, value)| (name, RecordAction::Put(value.into()))))
}

fn change_all(
    engine: &LmdbStorage,
    changes: impl IntoIterator<Item = (String, RecordAction)>,
) -> Vec<Result<(), StorageError>> {
    let (batch, outcomes): (Vec<_>, Vec<_>) = changes
        .into_iter()
        .map(|(name, change)| {
            let (done, outcome) = channel();
            let key = StorageKey::of_table(Table::NodeMetadata, name.as_bytes());
            (Box::new(Set { key, change, done }) as Box<dyn Update>, outcome)
        })
        .unzip();
    engine.update(batch);
    outcomes.into_iter().map(|outcome| outcome.recv().unwrap()).collect()
}

/// A store opens although the map is too small for the log's changes, or the disk too full for a
/// new log. It serves reads, refuses writes with the reason, and accepts them once there is space.
#[test]
fn a_store_without_space_opens() {
    let folder = tempfile::tempdir().unwrap();
    let without_checkpoints = Config { map_size_mib: 64, interval_ms: 60_000, ..config(Durability::Fsync) };
    let engine = open(without_checkpoints.clone(), folder.path()).unwrap();
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
    // No new log can be created: /dev/full is always full.
    std::os::unix::fs::symlink("/dev/full", killed.path().join("log-0.new")).unwrap();
    let engine = open(Config { interval_ms: 5, ..without_checkpoints }, killed.path()).unwrap();
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
