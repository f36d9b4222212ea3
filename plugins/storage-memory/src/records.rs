//! The records in order: for each first three bytes of a storage key (its table and partition), blocks of slots sorted by key.
//! What a record costs above its bytes is a slot, its lengths, and what is left free for more.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_core::storage::{Page, Range, RecordAction, StorageError, Update};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use crate::arena::{Arena, Slot};

/// Slots of a block: a larger one is split.
const BLOCK_SLOTS: usize = 128;
/// A block makes room for so many more slots at a time.
const ROOM: usize = 16;

/// The first three bytes of a key, and how many it has of them: ordered as the keys are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place(u32);

impl Place {
    fn of(key: &[u8]) -> Place {
        let head = &key[..key.len().min(3)];
        let mut place = [0, 0, 0, head.len() as u8];
        place[..head.len()].copy_from_slice(head);
        Place(u32::from_be_bytes(place))
    }
}

/// Slots in the order of their keys. It is never empty.
struct Block {
    /// Not after its first key, and after the last one of the block before: blocks are told apart without a look at records. Of the
    /// first block it is not looked at.
    begin: SmallVec<[u8; 32]>,
    slots: Vec<Slot>,
    /// A byte of each key's hash: which record a key may be, without a look at the others.
    tags: Vec<u8>,
}

fn tag(key: &[u8]) -> u8 {
    xxh3_64(key) as u8
}

impl Block {
    fn room(&mut self) {
        if self.slots.len() == self.slots.capacity() {
            self.slots.reserve_exact(ROOM);
            self.tags.reserve_exact(ROOM);
        }
    }

    /// The slots from one on, as a block that begins with this key.
    fn split_off(&mut self, at: usize, begin: &[u8]) -> Block {
        let rest = Block {
            begin: SmallVec::from_slice(begin),
            slots: self.slots.split_off(at),
            tags: self.tags.split_off(at),
        };
        self.slots.shrink_to_fit();
        self.tags.shrink_to_fit();
        rest
    }
}

/// The slots of one place.
#[derive(Default)]
struct Part {
    /// In order.
    blocks: Vec<Block>,
}

/// Where a slot is in its part: the block, and the place in it.
type At = (usize, usize);

impl Part {
    /// The block that the key is in, or would be.
    fn block_of(&self, key: &[u8]) -> usize {
        let others = self.blocks.get(1..).unwrap_or_default();
        others.partition_point(|block| block.begin[..] <= *key)
    }

    /// Where the key is.
    fn find(&self, arena: &Arena, key: &[u8]) -> Option<At> {
        let at = self.block_of(key);
        let block = self.blocks.get(at)?;
        let is_key = |&slot: &usize| arena.key(block.slots[slot]) == key;
        let found = memchr::memchr_iter(tag(key), &block.tags).find(is_key)?;
        Some((at, found))
    }

    /// Where the first key is that is not before this one.
    fn lower_bound(&self, arena: &Arena, key: &[u8]) -> At {
        let at = self.block_of(key);
        let slots = self.blocks.get(at).map_or(&[][..], |block| &block.slots);
        (at, slots.partition_point(|&slot| arena.key(slot) < key))
    }

    fn slot(&self, (block, at): At) -> Slot {
        self.blocks[block].slots[at]
    }

    fn set(&mut self, (block, at): At, slot: Slot) {
        self.blocks[block].slots[at] = slot;
    }

    /// Takes in a key that is not there.
    fn insert(&mut self, arena: &Arena, key: &[u8], slot: Slot) {
        let (at, place) = self.lower_bound(arena, key);
        if self.blocks.is_empty() {
            self.blocks.push(Block { begin: SmallVec::new(), slots: Vec::new(), tags: Vec::new() });
        }
        let block = &mut self.blocks[at];
        block.room();
        block.slots.insert(place, slot);
        block.tags.insert(place, tag(key));
        let len = block.slots.len();
        if len > BLOCK_SLOTS {
            // Keys often come in order: then the first half is not filled any more.
            let half = if place + 1 == len { BLOCK_SLOTS } else { BLOCK_SLOTS / 2 };
            let rest = block.split_off(half, arena.key(block.slots[half]));
            self.blocks.insert(at + 1, rest);
        }
    }

    fn remove(&mut self, (at, place): At) -> Slot {
        let block = &mut self.blocks[at];
        let slot = block.slots.remove(place);
        block.tags.remove(place);
        if block.slots.capacity() > block.slots.len() + 4 * ROOM {
            block.slots.shrink_to(block.slots.len() + ROOM);
            block.tags.shrink_to(block.tags.len() + ROOM);
        }
        let small = |block: Option<&Block>| block.is_some_and(|block| block.slots.len() < BLOCK_SLOTS / 4);
        if small(self.blocks.get(at)) && small(self.blocks.get(at + 1)) {
            let next = self.blocks.remove(at + 1);
            self.blocks[at].slots.extend_from_slice(&next.slots);
            self.blocks[at].tags.extend_from_slice(&next.tags);
        }
        if self.blocks[at].slots.is_empty() {
            self.blocks.remove(at);
        }
        slot
    }

    /// All slots from one on.
    fn slots_from(&self, (block, at): At) -> impl Iterator<Item = Slot> {
        self.blocks.iter().skip(block).flat_map(|block| &block.slots).skip(at).copied()
    }
}

#[derive(Default)]
pub(crate) struct Records {
    parts: BTreeMap<Place, Part>,
    arena: Arena,
    /// Bytes of keys and values.
    bytes: u64,
}

impl Records {
    pub(crate) fn get(&self, key: &[u8]) -> Option<Bytes> {
        let part = self.parts.get(&Place::of(key))?;
        let at = part.find(&self.arena, key)?;
        Some(self.arena.value(part.slot(at)))
    }

    /// Reads, lets the update decide, writes.
    pub(crate) fn update(
        &mut self,
        update: &mut dyn Update,
        max_bytes: Option<u64>,
    ) -> Result<(), StorageError> {
        let key = update.key().clone();
        let key = key.as_bytes();
        let part = self.parts.get(&Place::of(key));
        let found = part.and_then(|part| part.find(&self.arena, key).map(|at| (at, part.slot(at))));
        let slot = found.map(|(_, slot)| slot);
        let stored = slot.map(|slot| self.arena.value(slot));
        let freed = stored.as_ref().map_or(0, |old| (key.len() + old.len()) as u64);
        match update.change(stored)? {
            RecordAction::Keep => return Ok(()),
            RecordAction::Remove => {
                if let Some((at, _)) = found {
                    self.remove(key, at);
                }
                self.bytes -= freed;
            }
            RecordAction::Put(value) => {
                let bytes = self.bytes - freed + (key.len() + value.len()) as u64;
                check(bytes, self.bytes, max_bytes)?;
                let replaced = slot.is_some_and(|slot| self.arena.replace(slot, &value));
                if !replaced {
                    let new = self.arena.add(key, &value).ok_or_else(|| StorageError::Full {
                        detail: "the memory engine has no numbers left for records; add nodes or delete keys"
                            .into(),
                    })?;
                    let part = self.parts.entry(Place::of(key)).or_default();
                    match found {
                        Some((at, old)) => {
                            part.set(at, new);
                            self.arena.remove(old);
                        }
                        None => part.insert(&self.arena, key, new),
                    }
                }
                self.bytes = bytes;
            }
        }
        self.tidy();
        Ok(())
    }

    fn remove(&mut self, key: &[u8], at: At) {
        let place = Place::of(key);
        let Some(part) = self.parts.get_mut(&place) else { return };
        let slot = part.remove(at);
        if part.blocks.is_empty() {
            self.parts.remove(&place);
        }
        self.arena.remove(slot);
    }

    /// Empties chunks with many holes.
    fn tidy(&mut self) {
        while let Some(chunk) = self.arena.most_holes() {
            for slot in self.arena.records(chunk) {
                let key = self.arena.key(slot);
                let part = self.parts.get_mut(&Place::of(key)).expect("a record's part is there");
                let at = part.find(&self.arena, key).expect("a record is in its part");
                // Without a number for another chunk, the holes stay.
                let Some(carried) = self.arena.carry(slot) else { return };
                part.set(at, carried);
            }
        }
    }

    pub(crate) fn scan(&self, range: &Range<'_>) -> Page {
        let mut page = Page::default();
        let mut bytes = 0;
        let first = Place::of(range.start);
        for (&place, part) in self.parts.range(first..) {
            let from = if place == first { part.lower_bound(&self.arena, range.start) } else { (0, 0) };
            for slot in part.slots_from(from) {
                let key = self.arena.key(slot);
                if range.after && key == range.start {
                    continue;
                }
                if range.end.is_some_and(|end| key >= end) {
                    return page;
                }
                if page.records.len() >= range.limit || (bytes >= range.max_bytes && !page.records.is_empty())
                {
                    page.more = true;
                    return page;
                }
                bytes += key.len() + self.arena.value_len(slot);
                page.records.push((Bytes::copy_from_slice(key), self.arena.value(slot)));
            }
        }
        page
    }
}

/// Whether there is room for so many bytes, where there were so many before.
fn check(bytes: u64, before: u64, max_bytes: Option<u64>) -> Result<(), StorageError> {
    match max_bytes {
        Some(limit) if bytes > limit && bytes > before => Err(StorageError::Full {
            detail: format!("{bytes} bytes, [storage] max_mib allows {limit}: raise it or delete keys"),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
