//! Decides when a tombstone may be collected. Remembers since when the replicas agree, and waits for
//! the grace period.

use std::collections::BTreeMap;

use crate::key::StorageKey;
use crate::object::Digest;
use crate::planted::{Bug, planted};

/// Tombstones for which all replicas agreed once, and which wait for a second agreement.
///
/// A tombstone is collected only if two conditions hold:
/// - Every replica durably held exactly the same state twice, a grace period apart.
/// - No node holds a hint for the key, or recently deleted a hint of its partition.
///
/// The first agreement shows that no replica has missed the delete. At that time, messages with
/// older versions may still be under way. They are refused by the time of the second agreement,
/// because a message is void after less than a grace period.
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
    /// Notes that all replicas hold exactly this state now, under this layout. Returns true if they
    /// also did so a grace period ago, and no other state or layout was noted in between.
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

    /// Notes that the replicas do not agree, or that one of them could not be asked. Earlier
    /// agreements no longer count.
    pub fn disagreed(&mut self, key: &StorageKey) {
        self.seen.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Key, PartitionId};

    /// Two agreements must be a grace period apart, on one state under one layout. After any other
    /// state in between, the period starts again.
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
