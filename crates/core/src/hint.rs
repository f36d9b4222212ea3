//! Hints: objects that a node keeps for a replica that could not be reached.

use crate::key::{StorageKey, Table};
use crate::member::NodeId;

/// Returns the storage key of a hint: for the node `target`, with the object of storage key `key`.
/// Hints for one target have adjacent storage keys. Hints for the same target and object have the
/// same key, so the node merges them into one.
pub fn hint_key(target: NodeId, key: &StorageKey) -> StorageKey {
    let mut rest = Vec::with_capacity(8 + key.as_bytes().len());
    rest.extend_from_slice(&target.0.to_be_bytes());
    rest.extend_from_slice(&key.as_bytes()[1..]);
    StorageKey::of_table(Table::Hints, &rest)
}

/// Returns the common first bytes of the storage keys of all hints.
pub fn all_hints() -> Vec<u8> {
    vec![Table::Hints as u8]
}

/// Returns the common first bytes of the storage keys of all hints for `target`.
pub fn hints_for(target: NodeId) -> Vec<u8> {
    let mut start = all_hints();
    start.extend_from_slice(&target.0.to_be_bytes());
    start
}

/// Returns a hint's target and the storage key of its object. Returns `None` for bytes that
/// [`hint_key`] did not write.
pub fn parse_hint_key(bytes: &[u8]) -> Option<(NodeId, StorageKey)> {
    let (table, rest) = bytes.split_first()?;
    let (target, rest) = rest.split_first_chunk::<8>()?;
    if *table != Table::Hints as u8 {
        return None;
    }
    let mut object = vec![Table::Objects as u8];
    object.extend_from_slice(rest);
    Some((NodeId(u64::from_be_bytes(*target)), StorageKey::from_peer(&object)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Key, MAX_BUCKET_BYTES, MAX_KEY_BYTES, MAX_STORAGE_KEY_BYTES, PartitionId};

    /// The hint for the longest key of the longest bucket fits a storage key. Its target and its
    /// object's key can be read back.
    #[test]
    fn hint_keys_fit_and_are_read_back() {
        let key = Key::new(&[b'b'; MAX_BUCKET_BYTES], &[1; MAX_KEY_BYTES]).unwrap();
        let stored = StorageKey::of(PartitionId(7), &key);
        let hint = hint_key(NodeId(9), &stored);
        assert!(hint.as_bytes().len() <= MAX_STORAGE_KEY_BYTES);
        assert!(hint.as_bytes().starts_with(&hints_for(NodeId(9))));
        assert_eq!(parse_hint_key(hint.as_bytes()), Some((NodeId(9), stored.clone())));
        assert_eq!(parse_hint_key(stored.as_bytes()), None);
    }
}
