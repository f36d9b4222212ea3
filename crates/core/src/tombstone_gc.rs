//! When a tombstone may go: the part of the conditions that is memory and time.

use std::collections::BTreeMap;

use crate::key::StorageKey;
use crate::object::Digest;
use crate::planted::{Bug, planted};

/// Tombstones that all replicas were found to hold alike once, waiting to be found so again.
///
/// A tombstone goes only if every replica held durably and exactly the same state twice, a grace period apart, and
/// nobody holds a hint for the key or lately let go of one. The first keeps it for whoever missed the delete; the second
/// for what was on its way meanwhile: every message that carries an object is void after less than the grace period.
#[derive(Default, Debug)]
pub struct Candidates {
    seen: BTreeMap<StorageKey, Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    digest: Digest,
    at_ms: u64,
    layout: u64,
}

impl Candidates {
    /// All replicas hold exactly this now, under this layout. True if they also did a grace period ago and no other state
    /// was seen, nor another layout, in between.
    pub fn agreed(
        &mut self,
        key: &StorageKey,
        digest: Digest,
        layout: u64,
        now_ms: u64,
        grace_ms: u64,
    ) -> bool {
        if planted(Bug::GcAsksOnce) {
            return true;
        }
        match self.seen.get(key) {
            Some(seen) if seen.digest == digest && seen.layout == layout => {
                now_ms.saturating_sub(seen.at_ms) >= grace_ms
            }
            _ => {
                self.seen.insert(key.clone(), Seen { digest, at_ms: now_ms, layout });
                false
            }
        }
    }

    /// They do not agree, or somebody could not be asked: what was seen before counts for nothing.
    pub fn disagreed(&mut self, key: &StorageKey) {
        self.seen.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Key, PartitionId};

    /// Two agreements a grace period apart, on one state under one layout; anything in between starts over.
    #[test]
    fn agreement_must_last_a_grace_period() {
        let key = StorageKey::of(PartitionId(0), &Key::new(b"b", b"k").unwrap());
        let mut candidates = Candidates::default();
        assert!(!candidates.agreed(&key, Digest(1), 7, 1_000, 100));
        assert!(!candidates.agreed(&key, Digest(1), 7, 1_099, 100));
        assert!(candidates.agreed(&key, Digest(1), 7, 1_100, 100));
        assert!(!candidates.agreed(&key, Digest(2), 7, 1_200, 100));
        candidates.disagreed(&key);
        assert!(!candidates.agreed(&key, Digest(2), 7, 1_300, 100));
        assert!(!candidates.agreed(&key, Digest(2), 8, 1_500, 100));
        assert!(candidates.agreed(&key, Digest(2), 8, 1_600, 100));
    }
}
