//! Bucket backfill: a bucket gets another n or other quorums while it has keys.
//!
//! All nodes give their records of the bucket to its new replicas. No client reads or writes the
//! bucket before that is done.

use std::rc::Rc;

use bytes::Bytes;
use quorate_core::event::EventKind;
use quorate_core::request::PeerError;
use quorate_core::{Layout, NodeId, PartitionId, StorageKey};

use super::give::{PAGE_TIMEOUT, PAUSE, give, key_if_readable};
use crate::node::Node;
use crate::state::commit_barrier::all_committed;
use crate::state::scan_pages::{PageBounds, ScanPages};

/// Records that are read and sent together.
const PAGE: PageBounds = PageBounds { records: 256, bytes: 128 * 1024 };

/// Gives this node's records of a bucket to the bucket's replicas in the newest layout, which
/// changed the bucket's n or quorums. Mostly the bucket is new and has no records. False if a
/// replica has not stored all records yet: the caller must call this again.
pub(crate) async fn backfill_bucket(node: &Rc<Node>, newest: &Layout, bucket: &str) -> bool {
    let shared = &node.shared;
    // Writes that were accepted before all nodes knew the newest layout may still be uncommitted.
    // Wait for the commit, so that the scans find them.
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
        let records =
            page.records.iter().filter_map(|(key, object)| Some((key_if_readable(key, object)?, object)));
        let objects: Vec<(NodeId, StorageKey, Bytes)> = records
            .flat_map(|(key, object)| targets.iter().map(move |&to| (to, key.clone(), object.clone())))
            .collect();
        give(node, &objects, valid_until_ms).await?;
    }
}
