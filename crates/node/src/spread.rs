//! A bucket that gets another n, or other quorums, while it has keys: everybody gives what they hold of it to those who are to
//! hold it, before anybody reads or writes it again.

use std::rc::Rc;

use bytes::Bytes;
use quorate_core::event::EventKind;
use quorate_core::key::end_of_prefix;
use quorate_core::request::PeerError;
use quorate_core::storage::Range;
use quorate_core::{Layout, NodeId, PartitionId, StorageKey};

use crate::node::Node;
use crate::transfer::{PAGE_BYTES, PAGE_RECORDS, PAGE_TIMEOUT, PAUSE, give, readable};
use crate::trees::all_committed;

/// Gives all that this node holds of a bucket to everybody who is to hold it by the newest layout, which says another n than
/// the one before, or other quorums. Nobody reads or writes the bucket until all have done so; mostly it is new, and there is
/// nothing. False if somebody has not taken it yet.
pub(crate) async fn spread_bucket(node: &Rc<Node>, newest: &Layout, bucket: &str) -> bool {
    let shared = &node.shared;
    // What was taken from those who did not know is on the disk once it is committed.
    all_committed(shared).await;
    for partition in shared.all_partitions() {
        if let Err((peer, error)) = spread_partition(node, newest, partition, bucket).await {
            let (peer, reason) = (shared.view().name_of(peer), format!("keys of bucket {bucket:?}: {error}"));
            shared.emit(None, EventKind::RepairFailed { peer, reason });
            tokio::time::sleep(PAUSE).await;
            return false;
        }
        tokio::task::yield_now().await;
    }
    true
}

async fn spread_partition(
    node: &Rc<Node>,
    newest: &Layout,
    partition: PartitionId,
    bucket: &str,
) -> Result<(), (NodeId, PeerError)> {
    let this = node.shared.node();
    let targets: Vec<NodeId> =
        newest.replicas_for(partition, bucket).iter().copied().filter(|&replica| replica != this).collect();
    let mut start = StorageKey::prefix_start(partition, bucket, b"");
    let end = end_of_prefix(&start);
    let mut after = false;
    loop {
        let (limit, max_bytes) = (PAGE_RECORDS as usize, PAGE_BYTES as usize);
        let range = Range { start: &start, after, end: end.as_deref(), limit, max_bytes };
        let valid_until_ms = node.shared.valid_until_ms(PAGE_TIMEOUT);
        let page = node
            .shared
            .engine
            .scan(range)
            .map_err(|error| (this, PeerError::Storage { detail: error.to_string() }))?;
        let all = page.records.iter().filter_map(|(key, object)| Some((readable(key, object)?, object)));
        let to_each: Vec<(NodeId, StorageKey, Bytes)> = all
            .flat_map(|(key, object)| targets.iter().map(move |&to| (to, key.clone(), object.clone())))
            .collect();
        give(node, &to_each, valid_until_ms).await?;
        match page.records.last() {
            Some((last, _)) if page.more => (start, after) = (last.to_vec(), true),
            _ => return Ok(()),
        }
    }
}
