//! Where records lie: one after the other in large chunks, so that a record costs its bytes and a few more. What is replaced or
//! removed leaves a hole; chunks with many holes are emptied into others, so that holes take a bounded share.
//!
//! Source: log-structured memory as in RAMCloud (Rumble et al., FAST '14).

use bytes::Bytes;

/// How much memory is taken at a time, and emptied at a time, while others wait. (Little in tests, so that chunks are emptied.)
pub(crate) const CHUNK_BYTES: usize = if cfg!(test) { 4 * 1024 } else { 64 * 1024 };
/// A larger value lies by itself, as does a longer key than a head has bits for: it is not copied by who reads it, nor when a chunk is emptied.
pub(crate) const LARGEST_IN_CHUNK: usize = 1_024;
/// Holes may make one part in so many of what is used, and as many chunks besides.
const HOLES_SHARE: usize = 3;
/// Chunks looked at for the one with most holes.
const LOOKED_AT: usize = 64;
const HOLES_BESIDES: usize = 4 * CHUNK_BYTES;
/// Two numbers, two bytes each, little-endian: the key's length (9 bits), how many bytes are free after the value (6), and
/// whether it is a hole; and the value's length.
const HEADER_BYTES: usize = 4;
const HOLE: u16 = 1 << 15;
const FREE_SHIFT: u32 = 9;
const MOST_FREE: usize = (HOLE as usize >> FREE_SHIFT) - 1;
const MAX_KEY: u16 = (1 << FREE_SHIFT) - 1;

/// Where one record lies: its chunk and its place in it, or its number among the large ones. Five bytes: there is one for each
/// record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot([u8; 5]);

const LARGE: u64 = 1 << 39;
/// Chunks and large records that can be told apart.
const MAX_CHUNKS: usize = (LARGE as usize) / CHUNK_BYTES;
const MAX_LARGE: usize = u32::MAX as usize;

impl Slot {
    fn new(number: u64) -> Slot {
        let [a, b, c, d, e, ..] = number.to_le_bytes();
        Slot([a, b, c, d, e])
    }

    fn in_chunk(chunk: usize, at: usize) -> Slot {
        Slot::new((chunk * CHUNK_BYTES + at) as u64)
    }

    fn spot(self) -> Spot {
        let [a, b, c, d, e] = self.0;
        let number = u64::from_le_bytes([a, b, c, d, e, 0, 0, 0]);
        match number & LARGE {
            0 => Spot::Chunk(number as usize / CHUNK_BYTES, number as usize % CHUNK_BYTES),
            _ => Spot::Large((number & !LARGE) as usize),
        }
    }
}

enum Spot {
    Chunk(usize, usize),
    Large(usize),
}

/// What a record begins with.
struct Head {
    key: usize,
    value: usize,
    free: usize,
    is_hole: bool,
}

impl Head {
    fn size(&self) -> usize {
        HEADER_BYTES + self.key + self.value + self.free
    }
}

/// Records one after the other.
#[derive(Default)]
struct Chunk {
    /// Never more than its first capacity.
    bytes: Vec<u8>,
    /// How many of them are in use.
    live: usize,
}

struct Large {
    key: Bytes,
    value: Bytes,
}

/// Records, each under its slot.
#[derive(Default)]
pub(crate) struct Arena {
    chunks: Vec<Chunk>,
    empty: Vec<usize>,
    /// The one that is being filled.
    open: usize,
    large: Vec<Option<Large>>,
    /// Numbers of `large` without a record.
    unused: Vec<usize>,
    /// Where to look next for holes.
    next: usize,
    /// Bytes of all chunks that hold records, or once did.
    used: usize,
    live: usize,
}

impl Arena {
    /// The record's key.
    pub(crate) fn key(&self, slot: Slot) -> &[u8] {
        match slot.spot() {
            Spot::Chunk(chunk, at) => self.parts(chunk, at).0,
            Spot::Large(number) => &self.large(number).key,
        }
    }

    /// The record's value.
    pub(crate) fn value(&self, slot: Slot) -> Bytes {
        match slot.spot() {
            Spot::Chunk(chunk, at) => Bytes::copy_from_slice(self.parts(chunk, at).1),
            Spot::Large(number) => self.large(number).value.clone(),
        }
    }

    /// The length of the record's value.
    pub(crate) fn value_len(&self, slot: Slot) -> usize {
        match slot.spot() {
            Spot::Chunk(chunk, at) => self.head(chunk, at).value,
            Spot::Large(number) => self.large(number).value.len(),
        }
    }

    fn large(&self, number: usize) -> &Large {
        self.large[number].as_ref().expect("a slot's record is there")
    }

    fn head(&self, chunk: usize, at: usize) -> Head {
        let bytes = &self.chunks[chunk].bytes[at..at + HEADER_BYTES];
        let (word, value) =
            (u16::from_le_bytes([bytes[0], bytes[1]]), u16::from_le_bytes([bytes[2], bytes[3]]));
        let free = usize::from((word & !HOLE) >> FREE_SHIFT);
        Head { key: usize::from(word & MAX_KEY), value: value.into(), free, is_hole: word & HOLE != 0 }
    }

    fn set_head(&mut self, chunk: usize, at: usize, head: &Head) {
        let word = head.key | (head.free << FREE_SHIFT) | if head.is_hole { usize::from(HOLE) } else { 0 };
        let bytes = &mut self.chunks[chunk].bytes[at..at + HEADER_BYTES];
        bytes[..2].copy_from_slice(&(word as u16).to_le_bytes());
        bytes[2..].copy_from_slice(&(head.value as u16).to_le_bytes());
    }

    fn parts(&self, chunk: usize, at: usize) -> (&[u8], &[u8]) {
        let Head { key, value, .. } = self.head(chunk, at);
        self.chunks[chunk].bytes[at + HEADER_BYTES..at + HEADER_BYTES + key + value].split_at(key)
    }

    /// Takes in a record. `None`: there is no number left for it.
    pub(crate) fn add(&mut self, key: &[u8], value: &Bytes) -> Option<Slot> {
        if value.len() > LARGEST_IN_CHUNK || key.len() > usize::from(MAX_KEY) {
            let number =
                self.unused.pop().or_else(|| (self.large.len() < MAX_LARGE).then_some(self.large.len()))?;
            if number == self.large.len() {
                self.large.push(None);
            }
            self.large[number] = Some(Large { key: Bytes::copy_from_slice(key), value: value.clone() });
            return Some(Slot::new(LARGE | number as u64));
        }
        self.append(key, value)
    }

    fn append(&mut self, key: &[u8], value: &[u8]) -> Option<Slot> {
        let size = HEADER_BYTES + key.len() + value.len();
        let full = |chunk: &Chunk| chunk.bytes.len() + size > CHUNK_BYTES;
        if self.chunks.get(self.open).is_none_or(full) {
            let closed = self.open;
            if self.chunks.get(closed).is_some_and(|chunk| chunk.live == 0) {
                self.give_back(closed);
            }
            self.open =
                self.empty.pop().or_else(|| (self.chunks.len() < MAX_CHUNKS).then_some(self.chunks.len()))?;
            if self.open == self.chunks.len() {
                self.chunks.push(Chunk::default());
            }
            self.chunks[self.open].bytes = Vec::with_capacity(CHUNK_BYTES);
        }
        let chunk = &mut self.chunks[self.open];
        let at = chunk.bytes.len();
        chunk.bytes.extend_from_slice(&[0; HEADER_BYTES]);
        chunk.bytes.extend_from_slice(key);
        chunk.bytes.extend_from_slice(value);
        chunk.live += size;
        self.used += size;
        self.live += size;
        let head = Head { key: key.len(), value: value.len(), free: 0, is_hole: false };
        self.set_head(self.open, at, &head);
        Some(Slot::in_chunk(self.open, at))
    }

    /// Gives a record another value, where it lies. False if it does not fit there.
    pub(crate) fn replace(&mut self, slot: Slot, value: &Bytes) -> bool {
        match slot.spot() {
            Spot::Chunk(chunk, at) => {
                let head = self.head(chunk, at);
                let Some(free) = (head.value + head.free).checked_sub(value.len()) else { return false };
                // More is a hole, which is counted.
                if free > MOST_FREE.min((head.key + value.len()) / 4) {
                    return false;
                }
                self.set_head(chunk, at, &Head { value: value.len(), free, ..head });
                let begin = at + HEADER_BYTES + head.key;
                self.chunks[chunk].bytes[begin..begin + value.len()].copy_from_slice(value);
                true
            }
            Spot::Large(number) => match &mut self.large[number] {
                Some(large) if value.len() > LARGEST_IN_CHUNK => {
                    large.value = value.clone();
                    true
                }
                _ => false,
            },
        }
    }

    /// Lets go of a record.
    pub(crate) fn remove(&mut self, slot: Slot) {
        match slot.spot() {
            Spot::Chunk(chunk, at) => {
                let head = self.head(chunk, at);
                let size = head.size();
                self.set_head(chunk, at, &Head { is_hole: true, ..head });
                self.chunks[chunk].live -= size;
                self.live -= size;
                if self.chunks[chunk].live == 0 && chunk != self.open {
                    self.give_back(chunk);
                }
            }
            Spot::Large(number) => {
                self.large[number] = None;
                self.unused.push(number);
            }
        }
    }

    fn give_back(&mut self, chunk: usize) {
        self.used -= self.chunks[chunk].bytes.len();
        self.chunks[chunk] = Chunk::default();
        self.empty.push(chunk);
    }

    /// The chunk to empty next, if there are too many holes: of some, that with the most.
    pub(crate) fn most_holes(&mut self) -> Option<usize> {
        let holes = self.used - self.live;
        if holes <= self.used / HOLES_SHARE + HOLES_BESIDES {
            return None;
        }
        let count = self.chunks.len();
        let of = |chunk: usize| self.chunks[chunk].bytes.len() - self.chunks[chunk].live;
        let others = (0..count).map(|step| (self.next + step) % count).filter(|&chunk| chunk != self.open);
        let mut most = self.open;
        for (looked, chunk) in others.enumerate() {
            if most == self.open || of(chunk) > of(most) {
                most = chunk;
            }
            // As all of them together have as many, there is one.
            if looked >= LOOKED_AT && of(most) >= self.chunks[most].bytes.len() / HOLES_SHARE {
                break;
            }
        }
        self.next = (self.next + LOOKED_AT) % count;
        Some(most)
    }

    /// The records of a chunk.
    pub(crate) fn records(&self, chunk: usize) -> Vec<Slot> {
        let (mut found, mut at) = (Vec::new(), 0);
        while at < self.chunks[chunk].bytes.len() {
            let head = self.head(chunk, at);
            if !head.is_hole {
                found.push(Slot::in_chunk(chunk, at));
            }
            at += head.size();
        }
        found
    }

    /// Puts a record of a chunk elsewhere; where it was there is a hole, and no chunk once it is the last one.
    pub(crate) fn carry(&mut self, slot: Slot) -> Option<Slot> {
        let Spot::Chunk(chunk, at) = slot.spot() else { return None };
        let (key, value) = self.parts(chunk, at);
        let (key, value) = (key.to_vec(), value.to_vec());
        let carried = self.append(&key, &value)?;
        self.remove(slot);
        Some(carried)
    }

    /// Bytes of memory that are taken, and those of them that hold records.
    #[cfg(test)]
    pub(crate) fn extent(&self) -> (usize, usize) {
        (self.used, self.live)
    }
}
