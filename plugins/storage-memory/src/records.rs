//! The records: an ordered map for each first three bytes of a storage key (its table and partition), so that a lookup
//! compares few keys, and keys short enough lie in the map's own nodes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;

use bytes::Bytes;
use quorate_core::storage::{Change, Page, Range, StorageError, Update};
use smallvec::SmallVec;

/// What is left of a key after its first three bytes.
type Rest = SmallVec<[u8; 24]>;

/// The first three bytes of a key, and how many it has of them: ordered as the keys are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place(u32);

impl Place {
    fn split(key: &[u8]) -> (Place, &[u8]) {
        let (head, rest) = key.split_at(key.len().min(3));
        let mut place = [0, 0, 0, head.len() as u8];
        place[..head.len()].copy_from_slice(head);
        (Place(u32::from_be_bytes(place)), rest)
    }

    fn join(self, rest: &[u8]) -> Bytes {
        let place = self.0.to_be_bytes();
        let mut key = Vec::with_capacity(3 + rest.len());
        key.extend_from_slice(&place[..place[3] as usize]);
        key.extend_from_slice(rest);
        Bytes::from(key)
    }
}

#[derive(Default)]
pub(crate) struct Records {
    places: BTreeMap<Place, BTreeMap<Rest, Bytes>>,
    /// Bytes of keys and values.
    bytes: u64,
}

impl Records {
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Bytes> {
        let (place, rest) = Place::split(key);
        self.places.get(&place)?.get(rest)
    }

    /// Reads, lets the update decide, writes.
    pub(crate) fn update(
        &mut self,
        update: &mut dyn Update,
        max_bytes: Option<u64>,
    ) -> Result<(), StorageError> {
        let key = update.key().clone();
        let key = key.as_bytes();
        let (place, rest) = Place::split(key);
        let records = self.places.entry(place).or_default();
        let entry = records.entry(Rest::from_slice(rest));
        let stored = match &entry {
            Entry::Occupied(occupied) => Some(occupied.get().clone()),
            Entry::Vacant(_) => None,
        };
        let freed = stored.as_ref().map_or(0, |old| (key.len() + old.len()) as u64);
        let outcome = match update.change(stored) {
            Ok(Change::Keep) => Ok(()),
            Ok(Change::Remove) => {
                if let Entry::Occupied(occupied) = entry {
                    occupied.remove();
                }
                self.bytes -= freed;
                Ok(())
            }
            Ok(Change::Put(value)) => {
                let bytes = self.bytes - freed + (key.len() + value.len()) as u64;
                match max_bytes {
                    Some(limit) if bytes > limit && bytes > self.bytes => Err(StorageError::Full {
                        detail: format!(
                            "{bytes} bytes, [storage] max_mib allows {limit}: raise it or delete keys"
                        ),
                    }),
                    _ => {
                        self.bytes = bytes;
                        match entry {
                            Entry::Occupied(mut occupied) => *occupied.get_mut() = value,
                            Entry::Vacant(vacant) => {
                                vacant.insert(value);
                            }
                        }
                        Ok(())
                    }
                }
            }
            Err(error) => Err(error),
        };
        if records.is_empty() {
            self.places.remove(&place);
        }
        outcome
    }

    pub(crate) fn scan(&self, range: &Range<'_>) -> Page {
        let mut page = Page::default();
        let mut bytes = 0;
        let (first, first_rest) = Place::split(range.start);
        for (&place, records) in self.places.range(first..) {
            let start = match (place == first, range.after) {
                (false, _) => Bound::Unbounded,
                (true, false) => Bound::Included(first_rest),
                (true, true) => Bound::Excluded(first_rest),
            };
            for (rest, value) in records.range::<[u8], _>((start, Bound::Unbounded)) {
                let key = place.join(rest);
                if range.end.is_some_and(|end| *key >= *end) {
                    return page;
                }
                if page.records.len() >= range.limit || (bytes >= range.max_bytes && !page.records.is_empty())
                {
                    page.more = true;
                    return page;
                }
                bytes += key.len() + value.len();
                page.records.push((key, value.clone()));
            }
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Splitting keeps the order of keys, also of those shorter than what is split off.
    #[test]
    fn splitting_keeps_the_order() {
        let mut keys: Vec<&[u8]> = vec![
            b"d",
            b"d\0",
            b"d\0\0",
            b"d\0\0\0",
            b"d\0\0a",
            b"d\0\x01",
            b"d\x01",
            b"e",
            b"\xff\xff\xff\xff",
        ];
        keys.sort();
        let split: Vec<_> = keys.iter().map(|key| Place::split(key)).collect();
        assert!(split.windows(2).all(|pair| pair[0] < pair[1]), "not in order");
        for (key, (place, rest)) in keys.iter().zip(split) {
            assert_eq!(place.join(rest), key);
        }
    }
}
