//! The conformance suite of [`StorageEngine`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use crate::key::{MAX_STORAGE_KEY_BYTES, StorageKey, Table};
use crate::member::Member;
use crate::plugin::PluginContext;
use crate::storage::{Page, Range, RecordAction, StorageEngine, StorageError, Update};

/// Time after which an engine that has not finished a step counts as stuck.
const STUCK: Duration = Duration::from_secs(30);

/// Runs the whole suite. `open` opens an engine on a data folder that exists and belongs to the
/// suite. An engine that `survives_restart` must keep its records when its folder is opened again.
///
/// # Panics
/// If the engine breaks the contract, with the sentence that it breaks.
pub fn run<E: StorageEngine + ?Sized>(open: impl Fn(&PluginContext<'_>) -> Arc<E>) {
    let folders = Folders::new();
    let this = Member::new("n1", "127.0.0.1:7400", "");
    let open = |folder: &Path| open(&PluginContext { data_folder: folder, this: &this });
    let fresh = || open(&folders.next());
    returns_what_was_stored(&*fresh());
    keeps_extreme_keys_and_values(&*fresh());
    updates_see_the_ones_before(&*fresh());
    updates_are_atomic(fresh());
    reports_in_order(&*fresh());
    a_rejected_update_changes_nothing(&*fresh());
    scans_are_ordered_and_bounded(&*fresh());
    scans_see_one_moment(fresh());
    let folder = folders.next();
    survives_a_restart(&open, &folder);
    checkpoints_are_whole(&open, &folders);
}

fn key(name: &str) -> StorageKey {
    StorageKey::of_table(Table::NodeMetadata, name.as_bytes())
}

type Decide = Box<dyn FnMut(Option<Bytes>) -> Result<RecordAction, StorageError> + Send>;

/// A call that an update received from the engine.
#[derive(Clone, PartialEq, Debug)]
enum Told {
    Changed,
    Applied,
    Finished(Result<(), StorageError>),
}

struct Probe {
    key: StorageKey,
    decide: Decide,
    told: Sender<Told>,
}

impl Update for Probe {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, stored: Option<Bytes>) -> Result<RecordAction, StorageError> {
        let _ = self.told.send(Told::Changed);
        (self.decide)(stored)
    }

    fn applied(&mut self) {
        let _ = self.told.send(Told::Applied);
    }

    fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
        let _ = self.told.send(Told::Finished(outcome));
    }
}

fn probe(
    key: StorageKey,
    decide: impl FnMut(Option<Bytes>) -> Result<RecordAction, StorageError> + Send + 'static,
) -> (Box<dyn Update>, Receiver<Told>) {
    let (told, listen) = channel();
    (Box::new(Probe { key, decide: Box::new(decide), told }), listen)
}

fn outcome_of(listen: &Receiver<Told>) -> Result<(), StorageError> {
    loop {
        match listen.recv_timeout(STUCK).expect("every update is finished exactly once, and in bounded time")
        {
            Told::Finished(outcome) => return outcome,
            Told::Changed | Told::Applied => {}
        }
    }
}

fn change<E: StorageEngine + ?Sized>(
    engine: &E,
    key: StorageKey,
    change: RecordAction,
) -> Result<(), StorageError> {
    let (update, listen) = probe(key, move |_| Ok(change.clone()));
    engine.update(vec![update]);
    outcome_of(&listen)
}

fn put<E: StorageEngine + ?Sized>(engine: &E, key: StorageKey, value: &[u8]) {
    let stored = change(engine, key, RecordAction::Put(Bytes::copy_from_slice(value)));
    assert_eq!(stored, Ok(()), "an update that stores a record succeeds while there is space");
}

fn scan<E: StorageEngine + ?Sized>(engine: &E, start: &[u8], end: Option<&[u8]>) -> Page {
    let range = Range { start, after: false, end, limit: usize::MAX, max_bytes: usize::MAX };
    engine.scan(range).expect("a scan of readable records succeeds")
}

fn returns_what_was_stored<E: StorageEngine + ?Sized>(engine: &E) {
    assert_eq!(engine.get(&key("absent")), Ok(None), "a record that was never stored is absent");
    put(engine, key("a"), b"one");
    assert_eq!(engine.get(&key("a")), Ok(Some(Bytes::from("one"))), "get returns what was stored");
    put(engine, key("a"), b"two");
    assert_eq!(engine.get(&key("a")), Ok(Some(Bytes::from("two"))), "get returns the newest record");
    assert_eq!(change(engine, key("a"), RecordAction::Keep), Ok(()), "keeping a record succeeds");
    assert_eq!(engine.get(&key("a")), Ok(Some(Bytes::from("two"))), "Keep changes nothing");
    assert_eq!(change(engine, key("a"), RecordAction::Remove), Ok(()), "removing a record succeeds");
    assert_eq!(engine.get(&key("a")), Ok(None), "a removed record is absent");
    assert_eq!(change(engine, key("a"), RecordAction::Remove), Ok(()), "removing an absent record succeeds");
}

fn keeps_extreme_keys_and_values<E: StorageEngine + ?Sized>(engine: &E) {
    let mut expected = BTreeMap::new();
    for byte in [0x00, 0x01, 0x7f, 0x80, 0xff] {
        for length in [0, 1, 400, MAX_STORAGE_KEY_BYTES - 1] {
            expected.insert(vec![byte; length], vec![byte; length * 10]);
        }
    }
    expected.insert(b"large".to_vec(), vec![7; 4 * 1024 * 1024]);
    for (name, value) in &expected {
        put(engine, StorageKey::of_table(Table::NodeMetadata, name), value);
    }
    for (name, value) in &expected {
        let stored = engine.get(&StorageKey::of_table(Table::NodeMetadata, name));
        assert_eq!(
            stored.as_ref().map(|v| v.as_deref() == Some(value)),
            Ok(true),
            "keys and values are returned as they were stored"
        );
    }
}

fn updates_see_the_ones_before<E: StorageEngine + ?Sized>(engine: &E) {
    let mut listening = Vec::new();
    let mut batch = Vec::new();
    for number in 0..100u32 {
        let (update, listen) = probe(key("counter"), move |stored| {
            let before = stored.map_or(0, |bytes| bytes.len() as u32);
            if before != number {
                return Err(StorageError::Rejected { detail: format!("update {number} saw {before}") });
            }
            Ok(RecordAction::Put(vec![0; number as usize + 1].into()))
        });
        batch.push(update);
        listening.push(listen);
    }
    engine.update(batch);
    for listen in &listening {
        assert_eq!(outcome_of(listen), Ok(()), "updates of one record submitted together run in that order");
    }
    let stored = engine.get(&key("counter")).expect("readable").map(|bytes| bytes.len());
    assert_eq!(stored, Some(100), "an update sees what the one before it stored");
}

fn updates_are_atomic<E: StorageEngine + ?Sized>(engine: Arc<E>) {
    const WRITERS: u64 = 4;
    const EACH: u64 = 250;
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                for _ in 0..EACH {
                    let (update, listen) = probe(key("sum"), |stored| {
                        let before = stored.map_or(0, |bytes| bytes.len());
                        std::thread::yield_now();
                        Ok(RecordAction::Put(vec![0; before + 1].into()))
                    });
                    engine.update(vec![update]);
                    assert_eq!(outcome_of(&listen), Ok(()));
                }
            });
        }
    });
    let stored = engine.get(&key("sum")).expect("readable").map(|bytes| bytes.len() as u64);
    assert_eq!(
        stored,
        Some(WRITERS * EACH),
        "no other update of a record runs between an update's read and its write"
    );
}

fn reports_in_order<E: StorageEngine + ?Sized>(engine: &E) {
    let (update, listen) = probe(key("reported"), |_| Ok(RecordAction::Put("v".into())));
    engine.update(vec![update]);
    let mut told = Vec::new();
    while let Ok(event) = listen.recv_timeout(STUCK) {
        told.push(event);
    }
    let expected = [Told::Changed, Told::Applied, Told::Finished(Ok(()))];
    assert_eq!(told, expected, "an update is changed, applied and finished, each once and in this order");
    assert_eq!(engine.get(&key("reported")), Ok(Some("v".into())), "a finished change is visible");
}

fn a_rejected_update_changes_nothing<E: StorageEngine + ?Sized>(engine: &E) {
    put(engine, key("kept"), b"before");
    let refusal = StorageError::Rejected { detail: "no".into() };
    let error = refusal.clone();
    let (rejecting, listen) = probe(key("kept"), move |_| Err(error.clone()));
    let (other, other_listen) = probe(key("beside"), |_| Ok(RecordAction::Put("x".into())));
    engine.update(vec![rejecting, other]);
    let mut told = Vec::new();
    while let Ok(event) = listen.recv_timeout(STUCK) {
        told.push(event);
    }
    assert_eq!(
        told,
        [Told::Changed, Told::Finished(Err(refusal))],
        "an update that rejects its record is finished with its own error, and not applied"
    );
    assert_eq!(outcome_of(&other_listen), Ok(()), "a rejected update does not fail the others of its batch");
    assert_eq!(
        engine.get(&key("kept")),
        Ok(Some("before".into())),
        "a rejected update leaves the record alone"
    );
}

fn scans_are_ordered_and_bounded<E: StorageEngine + ?Sized>(engine: &E) {
    let mut expected = BTreeMap::new();
    for number in 0..500u32 {
        let name = key(&format!("{:03}", number * 7 % 500));
        expected.insert(name.as_bytes().to_vec(), number.to_string().into_bytes());
        put(engine, name, number.to_string().as_bytes());
    }
    for number in (0..500).step_by(5) {
        let name = key(&format!("{number:03}"));
        expected.remove(name.as_bytes());
        assert_eq!(change(engine, name, RecordAction::Remove), Ok(()));
    }
    let all: Vec<(Vec<u8>, Vec<u8>)> = expected.into_iter().collect();
    let as_vec = |page: &Page| -> Vec<(Vec<u8>, Vec<u8>)> {
        page.records.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
    };
    let whole = scan(engine, b"", None);
    assert_eq!(
        as_vec(&whole),
        all,
        "a scan shows every record once, in key order, and none that was removed"
    );
    assert!(!whole.more, "a scan that reached the end says so");

    let (start, end) = (key("101"), key("201"));
    let part = scan(engine, start.as_bytes(), Some(end.as_bytes()));
    let inside: Vec<_> = all
        .iter()
        .filter(|(k, _)| k.as_slice() >= start.as_bytes() && k.as_slice() < end.as_bytes())
        .cloned()
        .collect();
    assert_eq!(as_vec(&part), inside, "a scan includes its start and leaves out its end");
    let none = scan(engine, end.as_bytes(), Some(start.as_bytes()));
    assert!(none.records.is_empty() && !none.more, "a range that ends before it begins is empty");

    let mut paged = Vec::new();
    let (mut from, mut after) = (Vec::new(), false);
    loop {
        let range = Range { start: &from, after, end: None, limit: 7, max_bytes: usize::MAX };
        let page = engine.scan(range).expect("readable");
        assert!(page.records.len() <= 7, "a page has at most `limit` records");
        paged.extend(as_vec(&page));
        match page.records.last() {
            Some((last, _)) if page.more => (from, after) = (last.to_vec(), true),
            _ => break,
        }
    }
    assert_eq!(paged, all, "pages that go on after the last key show every record once");
    let range = Range { start: b"", after: false, end: None, limit: usize::MAX, max_bytes: 1 };
    let tiny = engine.scan(range).expect("readable");
    assert_eq!(tiny.records.len(), 1, "a page stops at `max_bytes`, but has at least one record");
    assert!(tiny.more, "a page that a bound stopped says that there is more");
}

/// Checks that a scan shows one moment. Two records are changed one after the other, so a scan may
/// show the first at most one change ahead of the second.
fn scans_see_one_moment<E: StorageEngine + ?Sized>(engine: Arc<E>) {
    let pair = |number: u32| -> Vec<Box<dyn Update>> {
        let value = Bytes::from(number.to_string());
        let of = |name: &str| {
            let value = value.clone();
            probe(key(name), move |_| Ok(RecordAction::Put(value.clone())))
        };
        vec![of("1st").0, of("2nd").0]
    };
    let done = Mutex::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=300 {
                engine.update(pair(number));
                put(&*engine, key("unrelated"), b"x");
            }
            *done.lock().expect("not poisoned") = true;
        });
        while !*done.lock().expect("not poisoned") {
            let page = scan(&*engine, b"", None);
            let keys: Vec<_> = page.records.iter().map(|(key, _)| key.clone()).collect();
            let mut sorted = keys.clone();
            sorted.sort();
            sorted.dedup();
            assert_eq!(keys, sorted, "a scan during writes shows no record twice");
            let number = |name: &str| -> u32 {
                let found = page.records.iter().find(|(stored, _)| stored[..] == *key(name).as_bytes());
                found.map_or(0, |(_, value)| {
                    std::str::from_utf8(value).expect("text").parse().expect("a number")
                })
            };
            let (first, second) = (number("1st"), number("2nd"));
            assert!(
                first == second || first == second + 1,
                "a scan shows one moment: the values {first} and {second} were never stored together"
            );
        }
    });
    let page = scan(&*engine, b"", None);
    assert_eq!(page.records.len(), 3, "scans during writes lose nothing");
}

fn survives_a_restart<E: StorageEngine + ?Sized>(open: &impl Fn(&Path) -> Arc<E>, folder: &Path) {
    let engine = open(folder);
    if !engine.capability().survives_restart {
        return;
    }
    for number in 0..200 {
        put(&*engine, key(&format!("{number}")), format!("value {number}").as_bytes());
    }
    let (last, _) = probe(key("submitted last"), |_| Ok(RecordAction::Put("v".into())));
    engine.update(vec![last]);
    drop(engine);
    let engine = open(folder);
    for number in 0..200 {
        let stored = engine.get(&key(&format!("{number}")));
        assert_eq!(
            stored,
            Ok(Some(format!("value {number}").into())),
            "a finished change is kept over a restart"
        );
    }
    assert_eq!(
        engine.get(&key("submitted last")),
        Ok(Some("v".into())),
        "dropping the engine finishes what was submitted"
    );
}

fn checkpoints_are_whole<E: StorageEngine + ?Sized>(open: &impl Fn(&Path) -> Arc<E>, folders: &Folders) {
    let engine = open(&folders.next());
    if !engine.capability().survives_restart {
        let copied = engine.checkpoint(&folders.next());
        assert!(copied.is_err(), "an engine that keeps nothing refuses a checkpoint");
        return;
    }
    for number in 0..200 {
        put(&*engine, key(&format!("{number}")), b"before");
    }
    let copy = folders.next();
    assert_eq!(engine.checkpoint(&copy), Ok(()), "a checkpoint into an empty folder succeeds");
    put(&*engine, key("0"), b"after");
    assert!(engine.checkpoint(&copy).is_err(), "a checkpoint into a folder that is in use is refused");
    let copied = open(&copy);
    for number in 0..200 {
        let stored = copied.get(&key(&format!("{number}")));
        assert_eq!(stored, Ok(Some("before".into())), "a checkpoint holds what was durable when it was made");
    }
}

/// Temporary folders, deleted at the end.
struct Folders {
    root: PathBuf,
    next: AtomicU64,
}

static RUNS: AtomicU64 = AtomicU64::new(0);

impl Folders {
    fn new() -> Folders {
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("quorate-conformance-{}-{run}", std::process::id()));
        std::fs::create_dir_all(&root).expect("a temporary folder can be made");
        Folders { root, next: AtomicU64::new(0) }
    }

    fn next(&self) -> PathBuf {
        let folder = self.root.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir_all(&folder).expect("a temporary folder can be made");
        folder
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}
