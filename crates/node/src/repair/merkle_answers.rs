//! Answers about this node's hash trees, for a peer that compares its own hash trees with them.

use bytes::Bytes;
use quorate_core::PartitionId;
use quorate_core::codec::decode_object;
use quorate_core::key::{StorageKey, end_of_prefix};
use quorate_core::request::{
    DigestPage, DigestsOf, Likeness, PeerError, PeerReply, PeerResult, TreeName, TreeRoot, TreeState,
};
use quorate_core::storage::Range;
use quorate_core::tree::leaf_of;

use crate::state::hash_trees::RecordState;
use crate::state::scan_scheduler::{Scanned, cost_of};
use crate::state::shared::Shared;

/// Largest number of records that are read for one page of digests.
const PAGE_RECORDS: usize = 256;
/// Largest number of bytes of records that are read for one page of digests.
const PAGE_BYTES: usize = 128 * 1024;

/// Compares the roots of a peer's hash trees with the roots of this node's trees.
pub(crate) fn compare(shared: &Shared, theirs: &[TreeRoot]) -> PeerResult {
    let view = shared.view();
    // This node may have forgotten records of a partition. It also lacks records of a partition
    // that it gains in a layout change and has not copied yet.
    let may_lack_records = |partition: PartitionId| {
        let known = shared.has_partition(partition);
        shared.is_recovering(partition)
            || (known && shared.layouts.with(|layouts| layouts.has_to_copy(partition)))
    };
    let state = |root: &TreeRoot| {
        // A node cannot compare a partition that it does not hold.
        let known =
            shared.has_partition(root.tree.partition) && view.holds(shared.node(), root.tree.partition);
        let likeness = match known.then(|| shared.trees.root(root.tree)).flatten() {
            None => Likeness::Unknown,
            Some(ours) if ours == root.root => Likeness::Same,
            Some(_) => Likeness::Differs,
        };
        TreeState { likeness, recovering: may_lack_records(root.tree.partition) }
    };
    Ok(PeerReply::Trees(theirs.iter().map(state).collect()))
}

/// Answers with the leaves of one of this node's trees.
pub(crate) fn leaves(shared: &Shared, tree: TreeName) -> PeerResult {
    if !shared.has_partition(tree.partition) {
        return Err(PeerError::Refused { detail: "the cluster has no partition of this number".into() });
    }
    let leaves = shared.trees.tree(tree).map(|tree| PeerReply::Leaves(tree.leaves().to_vec()));
    leaves.ok_or(PeerError::Recovering)
}

/// Reads a page of this node's keys and digests.
pub(crate) fn digest_page(shared: &Shared, wanted: &DigestsOf) -> Scanned<Result<DigestPage, PeerError>> {
    let mut cost = 0;
    Scanned { found: read_digests(shared, wanted, &mut cost), cost }
}

fn read_digests(shared: &Shared, wanted: &DigestsOf, cost: &mut usize) -> Result<DigestPage, PeerError> {
    let begin = StorageKey::partition_start(wanted.tree.partition);
    if !wanted.after.is_empty() && !wanted.after.starts_with(&begin) {
        return Err(PeerError::Refused {
            detail: "the key after which the page begins is in another partition".into(),
        });
    }
    let end = end_of_prefix(&begin);
    let after = !wanted.after.is_empty();
    let range = Range {
        start: if after { &wanted.after } else { &begin },
        after,
        end: end.as_deref(),
        limit: PAGE_RECORDS,
        max_bytes: PAGE_BYTES,
    };
    let page = shared.engine.scan(range).map_err(|error| PeerError::Storage { detail: error.to_string() })?;
    *cost = cost_of(&page.records);
    let mut entries = Vec::new();
    for (key, object) in &page.records {
        if wanted.leaves & (1 << leaf_of(key)) == 0 {
            continue;
        }
        let Some((named, held)) = readable_state(shared, key, object) else { continue };
        let n = shared.n_of(named.bucket());
        if n == wanted.tree.n && !shared.was_collected(&named, held.digest) {
            entries.push((key.clone(), held.digest));
        }
    }
    let next = match page.records.last() {
        Some((last, _)) if page.more => last.clone(),
        _ => Bytes::new(),
    };
    Ok(DigestPage { entries, next })
}

/// Returns a record's key and state. A damaged record counts as absent, so that the peer sends its
/// own record, which replaces the damaged one.
fn readable_state(shared: &Shared, key: &Bytes, object: &Bytes) -> Option<(StorageKey, RecordState)> {
    let key = StorageKey::from_peer(key).filter(|key| shared.has_partition(key.partition()))?;
    let record = decode_object(object).ok()?;
    Some((key, RecordState::of(&record.object)))
}
