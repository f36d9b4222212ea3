use std::collections::BTreeMap;

use proptest::prelude::*;
use quorate_core::key::{StorageKey, Table};

use super::*;
use crate::arena::{CHUNK_BYTES, LARGEST_IN_CHUNK};

/// Update with a fixed action, which records the stored value that it was given.
struct FixedUpdate {
    key: StorageKey,
    change: RecordAction,
    stored: Option<Bytes>,
}

impl Update for FixedUpdate {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, stored: Option<Bytes>) -> Result<RecordAction, StorageError> {
        self.stored = stored;
        Ok(self.change.clone())
    }

    fn applied(&mut self) {}

    fn finished(self: Box<Self>, _: Result<(), StorageError>) {}
}

fn key(name: &[u8]) -> StorageKey {
    StorageKey::from_peer(name).unwrap_or_else(|| panic!("{name:?} is no storage key"))
}

/// Returns the storage key of a number. The keys lie in three partitions, so that blocks are split
/// and merged.
fn named(number: u32) -> StorageKey {
    let mut name = vec![Table::Objects as u8, 0, (number % 3) as u8];
    name.extend_from_slice(format!("b\0{:05}", number / 3).as_bytes());
    key(&name)
}

/// Applies the action to the key. Returns the value that was stored before.
fn apply(records: &mut Records, key: &StorageKey, change: RecordAction) -> Option<Bytes> {
    let mut update = FixedUpdate { key: key.clone(), change, stored: None };
    records.update(&mut update, None).unwrap();
    update.stored
}

/// Runs the steps on the records and on a `BTreeMap`, and compares all reads and scans. After each
/// step, checks that the total size of the holes is within its limit.
fn check_like_a_map(steps: Vec<(u32, Option<usize>)>) {
    let (mut records, mut model) = (Records::default(), BTreeMap::new());
    for (at, (number, len)) in steps.into_iter().enumerate() {
        let key = named(number);
        let value = len.map(|len| Bytes::from(vec![at as u8; len]));
        let change = value.clone().map_or(RecordAction::Remove, RecordAction::Put);
        let stored = apply(&mut records, &key, change);
        let before = match value {
            Some(value) => model.insert(Bytes::copy_from_slice(key.as_bytes()), value),
            None => model.remove(key.as_bytes()),
        };
        assert_eq!(stored, before);
        assert_eq!(records.get(key.as_bytes()), model.get(key.as_bytes()).cloned());
        let (used, live) = records.arena.extent();
        assert!(used - live <= used / 3 + 5 * CHUNK_BYTES, "{used} bytes for {live}");
    }
    assert_eq!(
        records.bytes as usize,
        model.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>()
    );
    let all = Range { start: b"", after: false, end: None, limit: usize::MAX, max_bytes: usize::MAX };
    let expected: Vec<(Bytes, Bytes)> =
        model.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    assert_eq!(records.scan(&all).records, expected);
    // Pages that begin at some of the keys.
    let end = [Table::Objects as u8, 0, 2];
    for (start, _) in expected.iter().step_by(1 + expected.len() / 7) {
        for after in [false, true] {
            let range = Range { start, after, end: Some(&end), limit: 300, max_bytes: usize::MAX };
            let page = records.scan(&range);
            let within = |key: &Bytes| if after { key > start } else { key >= start };
            let wanted: Vec<&(Bytes, Bytes)> =
                expected.iter().filter(|(key, _)| within(key) && key[..] < end[..]).collect();
            assert!(page.records.iter().eq(wanted.iter().copied().take(300)), "{start:?} {after}");
            assert_eq!(page.more, wanted.len() > 300);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn records_are_like_a_map(
        steps in prop::collection::vec(
            (0u32..3_000, prop::option::weighted(0.7, prop_oneof![8 => 0usize..300, 1 => 900usize..1_100])),
            0..6_000,
        ),
    ) {
        check_like_a_map(steps);
    }
}

/// The memory of holes is freed, both when records are replaced many times by larger and smaller
/// values, and when nine of ten records are removed.
#[test]
fn memory_of_holes_is_freed() {
    let mut records = Records::default();
    let value = |len: usize| RecordAction::Put(Bytes::from(vec![7; len]));
    for round in 0..6 {
        for number in 0..20_000 {
            apply(&mut records, &named(number), value(100 * (1 + round % 3)));
        }
        let (used, live) = records.arena.extent();
        assert!(live > 20_000 * 100 && used <= live * 3 / 2 + 7 * CHUNK_BYTES, "{used} bytes for {live}");
    }
    for number in (0..20_000).filter(|number| number % 10 != 0) {
        apply(&mut records, &named(number), RecordAction::Remove);
    }
    let (used, live) = records.arena.extent();
    assert!(used <= live * 3 / 2 + 7 * CHUNK_BYTES, "{used} bytes for {live}");
    for number in 0..20_000 {
        let expected = (number % 10 == 0).then(|| Bytes::from(vec![7; 300]));
        assert_eq!(records.get(named(number).as_bytes()), expected);
    }
    // Removes the remaining records too. Then stores values with and without their own allocation.
    (0..20_000)
        .step_by(10)
        .for_each(|number| drop(apply(&mut records, &named(number), RecordAction::Remove)));
    assert_eq!((records.arena.extent().1, records.bytes, records.parts.len()), (0, 0, 0));
    for len in [LARGEST_IN_CHUNK, LARGEST_IN_CHUNK + 1, LARGEST_IN_CHUNK, 5_000, 6_000, 0] {
        apply(&mut records, &named(1), value(len));
        assert_eq!(records.get(named(1).as_bytes()).map(|value| value.len()), Some(len));
    }
}

/// Keys that are smaller than all others are found after the first block was removed.
#[test]
fn keys_before_all_blocks_are_found() {
    let mut records = Records::default();
    let names = |range: std::ops::Range<u32>| range.map(|number| named(3 * number));
    for key in names(1_000..2_000) {
        apply(&mut records, &key, RecordAction::Put(Bytes::from_static(b"first")));
    }
    names(1_000..1_700).for_each(|key| drop(apply(&mut records, &key, RecordAction::Remove)));
    let mut keys: Vec<StorageKey> = names(0..1_500).collect();
    keys.reverse();
    for key in &keys {
        assert_eq!(apply(&mut records, key, RecordAction::Put(Bytes::from_static(b"second"))), None);
    }
    for key in &keys {
        assert_eq!(apply(&mut records, key, RecordAction::Keep).as_deref(), Some(&b"second"[..]));
    }
    let all = Range { start: b"", after: false, end: None, limit: usize::MAX, max_bytes: usize::MAX };
    let found = records.scan(&all).records;
    let expected = names(0..1_500).chain(names(1_700..2_000));
    assert!(found.iter().map(|(key, _)| &key[..]).eq(expected.map(|key| key.as_bytes().to_vec())));
}

/// Prefixes have the order of their keys, even if keys are shorter than a prefix.
#[test]
fn prefixes_have_the_order_of_keys() {
    let mut keys: Vec<&[u8]> =
        vec![b"d", b"d\0", b"d\0\0", b"d\0\0\0", b"d\0\0a", b"d\0\x01", b"d\x01", b"e", b"\xff\xff\xff\xff"];
    keys.sort();
    let in_order = |pair: &[&[u8]]| KeyPrefix::of(pair[0]) <= KeyPrefix::of(pair[1]);
    assert!(keys.windows(2).all(in_order), "the prefixes of sorted keys are not sorted");
}
