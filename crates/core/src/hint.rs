//! Hints: objects that a fallback keeps for a replica that was unreachable.

use crate::key::{StorageKey, Table};
use crate::layout::NodeId;

/// Where the hint for `target` of an object's storage key is stored. Hints for one target lie side by side, and hints
/// for one key merge.
pub fn hint_key(target: NodeId, key: &StorageKey) -> StorageKey {
    let mut rest = Vec::with_capacity(8 + key.as_bytes().len());
    rest.extend_from_slice(&target.0.to_be_bytes());
    rest.extend_from_slice(&key.as_bytes()[1..]);
    StorageKey::of_table(Table::Hints, &rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Key, MAX_BUCKET_BYTES, MAX_KEY_BYTES, MAX_STORAGE_KEY_BYTES, PartitionId};

    /// The hint for the longest key of the longest bucket still fits a storage key.
    #[test]
    fn hint_keys_fit() {
        let key = Key::new(&[b'b'; MAX_BUCKET_BYTES], &[1; MAX_KEY_BYTES]).unwrap();
        let stored = StorageKey::of(PartitionId(7), &key);
        assert!(hint_key(NodeId(9), &stored).as_bytes().len() <= MAX_STORAGE_KEY_BYTES);
    }
}
