//! Format of a WAL file: a header, and batches of changes.
//!
//! ```text
//! file    magic 8 | seed 8 | generation 8 | previous end: generation 8, batches 8 | checksum 8
//!         then batches from byte 4096 on
//! batch   header checksum 8 | magic 4 | number 8 | body bytes 8 | body checksum 8 | body
//! body    changes, each: key bytes 4 | value bytes 4 (2^32 - 1: removed) | key | value
//! ```
//!
//! Numbers are little-endian. Checksums are XXH3 with 64 bits, with the seed of the file header.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::write_buffer::Changes;

const FILE_MAGIC: &[u8; 8] = b"qlmdblg2";
pub(super) const FILE_HEADER_BYTES: usize = 48;
/// Offset of the first batch. It begins a page of its own.
pub(super) const FIRST_BATCH_OFFSET: usize = 4096;
const BATCH_MAGIC: &[u8; 4] = b"qbat";
/// Offset of the magic in a batch. The checksum before it covers the header from here on.
const BATCH_MAGIC_OFFSET: usize = 8;
pub(super) const BATCH_HEADER_BYTES: usize = 8 + 4 + 8 + 8 + 8;
/// Value length of a change that removes its record.
const REMOVED: u32 = u32::MAX;

/// Position between two batches of the WAL.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(crate) struct WalPosition {
    pub(crate) generation: u64,
    /// Batches of the generation that are before the position.
    pub(crate) batches: u64,
}

/// Header of a file.
#[derive(Clone, Copy)]
pub(super) struct FileHeader {
    /// Seed of the generation's checksums. It is random, so no client can guess it.
    pub(super) seed: u64,
    /// Generation of the batches. 0 if the file has none yet.
    pub(super) generation: u64,
    /// End of the log when this generation began. The other file or the tree has all changes before
    /// it.
    pub(super) previous_end: WalPosition,
}

impl FileHeader {
    pub(super) fn encode(self) -> [u8; FILE_HEADER_BYTES] {
        let mut header = [0; FILE_HEADER_BYTES];
        header[..8].copy_from_slice(FILE_MAGIC);
        header[8..16].copy_from_slice(&self.seed.to_le_bytes());
        header[16..24].copy_from_slice(&self.generation.to_le_bytes());
        header[24..32].copy_from_slice(&self.previous_end.generation.to_le_bytes());
        header[32..40].copy_from_slice(&self.previous_end.batches.to_le_bytes());
        let checksum = xxh3_64_with_seed(&header[..40], self.seed);
        header[40..].copy_from_slice(&checksum.to_le_bytes());
        header
    }

    /// Decodes the header of a file. Returns `None` if it is invalid.
    pub(super) fn decode(file: &[u8]) -> Option<FileHeader> {
        let stored = file.get(..FILE_HEADER_BYTES)?;
        let number = |at| u64_at(stored, at);
        let previous_end = WalPosition { generation: number(24), batches: number(32) };
        let header = FileHeader { seed: number(8), generation: number(16), previous_end };
        (stored == header.encode()).then_some(header)
    }
}

/// Header of a batch.
struct BatchHeader {
    number: u64,
    body_bytes: usize,
    body_checksum: u64,
}

impl BatchHeader {
    /// Decodes the header at `offset`. Returns `None` if it is invalid.
    ///
    /// The header has its own checksum, so the body is not read. `last_batch_begun` tries each
    /// place that looks like a header, and a client's value may contain many such places. Computing
    /// the checksum of a body at each of them would take too long.
    fn decode(file: &[u8], offset: usize, seed: u64) -> Option<BatchHeader> {
        let header = file.get(offset..)?.get(..BATCH_HEADER_BYTES)?;
        let is_valid = &header[BATCH_MAGIC_OFFSET..BATCH_MAGIC_OFFSET + 4] == BATCH_MAGIC
            && u64_at(header, 0) == xxh3_64_with_seed(&header[BATCH_MAGIC_OFFSET..], seed);
        let body_bytes = usize::try_from(u64_at(header, 20)).ok()?;
        is_valid.then(|| BatchHeader {
            number: u64_at(header, 12),
            body_bytes,
            body_checksum: u64_at(header, 28),
        })
    }
}

/// A valid batch.
pub(super) struct Batch {
    pub(super) body: Bytes,
    /// Offset after the batch.
    pub(super) end: usize,
}

impl Batch {
    /// Decodes the batch at `offset`. Returns `None` if it is invalid or has another number.
    pub(super) fn decode(file: &Bytes, offset: usize, seed: u64, number: u64) -> Option<Batch> {
        let header = BatchHeader::decode(file, offset, seed).filter(|header| header.number == number)?;
        let body_offset = offset + BATCH_HEADER_BYTES;
        let end = body_offset.checked_add(header.body_bytes).filter(|end| *end <= file.len())?;
        let body = file.slice(body_offset..end);
        (header.body_checksum == xxh3_64_with_seed(&body, seed)).then_some(Batch { body, end })
    }
}

/// Returns the highest batch number in the valid batch headers at or after `offset`. The bodies of
/// these batches may be invalid.
pub(super) fn last_batch_begun(file: &[u8], offset: usize, seed: u64) -> Option<u64> {
    let rest = file.get(offset..)?;
    let magics = rest.windows(BATCH_MAGIC.len()).enumerate().filter(|(_, window)| window == BATCH_MAGIC);
    let headers = magics.filter_map(|(at, _)| {
        BatchHeader::decode(file, (offset + at).checked_sub(BATCH_MAGIC_OFFSET)?, seed)
    });
    headers.map(|header| header.number).max()
}

/// Replaces the content of `buffer` by an encoded batch.
pub(super) fn encode_batch(buffer: &mut Vec<u8>, seed: u64, number: u64, changes: &Changes) {
    buffer.clear();
    buffer.resize(BATCH_HEADER_BYTES, 0);
    for (key, value) in changes {
        buffer.extend_from_slice(&(key.len() as u32).to_le_bytes());
        buffer.extend_from_slice(&value.as_ref().map_or(REMOVED, |value| value.len() as u32).to_le_bytes());
        buffer.extend_from_slice(key);
        buffer.extend_from_slice(value.as_deref().unwrap_or_default());
    }
    let (header, body) = buffer.split_at_mut(BATCH_HEADER_BYTES);
    header[BATCH_MAGIC_OFFSET..12].copy_from_slice(BATCH_MAGIC);
    header[12..20].copy_from_slice(&number.to_le_bytes());
    header[20..28].copy_from_slice(&(body.len() as u64).to_le_bytes());
    header[28..].copy_from_slice(&xxh3_64_with_seed(body, seed).to_le_bytes());
    let checksum = xxh3_64_with_seed(&header[BATCH_MAGIC_OFFSET..], seed);
    header[..BATCH_MAGIC_OFFSET].copy_from_slice(&checksum.to_le_bytes());
}

/// Decodes the changes of a batch, in order. They share the memory of `body`.
///
/// Returns `None` if this engine did not encode the body.
pub(super) fn decode_body(mut body: Bytes) -> Option<Vec<(Bytes, Option<Bytes>)>> {
    let mut changes = Vec::new();
    while !body.is_empty() {
        if body.len() < 8 {
            return None;
        }
        let lengths = body.split_to(8);
        let (key_bytes, value_length) = (u32_at(&lengths, 0) as usize, u32_at(&lengths, 4));
        let value_bytes = if value_length == REMOVED { 0 } else { value_length as usize };
        if body.len() < key_bytes.checked_add(value_bytes)? {
            return None;
        }
        let key = body.split_to(key_bytes);
        let value = body.split_to(value_bytes);
        changes.push((key, (value_length != REMOVED).then_some(value)));
    }
    Some(changes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}
