//! What the generator wrote, so that a read can be judged: values say which write they are.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

/// Smallest value that can say which write it is: key, sequence number, checksum.
pub(crate) const MIN_VERIFIED_BYTES: usize = 16;
const FILLER_SLACK: usize = 4_096;

/// Makes values: incompressible, and each different from the last.
pub(crate) struct Values {
    value_bytes: usize,
    filler: Vec<u8>,
}

impl Values {
    pub(crate) fn new(value_bytes: usize) -> Values {
        let mut filler = Vec::with_capacity(value_bytes + FILLER_SLACK + 8);
        let mut word = 0x9e37_79b9_7f4a_7c15_u64;
        while filler.len() < value_bytes + FILLER_SLACK {
            word = xxh3_64(&word.to_le_bytes());
            filler.extend_from_slice(&word.to_le_bytes());
        }
        Values { value_bytes, filler }
    }

    /// The value of write number `sequence` to a key.
    pub(crate) fn make(&self, key: u32, sequence: u32) -> Bytes {
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

    /// Which write of the key a value is.
    ///
    /// # Errors
    /// What is wrong with it, if it is none.
    fn sequence_of(&self, key: u32, value: &[u8]) -> Result<u32, String> {
        if value.len() != self.value_bytes {
            return Err(format!("{} bytes instead of {}", value.len(), self.value_bytes));
        }
        let word = |at: usize| u32::from_le_bytes(value[at..at + 4].try_into().expect("four bytes"));
        if value[8..16] != checksum_of(value).to_le_bytes() {
            return Err("bytes that nobody wrote (checksum)".into());
        }
        if word(0) != key {
            return Err(format!("the value of key number {}", word(0)));
        }
        Ok(word(4))
    }
}

fn checksum_of(value: &[u8]) -> u64 {
    xxh3_64(&value[16..]) ^ xxh3_64(&value[..8])
}

/// Per key, what was begun and what was acked. One write of a key is under way at a time, so that their order is known.
pub(crate) struct Ledger {
    keys: Vec<Written>,
    /// False if the keys were there before: then any earlier write may be read.
    from_the_start: bool,
}

#[derive(Default)]
struct Written {
    begun: AtomicU32,
    acked: AtomicU32,
    busy: AtomicBool,
}

/// The right to write one key.
pub(crate) struct Turn<'a> {
    written: &'a Written,
    pub(crate) sequence: u32,
}

impl Ledger {
    pub(crate) fn new(keys: u32, from_the_start: bool) -> Ledger {
        Ledger { keys: (0..keys).map(|_| Written::default()).collect(), from_the_start }
    }

    /// The next write of the key, or `None` while one is under way.
    pub(crate) fn begin(&self, key: u32) -> Option<Turn<'_>> {
        let written = &self.keys[key as usize];
        if written.busy.swap(true, Ordering::AcqRel) {
            return None;
        }
        Some(Turn { written, sequence: written.begun.fetch_add(1, Ordering::AcqRel) + 1 })
    }

    /// What a read that begins now must not be older than.
    pub(crate) fn floor(&self, key: u32) -> u32 {
        self.keys[key as usize].acked.load(Ordering::Acquire)
    }

    /// Judges a read: each value is one that was written to this key, and one of them is as new as what was acked when
    /// the read began.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn judge<'v>(
        &self,
        values: &Values,
        key: u32,
        floor: u32,
        read: impl Iterator<Item = &'v [u8]>,
    ) -> Result<(), String> {
        let begun = self.keys[key as usize].begun.load(Ordering::Acquire);
        let mut newest = 0;
        for value in read {
            let sequence = values.sequence_of(key, value)?;
            if sequence > begun && self.from_the_start {
                return Err(format!("write {sequence} of key number {key}, only {begun} were begun"));
            }
            newest = newest.max(sequence);
        }
        if newest < floor {
            return Err(format!("write {newest} of key number {key}, although write {floor} had been acked"));
        }
        Ok(())
    }
}

impl Turn<'_> {
    pub(crate) fn acked(&self) {
        self.written.acked.fetch_max(self.sequence, Ordering::AcqRel);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.written.busy.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(ledger: &Ledger, values: &Values, key: u32, floor: u32, read: &[Bytes]) -> Result<(), String> {
        ledger.judge(values, key, floor, read.iter().map(|value| value.as_ref()))
    }

    /// A read of what was acked, or of what is newer, is right; older, foreign, changed and unwritten values are not.
    #[test]
    fn judges_each_kind_of_wrong_read() {
        let (ledger, values) = (Ledger::new(2, true), Values::new(100));
        for _ in 0..2 {
            ledger.begin(1).unwrap().acked();
        }
        let floor = ledger.floor(1);
        assert_eq!(floor, 2);
        assert_eq!(judge(&ledger, &values, 1, floor, &[values.make(1, 2)]), Ok(()));
        assert_eq!(judge(&ledger, &values, 1, floor, &[values.make(1, 1), values.make(1, 2)]), Ok(()));
        assert!(
            judge(&ledger, &values, 1, floor, &[values.make(1, 1)]).unwrap_err().contains("had been acked")
        );
        assert!(
            judge(&ledger, &values, 1, floor, &[values.make(1, 3)])
                .unwrap_err()
                .contains("only 2 were begun")
        );
        assert!(
            judge(&ledger, &values, 1, floor, &[values.make(0, 2)]).unwrap_err().contains("key number 0")
        );
        let mut changed = values.make(1, 2).to_vec();
        changed[50] ^= 1;
        assert!(judge(&ledger, &values, 1, floor, &[changed.into()]).unwrap_err().contains("checksum"));
        assert!(judge(&ledger, &values, 1, floor, &[]).is_err());
    }

    /// Writes of one key take turns, and a write that failed may still be read.
    #[test]
    fn writes_of_a_key_take_turns() {
        let (ledger, values) = (Ledger::new(1, true), Values::new(16));
        let turn = ledger.begin(0).unwrap();
        assert!(ledger.begin(0).is_none());
        let failed = turn.sequence;
        drop(turn);
        assert_eq!(judge(&ledger, &values, 0, ledger.floor(0), &[values.make(0, failed)]), Ok(()));
    }
}
