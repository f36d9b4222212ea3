//! The condition under which a replica that may have forgotten records answers reads again.

use std::collections::BTreeMap;

use crate::member::NodeId;

/// Returns max(n - w, n - r) + 1: the number of other replicas that a recovering replica must merge
/// with. Only replicas that have forgotten nothing count.
///
/// The replica then has every write that W replicas acked, and every value that a read of R
/// replicas showed. This includes the writes and reads in which the recovering replica itself took
/// part.
pub fn others_needed(n: u8, w: u8, r: u8) -> usize {
    usize::from((n.saturating_sub(w)).max(n.saturating_sub(r))) + 1
}

/// Returns the number of replicas, out of `n`, whose records must be read to have every write that
/// `w` of them acked: n - w + 1.
pub fn sources_needed(n: u8, w: u8) -> usize {
    usize::from(n.saturating_sub(w)) + 1
}

/// True if a replica has merged with enough of the `others`: with `needed` that were not
/// recovering, or with all of them in any state. After a merge with all of them, no replica is left
/// that could have a missing record.
///
/// `merged`: the other replicas of which all records were merged since this replica started. The
/// value is true if the other replica was recovering at that time.
pub fn has_recovered(others: &[NodeId], needed: usize, merged: &BTreeMap<NodeId, bool>) -> bool {
    let whole = others.iter().filter(|other| merged.get(other) == Some(&false)).count();
    whole >= needed || others.iter().all(|other| merged.contains_key(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);
    const D: NodeId = NodeId(4);

    /// With five replicas and majorities, merging with three complete ones suffices. If some are
    /// recovering, all are needed.
    #[test]
    fn enough_complete_replicas_or_all_replicas_are_needed() {
        let others = [A, B, C, D];
        let needed = others_needed(5, 3, 3);
        assert_eq!(needed, 3);
        let mut merged = BTreeMap::from([(A, false), (B, false), (C, true)]);
        assert!(!has_recovered(&others, needed, &merged));
        merged.insert(C, false);
        assert!(has_recovered(&others, needed, &merged));
        merged = BTreeMap::from([(A, true), (B, true), (C, true)]);
        assert!(!has_recovered(&others, needed, &merged));
        merged.insert(D, true);
        assert!(has_recovered(&others, needed, &merged));
    }

    /// A replica without other replicas has recovered at once.
    #[test]
    fn a_lone_replica_has_recovered() {
        assert!(has_recovered(&[], others_needed(1, 1, 1), &BTreeMap::new()));
    }
}
