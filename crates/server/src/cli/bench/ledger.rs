//! The ledger of the generator's writes, by which reads are verified.
//!
//! Each value contains its key and the number of its write.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

/// Size of the smallest value that can be verified: key (4 bytes), sequence number (4) and checksum
/// (8).
pub(super) const MIN_VERIFIED_BYTES: usize = 16;
/// Number of bytes by which the filler is longer than a value. Each value is a copy from another
/// offset in the filler, so that values differ.
const FILLER_SLACK: usize = 4_096;

/// Generator of values that cannot be compressed and that differ from write to write.
pub(super) struct Values {
    value_bytes: usize,
    filler: Vec<u8>,
}

impl Values {
    pub(super) fn new(value_bytes: usize) -> Values {
        let mut filler = Vec::with_capacity(value_bytes + FILLER_SLACK + 8);
        let mut word = 0x9e37_79b9_7f4a_7c15_u64;
        while filler.len() < value_bytes + FILLER_SLACK {
            word = xxh3_64(&word.to_le_bytes());
            filler.extend_from_slice(&word.to_le_bytes());
        }
        Values { value_bytes, filler }
    }

    /// Makes the value of write number `sequence` to a key.
    pub(super) fn make(&self, key: u32, sequence: u32) -> Bytes {
        let at = (key.wrapping_mul(31).wrapping_add(sequence)) as usize % FILLER_SLACK;
        let mut value = self.filler[at..at + self.value_bytes].to_vec();
        if self.value_bytes >= MIN_VERIFIED_BYTES {
            value[..4].copy_from_slice(&key.to_le_bytes());
            value[4..8].copy_from_slice(&sequence.to_le_bytes());
            let checksum = checksum_of(&value);
            value[8..16].copy_from_slice(&checksum.to_le_bytes());
        }
        Bytes::from(value)
    }

    /// Returns the sequence number that a value contains: the number of the write to `key` that
    /// wrote it.
    ///
    /// # Errors
    /// If the value was not written by a write to `key`.
    fn sequence_of(&self, key: u32, value: &[u8]) -> Result<u32, String> {
        if value.len() != self.value_bytes {
            return Err(format!("{} bytes instead of {}", value.len(), self.value_bytes));
        }
        let word = |at: usize| u32::from_le_bytes(value[at..at + 4].try_into().expect("four bytes"));
        if value[8..16] != checksum_of(value).to_le_bytes() {
            return Err("bytes that no run of this command wrote (wrong checksum)".into());
        }
        if word(0) != key {
            return Err(format!("the value of another key, key number {}", word(0)));
        }
        Ok(word(4))
    }
}

fn checksum_of(value: &[u8]) -> u64 {
    xxh3_64(&value[16..]) ^ xxh3_64(&value[..8])
}

/// Record of the writes that were begun and acked, by key. Only one write of a key is under way at
/// a time, so that the order of a key's writes is known.
pub(super) struct Ledger {
    keys: Vec<KeyWrites>,
    earlier_writes: EarlierWrites,
}

/// Knowledge about the values that were written before this run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum EarlierWrites {
    /// This run writes every key before it reads any. No read may return a value from before the
    /// run.
    Overwritten,
    /// An earlier run wrote the keys: a read may return any of its writes.
    Unknown,
}

/// Sequence numbers of one key's newest writes. `busy` is true while a write of the key is under
/// way.
#[derive(Default)]
struct KeyWrites {
    last_begun: AtomicU32,
    last_acked: AtomicU32,
    busy: AtomicBool,
}

/// The right to write one key. Until this value is dropped, no other task may write the key.
pub(super) struct WriteTurn<'a> {
    writes: &'a KeyWrites,
    pub(super) sequence: u32,
}

impl Ledger {
    pub(super) fn new(keys: u32, earlier_writes: EarlierWrites) -> Ledger {
        Ledger { keys: (0..keys).map(|_| KeyWrites::default()).collect(), earlier_writes }
    }

    /// Begins the next write of the key. Returns `None` while another write of the key is under
    /// way.
    pub(super) fn begin(&self, key: u32) -> Option<WriteTurn<'_>> {
        let writes = &self.keys[key as usize];
        if writes.busy.swap(true, Ordering::AcqRel) {
            return None;
        }
        Some(WriteTurn { writes, sequence: writes.last_begun.fetch_add(1, Ordering::AcqRel) + 1 })
    }

    /// Returns the number of the last acked write of the key, 0 if there is none. A read that
    /// begins now must not return only older writes.
    pub(super) fn last_acked(&self, key: u32) -> u32 {
        self.keys[key as usize].last_acked.load(Ordering::Acquire)
    }

    /// Verifies the values that a read returned. Each must have been written to this key. At least
    /// one must come from write `oldest_allowed` or a later write. `oldest_allowed` is the last
    /// write that was acked before the read began.
    ///
    /// # Errors
    /// Description of the first error.
    pub(super) fn verify<'v>(
        &self,
        values: &Values,
        key: u32,
        oldest_allowed: u32,
        read: impl Iterator<Item = &'v [u8]>,
    ) -> Result<(), String> {
        let begun = self.keys[key as usize].last_begun.load(Ordering::Acquire);
        let mut newest = 0;
        for value in read {
            let sequence = values.sequence_of(key, value)?;
            if sequence > begun && self.earlier_writes == EarlierWrites::Overwritten {
                return Err(format!(
                    "the value of write {sequence} of key number {key}, but only {begun} writes were begun"
                ));
            }
            newest = newest.max(sequence);
        }
        if newest < oldest_allowed {
            return Err(format!(
                "the value of write {newest} of key number {key}, although write {oldest_allowed} had been acked"
            ));
        }
        Ok(())
    }
}

impl WriteTurn<'_> {
    /// Records that the write was acked.
    pub(super) fn acked(&self) {
        self.writes.last_acked.fetch_max(self.sequence, Ordering::AcqRel);
    }
}

impl Drop for WriteTurn<'_> {
    fn drop(&mut self) {
        self.writes.busy.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{EarlierWrites, Ledger, Values};

    fn verify(
        ledger: &Ledger,
        values: &Values,
        key: u32,
        oldest_allowed: u32,
        read: &[Bytes],
    ) -> Result<(), String> {
        ledger.verify(values, key, oldest_allowed, read.iter().map(|value| value.as_ref()))
    }

    /// A read must return the last acked value or a newer one, and may return older values beside
    /// it. It must return no value of another key, no changed value and no value that was never
    /// written.
    #[test]
    fn each_kind_of_wrong_read_is_found() {
        let (ledger, values) = (Ledger::new(2, EarlierWrites::Overwritten), Values::new(100));
        for _ in 0..2 {
            ledger.begin(1).unwrap().acked();
        }
        let acked = ledger.last_acked(1);
        assert_eq!(acked, 2);
        assert_eq!(verify(&ledger, &values, 1, acked, &[values.make(1, 2)]), Ok(()));
        assert_eq!(verify(&ledger, &values, 1, acked, &[values.make(1, 1), values.make(1, 2)]), Ok(()));
        assert!(
            verify(&ledger, &values, 1, acked, &[values.make(1, 1)]).unwrap_err().contains("had been acked")
        );
        assert!(
            verify(&ledger, &values, 1, acked, &[values.make(1, 3)])
                .unwrap_err()
                .contains("only 2 writes were begun")
        );
        assert!(
            verify(&ledger, &values, 1, acked, &[values.make(0, 2)]).unwrap_err().contains("key number 0")
        );
        let mut changed = values.make(1, 2).to_vec();
        changed[50] ^= 1;
        assert!(verify(&ledger, &values, 1, acked, &[changed.into()]).unwrap_err().contains("checksum"));
        assert!(verify(&ledger, &values, 1, acked, &[]).is_err());
    }

    /// Writes of one key take turns, and a write that failed may still be read.
    #[test]
    fn writes_of_a_key_take_turns() {
        let (ledger, values) = (Ledger::new(1, EarlierWrites::Overwritten), Values::new(16));
        let turn = ledger.begin(0).unwrap();
        assert!(ledger.begin(0).is_none());
        let failed = turn.sequence;
        drop(turn);
        assert_eq!(verify(&ledger, &values, 0, ledger.last_acked(0), &[values.make(0, failed)]), Ok(()));
    }
}
