//! When a replica that may have forgotten may answer again.

use std::collections::BTreeMap;

use crate::member::NodeId;

/// How many other replicas that have not forgotten anything a replica must merge with, so that it knows again of every
/// write that W acked and of every value that R showed, whichever of them it had a part in.
pub fn others_needed(n: u8, w: u8, r: u8) -> usize {
    usize::from((n.saturating_sub(w)).max(n.saturating_sub(r))) + 1
}

/// How many replicas a set of `n` must be asked of, so that every write that `w` of them acked is among what they hold.
pub fn sources_needed(n: u8, w: u8) -> usize {
    usize::from(n.saturating_sub(w)) + 1
}

/// True if a replica with these `others` has merged with enough: with `needed` that were not recovering themselves, or with
/// all of them in any state (what nobody has left can't be waited for).
///
/// `merged`: with whom it merged all they hold, since its start, and whether they were recovering then.
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

    /// With five replicas and majorities, three that remember suffice; of those that forgot, all are needed.
    #[test]
    fn those_who_remember_count_for_those_who_do_not() {
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

    /// A node without other replicas has nobody to ask.
    #[test]
    fn a_lone_replica_has_recovered() {
        assert!(has_recovered(&[], others_needed(1, 1, 1), &BTreeMap::new()));
    }
}
