//! Memory for records: they lie one after the other in large chunks, so that a record needs few
//! bytes besides its own. A replaced or removed record leaves a hole. Chunks with many holes are
//! emptied into other chunks, which bounds the share of the holes.
//!
//! Source: log-structured memory as in RAMCloud (Rumble et al., FAST '14).

use bytes::Bytes;

/// Bytes of a chunk. Memory is allocated and emptied by whole chunks, while other threads wait for
/// the lock. (Chunks are small in tests, so that tests empty some.)
pub(crate) const CHUNK_BYTES: usize = if cfg!(test) { 4 * 1024 } else { 64 * 1024 };
/// Largest number of bytes of a value in a chunk. A record with a larger value has its own
/// allocation, and so has a record whose key is longer than [`MAX_KEY`]. Such a value is never
/// copied, neither by a read nor when a chunk is emptied.
pub(crate) const LARGEST_IN_CHUNK: usize = 1_024;
/// Divisor in the limit of the holes: `used / HOLES_DIVISOR + EXTRA_HOLE_BYTES` bytes. Above this
/// limit, chunks are emptied.
const HOLES_DIVISOR: usize = 3;
/// Bytes of holes that are allowed besides this share of the used bytes.
const EXTRA_HOLE_BYTES: usize = 4 * CHUNK_BYTES;
/// Least number of chunks that one search for the chunk with the most holes checks, if there are as
/// many.
const CHECKED_CHUNKS: usize = 64;
/// Bytes of a record's header: two little-endian `u16`. The first has the key's length (9 bits),
/// the number of free bytes after the value (6 bits), and the mark of a hole (1 bit). The second is
/// the value's length.
const HEADER_BYTES: usize = 4;
const HOLE: u16 = 1 << 15;
const FREE_SHIFT: u32 = 9;
/// Largest number of free bytes that a header can describe.
const MAX_FREE: usize = (HOLE as usize >> FREE_SHIFT) - 1;
/// Longest key in a chunk, in bytes.
const MAX_KEY: u16 = (1 << FREE_SHIFT) - 1;

/// Position of one record: its chunk and its offset in the chunk, or its number among the large
/// records. Only five bytes long, because each record has one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot([u8; 5]);

/// Bit of a [`Slot`] that marks a large record.
const LARGE: u64 = 1 << 39;
/// Largest number of chunks that a [`Slot`] can number.
const MAX_CHUNKS: usize = (LARGE as usize) / CHUNK_BYTES;
/// Largest number of large records.
const MAX_LARGE: usize = u32::MAX as usize;

impl Slot {
    fn new(number: u64) -> Slot {
        let [a, b, c, d, e, ..] = number.to_le_bytes();
        Slot([a, b, c, d, e])
    }

    fn in_chunk(chunk: usize, at: usize) -> Slot {
        Slot::new((chunk * CHUNK_BYTES + at) as u64)
    }

    fn location(self) -> Location {
        let [a, b, c, d, e] = self.0;
        let number = u64::from_le_bytes([a, b, c, d, e, 0, 0, 0]);
        match number & LARGE {
            0 => Location::Chunk(number as usize / CHUNK_BYTES, number as usize % CHUNK_BYTES),
            _ => Location::Large((number & !LARGE) as usize),
        }
    }
}

/// A decoded [`Slot`].
enum Location {
    /// Number of the chunk, and the record's offset in it.
    Chunk(usize, usize),
    /// Number among the large records.
    Large(usize),
}

/// A decoded record header. `key`, `value` and `free` are numbers of bytes.
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

/// Records and holes, one after the other.
#[derive(Default)]
struct Chunk {
    /// Contents. They never grow beyond the first allocation.
    bytes: Vec<u8>,
    /// Bytes that belong to records, not to holes.
    live: usize,
}

/// A record with its own allocation.
struct Large {
    key: Bytes,
    value: Bytes,
}

/// Records, each under its slot.
#[derive(Default)]
pub(crate) struct Arena {
    chunks: Vec<Chunk>,
    /// Indexes in `chunks` of the chunks without memory.
    empty: Vec<usize>,
    /// Number of the chunk that is being filled.
    open: usize,
    large: Vec<Option<Large>>,
    /// Indexes in `large` of the entries without a record.
    unused: Vec<usize>,
    /// Index of the chunk at which the next search begins. The search chooses a chunk with many
    /// holes (bytes that no record uses any more). Its records are then moved.
    next: usize,
    /// Bytes of records and holes in all chunks.
    used: usize,
    /// Bytes of records in all chunks.
    live: usize,
}

impl Arena {
    /// Returns the record's key.
    pub(crate) fn key(&self, slot: Slot) -> &[u8] {
        match slot.location() {
            Location::Chunk(chunk, at) => self.parts(chunk, at).0,
            Location::Large(number) => &self.large(number).key,
        }
    }

    /// Returns the record's value. A value in a chunk is copied.
    pub(crate) fn value(&self, slot: Slot) -> Bytes {
        match slot.location() {
            Location::Chunk(chunk, at) => Bytes::copy_from_slice(self.parts(chunk, at).1),
            Location::Large(number) => self.large(number).value.clone(),
        }
    }

    /// Returns the length of the record's value, in bytes.
    pub(crate) fn value_len(&self, slot: Slot) -> usize {
        match slot.location() {
            Location::Chunk(chunk, at) => self.head(chunk, at).value,
            Location::Large(number) => self.large(number).value.len(),
        }
    }

    fn large(&self, number: usize) -> &Large {
        self.large[number].as_ref().expect("a slot in use has a record")
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

    /// Stores a record. Returns `None` if all slots are in use.
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
                self.free_chunk(closed);
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

    /// Replaces a record's value in place. Returns `false` if the value does not fit, or would
    /// leave too many free bytes.
    pub(crate) fn replace(&mut self, slot: Slot, value: &Bytes) -> bool {
        match slot.location() {
            Location::Chunk(chunk, at) => {
                let head = self.head(chunk, at);
                let Some(free) = (head.value + head.free).checked_sub(value.len()) else { return false };
                // Free bytes are not counted as holes, so a record may have only few of them.
                if free > MAX_FREE.min((head.key + value.len()) / 4) {
                    return false;
                }
                self.set_head(chunk, at, &Head { value: value.len(), free, ..head });
                let begin = at + HEADER_BYTES + head.key;
                self.chunks[chunk].bytes[begin..begin + value.len()].copy_from_slice(value);
                true
            }
            Location::Large(number) => match &mut self.large[number] {
                Some(large) if value.len() > LARGEST_IN_CHUNK => {
                    large.value = value.clone();
                    true
                }
                _ => false,
            },
        }
    }

    /// Removes a record. In a chunk it becomes a hole.
    pub(crate) fn remove(&mut self, slot: Slot) {
        match slot.location() {
            Location::Chunk(chunk, at) => {
                let head = self.head(chunk, at);
                let size = head.size();
                self.set_head(chunk, at, &Head { is_hole: true, ..head });
                self.chunks[chunk].live -= size;
                self.live -= size;
                if self.chunks[chunk].live == 0 && chunk != self.open {
                    self.free_chunk(chunk);
                }
            }
            Location::Large(number) => {
                self.large[number] = None;
                self.unused.push(number);
            }
        }
    }

    fn free_chunk(&mut self, chunk: usize) {
        self.used -= self.chunks[chunk].bytes.len();
        self.chunks[chunk] = Chunk::default();
        self.empty.push(chunk);
    }

    /// Returns the chunk to empty next, or `None` while the total size of the holes is within its
    /// limit. Of the chunks that the search checks, it is the one with the most bytes of holes.
    pub(crate) fn most_holes(&mut self) -> Option<usize> {
        let holes = self.used - self.live;
        if holes <= self.used / HOLES_DIVISOR + EXTRA_HOLE_BYTES {
            return None;
        }
        let count = self.chunks.len();
        let holes_of = |chunk: usize| self.chunks[chunk].bytes.len() - self.chunks[chunk].live;
        let others = (0..count).map(|step| (self.next + step) % count).filter(|&chunk| chunk != self.open);
        let mut most = self.open;
        for (checked, chunk) in others.enumerate() {
            if most == self.open || holes_of(chunk) > holes_of(most) {
                most = chunk;
            }
            // Some chunk passes this test, because more than this share of all bytes are holes.
            if checked >= CHECKED_CHUNKS && holes_of(most) >= self.chunks[most].bytes.len() / HOLES_DIVISOR {
                break;
            }
        }
        self.next = (self.next + CHECKED_CHUNKS) % count;
        Some(most)
    }

    /// Returns the slots of a chunk's records.
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

    /// Moves a record to the chunk that is being filled, and returns its new slot. The move leaves
    /// a hole; a chunk that holds only holes is freed. Returns `None` for a large record, or if all
    /// chunks are in use.
    pub(crate) fn carry(&mut self, slot: Slot) -> Option<Slot> {
        let Location::Chunk(chunk, at) = slot.location() else { return None };
        let (key, value) = self.parts(chunk, at);
        let (key, value) = (key.to_vec(), value.to_vec());
        let carried = self.append(&key, &value)?;
        self.remove(slot);
        Some(carried)
    }

    /// Returns the bytes of records and holes in all chunks, and the bytes of records alone.
    #[cfg(test)]
    pub(crate) fn extent(&self) -> (usize, usize) {
        (self.used, self.live)
    }
}
