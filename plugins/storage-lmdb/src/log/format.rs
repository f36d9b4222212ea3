//! What the log's files consist of: a head, and batches.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::map::LogMark;
use crate::newer::Overlay;

/// Begins a file; seed, generation, what came before, and the checksum of all of it follow.
const FILE_MARK: &[u8; 8] = b"qlmdblg2";
pub(crate) const HEAD_BYTES: usize = 48;
/// Where the first batch begins: on a page of its own.
pub(crate) const FIRST_BATCH: usize = 4096;
/// Begins a batch, after the checksum of its head.
const BATCH_MARK: &[u8; 4] = b"qbat";
const MARK_AT: usize = 8;
/// Checksum of what follows here, mark, number in the generation, length and checksum of the body.
pub(crate) const BATCH_HEAD_BYTES: usize = 8 + 4 + 8 + 8 + 8;
/// Stands for the length of the value of a record that is removed.
const REMOVED: u32 = u32::MAX;

/// Begins a file.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    /// Of the checksums of this generation. Nobody can guess it.
    pub(crate) seed: u64,
    /// 0: the file holds nothing yet.
    pub(crate) generation: u64,
    /// How far the log reached when this generation began: what the other file holds, or the tree.
    pub(crate) before: LogMark,
}

impl Head {
    pub(crate) fn encode(self) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        head[..8].copy_from_slice(FILE_MARK);
        head[8..16].copy_from_slice(&self.seed.to_le_bytes());
        head[16..24].copy_from_slice(&self.generation.to_le_bytes());
        head[24..32].copy_from_slice(&self.before.generation.to_le_bytes());
        head[32..40].copy_from_slice(&self.before.batches.to_le_bytes());
        let sum = xxh3_64_with_seed(&head[..40], self.seed);
        head[40..].copy_from_slice(&sum.to_le_bytes());
        head
    }

    pub(crate) fn of(file: &[u8]) -> Option<Head> {
        let stored = file.get(..HEAD_BYTES)?;
        let number = |at| u64_at(stored, at);
        let before = LogMark { generation: number(24), batches: number(32) };
        let found = Head { seed: number(8), generation: number(16), before };
        (stored == found.encode()).then_some(found)
    }
}

/// The head of a batch, as it was written.
struct BatchHead {
    number: u64,
    body_bytes: usize,
    body_sum: u64,
}

impl BatchHead {
    /// Only the head is looked at: whoever stores what looks like many heads costs no more than that.
    fn at(file: &[u8], position: usize, seed: u64) -> Option<BatchHead> {
        let head = file.get(position..)?.get(..BATCH_HEAD_BYTES)?;
        let is_one = &head[MARK_AT..MARK_AT + 4] == BATCH_MARK
            && u64_at(head, 0) == xxh3_64_with_seed(&head[MARK_AT..], seed);
        let body_bytes = usize::try_from(u64_at(head, 20)).ok()?;
        is_one.then(|| BatchHead { number: u64_at(head, 12), body_bytes, body_sum: u64_at(head, 28) })
    }
}

/// A batch that is whole.
pub(crate) struct Batch {
    pub(crate) body: Bytes,
    /// Where the next one begins.
    pub(crate) end: usize,
}

impl Batch {
    /// The batch of that number, if it is at `position` and whole.
    pub(crate) fn at(file: &Bytes, position: usize, seed: u64, number: u64) -> Option<Batch> {
        let head = BatchHead::at(file, position, seed).filter(|head| head.number == number)?;
        let begins = position + BATCH_HEAD_BYTES;
        let end = begins.checked_add(head.body_bytes).filter(|end| *end <= file.len())?;
        let body = file.slice(begins..end);
        (head.body_sum == xxh3_64_with_seed(&body, seed)).then_some(Batch { body, end })
    }
}

/// The highest number of a batch that was begun behind `position`.
pub(crate) fn last_begun(file: &[u8], position: usize, seed: u64) -> Option<u64> {
    let rest = file.get(position..)?;
    let marks = rest.windows(BATCH_MARK.len()).enumerate().filter(|(_, window)| window == BATCH_MARK);
    let heads = marks
        .filter_map(|(at, _)| BatchHead::at(file, (position + at).checked_sub(MARK_AT)?, seed))
        .map(|head| head.number);
    heads.max()
}

/// Puts a batch into `buffer`.
pub(crate) fn encode(buffer: &mut Vec<u8>, seed: u64, number: u64, changes: &Overlay) {
    buffer.clear();
    buffer.resize(BATCH_HEAD_BYTES, 0);
    for (key, value) in changes {
        buffer.extend_from_slice(&(key.len() as u32).to_le_bytes());
        buffer.extend_from_slice(&value.as_ref().map_or(REMOVED, |value| value.len() as u32).to_le_bytes());
        buffer.extend_from_slice(key);
        buffer.extend_from_slice(value.as_deref().unwrap_or_default());
    }
    let (head, body) = buffer.split_at_mut(BATCH_HEAD_BYTES);
    head[MARK_AT..12].copy_from_slice(BATCH_MARK);
    head[12..20].copy_from_slice(&number.to_le_bytes());
    head[20..28].copy_from_slice(&(body.len() as u64).to_le_bytes());
    head[28..].copy_from_slice(&xxh3_64_with_seed(body, seed).to_le_bytes());
    let sum = xxh3_64_with_seed(&head[MARK_AT..], seed);
    head[..MARK_AT].copy_from_slice(&sum.to_le_bytes());
}

/// The changes of a batch, in order; they share its memory. `None` if it is none of ours.
pub(crate) fn decode(mut body: Bytes) -> Option<Vec<(Bytes, Option<Bytes>)>> {
    let mut changes = Vec::new();
    while !body.is_empty() {
        if body.len() < 8 {
            return None;
        }
        let lengths = body.split_to(8);
        let (key_bytes, value_bytes) = (u32_at(&lengths, 0) as usize, u32_at(&lengths, 4));
        let kept = if value_bytes == REMOVED { 0 } else { value_bytes as usize };
        if body.len() < key_bytes.checked_add(kept)? {
            return None;
        }
        let key = body.split_to(key_bytes);
        let value = body.split_to(kept);
        changes.push((key, (value_bytes != REMOVED).then_some(value)));
    }
    Some(changes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}
