//! What a node holds of one partition, summed up so that two nodes find their differences by comparing little.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::object::Digest;

/// Leaves of a tree. A partition of a million keys in 1024 partitions has about 15 keys a leaf.
pub const LEAVES: usize = 64;

/// A hash tree of two levels over (storage key, object digest). Its leaves are XORs, so that a write changes them by its
/// old and its new digest alone: the tree is kept up in the same step as the write, and no key is read for it.
///
/// Source: Dynamo §4.7; the XOR in place of a hash over a sorted list is what makes it incremental.
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
    /// Adds what is stored under a key, or takes it out if it is in: the same step.
    pub fn toggle(&mut self, key: &[u8], digest: Digest) {
        self.leaves[leaf_of(key)] ^= entry_hash(key, digest);
    }

    /// Equal on two nodes if and only if they hold the same (as sure as 64 bits are).
    pub fn root(&self) -> u64 {
        self.leaves.iter().fold(0, |root, leaf| root ^ leaf)
    }

    /// The leaves, by number.
    pub fn leaves(&self) -> &[u64; LEAVES] {
        &self.leaves
    }

    /// A bit for each leaf that differs from the other side's.
    pub fn differing(&self, theirs: &[u64]) -> u64 {
        let pairs = self.leaves.iter().zip(theirs).enumerate();
        pairs.filter(|(_, (ours, theirs))| ours != theirs).fold(0, |mask, (at, _)| mask | 1 << at)
    }
}

/// Which leaf a storage key belongs to.
pub fn leaf_of(key: &[u8]) -> usize {
    (xxh3_64(key) >> 58) as usize
}

/// What one record adds to its leaf.
pub fn entry_hash(key: &[u8], digest: Digest) -> u64 {
    xxh3_64_with_seed(key, digest.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changes in any order make the same tree as writing the end state at once, and a difference shows in its leaf.
    #[test]
    fn a_tree_knows_only_what_is_there_now() {
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
