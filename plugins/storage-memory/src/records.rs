//! The records in key order: for each prefix of three bytes (a storage key's table and partition),
//! blocks of slots sorted by key. Besides its own bytes, a record costs a slot, a tag, a header,
//! and a share of the spare capacity.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_core::storage::{Page, Range, RecordAction, StorageError, Update};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use crate::arena::{Arena, Slot};

/// Largest number of slots of a block. A larger block is split.
const BLOCK_SLOTS: usize = 128;
/// Slots by which the capacity of a full block grows.
const SPARE_SLOTS: usize = 16;

/// The first three bytes of a key, and how many of them the key has (a key can be shorter).
/// Prefixes have the order of their keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct KeyPrefix(u32);

impl KeyPrefix {
    fn of(key: &[u8]) -> KeyPrefix {
        let head = &key[..key.len().min(3)];
        let mut prefix = [0, 0, 0, head.len() as u8];
        prefix[..head.len()].copy_from_slice(head);
        KeyPrefix(u32::from_be_bytes(prefix))
    }
}

/// Slots in the order of their keys. A block is never empty.
struct Block {
    /// Lower bound of the block's keys: at most the first key, and greater than the last key of the
    /// previous block. It finds the block of a key without reading records. Unused in the first
    /// block.
    begin: SmallVec<[u8; 32]>,
    slots: Vec<Slot>,
    /// One byte of each key's hash. It finds the slot of a key without reading most other records.
    tags: Vec<u8>,
}

fn tag(key: &[u8]) -> u8 {
    xxh3_64(key) as u8
}

impl Block {
    /// Reserves capacity for one more slot.
    fn reserve(&mut self) {
        if self.slots.len() == self.slots.capacity() {
            self.slots.reserve_exact(SPARE_SLOTS);
            self.tags.reserve_exact(SPARE_SLOTS);
        }
    }

    /// Removes the slots from index `at` on, and returns them as a block with the lower bound
    /// `begin`.
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

/// The slots of all keys with one prefix.
#[derive(Default)]
struct Part {
    /// Blocks in key order.
    blocks: Vec<Block>,
}

/// Position of a slot in its part: the index of the block, and the index in the block.
type Position = (usize, usize);

impl Part {
    /// Returns the index of the block that contains the key, or would contain it.
    fn block_of(&self, key: &[u8]) -> usize {
        let others = self.blocks.get(1..).unwrap_or_default();
        others.partition_point(|block| block.begin[..] <= *key)
    }

    /// Returns the position of the key, if it is stored.
    fn find(&self, arena: &Arena, key: &[u8]) -> Option<Position> {
        let at = self.block_of(key);
        let block = self.blocks.get(at)?;
        let is_key = |&slot: &usize| arena.key(block.slots[slot]) == key;
        let found = memchr::memchr_iter(tag(key), &block.tags).find(is_key)?;
        Some((at, found))
    }

    /// Returns the position of the first key that is equal to this key or greater.
    fn lower_bound(&self, arena: &Arena, key: &[u8]) -> Position {
        let at = self.block_of(key);
        let slots = self.blocks.get(at).map_or(&[][..], |block| &block.slots);
        (at, slots.partition_point(|&slot| arena.key(slot) < key))
    }

    fn slot(&self, (block, at): Position) -> Slot {
        self.blocks[block].slots[at]
    }

    fn set(&mut self, (block, at): Position, slot: Slot) {
        self.blocks[block].slots[at] = slot;
    }

    /// Inserts a key that is not stored yet.
    fn insert(&mut self, arena: &Arena, key: &[u8], slot: Slot) {
        let (at, index) = self.lower_bound(arena, key);
        if self.blocks.is_empty() {
            self.blocks.push(Block { begin: SmallVec::new(), slots: Vec::new(), tags: Vec::new() });
        }
        let block = &mut self.blocks[at];
        block.reserve();
        block.slots.insert(index, slot);
        block.tags.insert(index, tag(key));
        let len = block.slots.len();
        if len > BLOCK_SLOTS {
            // Keys often arrive in ascending order. Splitting a block in half would then leave the
            // first half unused, so only the last slot moves.
            let split_at = if index + 1 == len { BLOCK_SLOTS } else { BLOCK_SLOTS / 2 };
            let rest = block.split_off(split_at, arena.key(block.slots[split_at]));
            self.blocks.insert(at + 1, rest);
        }
    }

    fn remove(&mut self, (at, index): Position) -> Slot {
        let block = &mut self.blocks[at];
        let slot = block.slots.remove(index);
        block.tags.remove(index);
        if block.slots.capacity() > block.slots.len() + 4 * SPARE_SLOTS {
            block.slots.shrink_to(block.slots.len() + SPARE_SLOTS);
            block.tags.shrink_to(block.tags.len() + SPARE_SLOTS);
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

    /// Returns all slots from a position on.
    fn slots_from(&self, (block, at): Position) -> impl Iterator<Item = Slot> {
        self.blocks.iter().skip(block).flat_map(|block| &block.slots).skip(at).copied()
    }
}

/// All records of a node.
#[derive(Default)]
pub(crate) struct Records {
    parts: BTreeMap<KeyPrefix, Part>,
    arena: Arena,
    /// Bytes of all keys and values.
    bytes: u64,
}

impl Records {
    pub(crate) fn get(&self, key: &[u8]) -> Option<Bytes> {
        let part = self.parts.get(&KeyPrefix::of(key))?;
        let at = part.find(&self.arena, key)?;
        Some(self.arena.value(part.slot(at)))
    }

    /// Runs one update: reads the record, calls the update's `change`, and stores its result.
    pub(crate) fn update(
        &mut self,
        update: &mut dyn Update,
        max_bytes: Option<u64>,
    ) -> Result<(), StorageError> {
        let key = update.key().clone();
        let key = key.as_bytes();
        let part = self.parts.get(&KeyPrefix::of(key));
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
                check_size(bytes, self.bytes, max_bytes)?;
                let replaced = slot.is_some_and(|slot| self.arena.replace(slot, &value));
                if !replaced {
                    let new = self.arena.add(key, &value).ok_or_else(|| StorageError::Full {
                        detail: "the memory engine has reached its maximum number of records; \
                                 add nodes or delete keys"
                            .into(),
                    })?;
                    let part = self.parts.entry(KeyPrefix::of(key)).or_default();
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
        self.empty_chunks();
        Ok(())
    }

    fn remove(&mut self, key: &[u8], at: Position) {
        let prefix = KeyPrefix::of(key);
        let Some(part) = self.parts.get_mut(&prefix) else { return };
        let slot = part.remove(at);
        if part.blocks.is_empty() {
            self.parts.remove(&prefix);
        }
        self.arena.remove(slot);
    }

    /// Empties chunks with many holes, until the total size of the holes is within its limit.
    fn empty_chunks(&mut self) {
        while let Some(chunk) = self.arena.most_holes() {
            for slot in self.arena.records(chunk) {
                let key = self.arena.key(slot);
                let part = self.parts.get_mut(&KeyPrefix::of(key)).expect("every record has a part");
                let at = part.find(&self.arena, key).expect("every record is in its part");
                // If all chunks are in use, the record cannot be moved, and the holes stay.
                let Some(carried) = self.arena.carry(slot) else { return };
                part.set(at, carried);
            }
        }
    }

    pub(crate) fn scan(&self, range: &Range<'_>) -> Page {
        let mut page = Page::default();
        let mut bytes = 0;
        let first = KeyPrefix::of(range.start);
        for (&prefix, part) in self.parts.range(first..) {
            let from = if prefix == first { part.lower_bound(&self.arena, range.start) } else { (0, 0) };
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

/// Refuses a growth of the records from `before` bytes to `bytes` bytes that exceeds `max_bytes`.
fn check_size(bytes: u64, before: u64, max_bytes: Option<u64>) -> Result<(), StorageError> {
    match max_bytes {
        Some(limit) if bytes > limit && bytes > before => Err(StorageError::Full {
            detail: format!("{bytes} bytes, [storage] max_mib allows {limit}: raise it or delete keys"),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
