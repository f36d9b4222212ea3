//! Hash trees over a partition's records. Two nodes find their differences by comparing few hashes.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::object::Digest;

/// Number of leaves of a tree. With a million keys in 1024 partitions, a leaf covers about 15 keys.
pub const LEAVES: usize = 64;

/// A hash tree of two levels, leaves and root, over (storage key, object digest).
///
/// Each leaf is the XOR of its records' hashes. So a leaf is updated from the old and the new
/// digest of one record. The tree is updated together with the record, and no other record is read
/// for that.
///
/// Source: Dynamo §4.7; the XOR, instead of a hash over a sorted list, makes the update of one
/// record cheap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HashTree {
    leaves: Box<[u64; LEAVES]>,
}

impl Default for HashTree {
    fn default() -> Self {
        HashTree { leaves: Box::new([0; LEAVES]) }
    }
}

impl HashTree {
    /// Adds a record, or removes it if the tree has it: both are the same XOR.
    pub fn toggle(&mut self, key: &[u8], digest: Digest) {
        self.leaves[leaf_of(key)] ^= entry_hash(key, digest);
    }

    /// Returns the root. It is equal on two nodes if and only if they hold the same records (with
    /// the certainty of a 64-bit hash).
    pub fn root(&self) -> u64 {
        self.leaves.iter().fold(0, |root, leaf| root ^ leaf)
    }

    /// Returns the leaves, by number.
    pub fn leaves(&self) -> &[u64; LEAVES] {
        &self.leaves
    }

    /// Returns a mask with bit `i` set for each leaf `i` that differs from the other node's.
    pub fn differing(&self, theirs: &[u64]) -> u64 {
        let pairs = self.leaves.iter().zip(theirs).enumerate();
        pairs.filter(|(_, (ours, theirs))| ours != theirs).fold(0, |mask, (at, _)| mask | 1 << at)
    }
}

/// Returns the number of the leaf of a storage key.
pub fn leaf_of(key: &[u8]) -> usize {
    (xxh3_64(key) >> 58) as usize
}

/// Returns the hash that one record contributes to its leaf.
pub fn entry_hash(key: &[u8], digest: Digest) -> u64 {
    xxh3_64_with_seed(key, digest.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree depends only on the current records, not on the order of changes. A difference
    /// shows in the leaf of its key.
    #[test]
    fn a_tree_depends_only_on_the_current_records() {
        let (mut changed, mut written) = (HashTree::default(), HashTree::default());
        for key in 0..500u32 {
            let key = key.to_be_bytes();
            changed.toggle(&key, Digest(1));
            changed.toggle(&key, Digest(1));
            changed.toggle(&key, Digest(2));
        }
        for key in (0..500u32).rev() {
            written.toggle(&key.to_be_bytes(), Digest(2));
        }
        assert_eq!(changed, written);
        written.toggle(b"one more", Digest(7));
        assert_ne!(changed.root(), written.root());
        assert_eq!(changed.differing(written.leaves()), 1 << leaf_of(b"one more"));
    }
}
