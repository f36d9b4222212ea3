//! A bucket that gets another n, or other quorums, while it has keys: everybody gives what they hold of it to those who are to
//! hold it, before anybody reads or writes it again.

use std::rc::Rc;

use bytes::Bytes;
use quorate_core::event::EventKind;
use quorate_core::request::PeerError;
use quorate_core::{Layout, NodeId, PartitionId, StorageKey};

use super::give::{PAGE_TIMEOUT, PAUSE, give, readable};
use crate::node::Node;
use crate::state::commit_barrier::all_committed;
use crate::state::scan_pages::{PageBounds, ScanPages};

const PAGE: PageBounds = PageBounds { records: 256, bytes: 128 * 1024 };

/// Gives all that this node holds of a bucket to everybody who is to hold it by the newest layout, which says another n than
/// the one before, or other quorums. Nobody reads or writes the bucket until all have done so; mostly it is new, and there is
/// nothing. False if somebody has not taken it yet.
pub(crate) async fn backfill_bucket(node: &Rc<Node>, newest: &Layout, bucket: &str) -> bool {
    let shared = &node.shared;
    // What was taken from those who did not know is on the disk once it is committed.
    all_committed(&*shared.engine).await;
    for partition in shared.all_partitions() {
        if let Err((peer, error)) = backfill_partition(node, newest, partition, bucket).await {
            let (peer, reason) = (shared.view().name_of(peer), format!("keys of bucket {bucket:?}: {error}"));
            shared.emit(None, EventKind::RepairFailed { peer, reason });
            tokio::time::sleep(PAUSE).await;
            return false;
        }
        tokio::task::yield_now().await;
    }
    true
}

async fn backfill_partition(
    node: &Rc<Node>,
    newest: &Layout,
    partition: PartitionId,
    bucket: &str,
) -> Result<(), (NodeId, PeerError)> {
    let this = node.shared.node();
    let targets: Vec<NodeId> =
        newest.replicas_for(partition, bucket).iter().copied().filter(|&replica| replica != this).collect();
    let mut pages = ScanPages::under(StorageKey::prefix_start(partition, bucket, b""), PAGE);
    loop {
        let valid_until_ms = node.shared.valid_until_ms(PAGE_TIMEOUT);
        let page = pages.next(&*node.shared.engine);
        let page = page.map_err(|error| (this, PeerError::Storage { detail: error.to_string() }))?;
        let Some(page) = page else { return Ok(()) };
        let all = page.records.iter().filter_map(|(key, object)| Some((readable(key, object)?, object)));
        let to_each: Vec<(NodeId, StorageKey, Bytes)> = all
            .flat_map(|(key, object)| targets.iter().map(move |&to| (to, key.clone(), object.clone())))
            .collect();
        give(node, &to_each, valid_until_ms).await?;
    }
}
