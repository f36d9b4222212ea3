//! The task that builds hash trees: of all partitions at the start, and of partitions whose trees
//! were reset later.

use std::time::Duration;

use bytes::Bytes;
use quorate_core::event::EventKind;
use quorate_core::key::Table;
use quorate_core::{PartitionId, StorageKey};

use crate::state::commit_barrier::all_committed;
use crate::state::hash_trees::ScannedPartition;
use crate::state::scan_pages::{PageBounds, ScanPages};
use crate::state::shared::Shared;

/// Records that are read at a time. The event loop serves requests between pages.
const PAGE: PageBounds = PageBounds { records: 256, bytes: 512 * 1024 };
/// Time between checks for trees that were reset.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// Pause after a page that could not be read.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Builds all trees at the start, and trees that are reset later. Runs until the node stops.
pub(crate) async fn keep_built(shared: &Shared) {
    build(shared).await;
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        for partition in shared.all_partitions() {
            if !shared.trees.is_built(partition) {
                // The trees keep a list of the changes since the reset only. Earlier changes must
                // come from the scan, which finds them once they are committed.
                all_committed(&*shared.engine).await;
                rebuild(shared, partition).await;
            }
        }
    }
}

/// Reads all objects once, in pages, and builds the tree of each partition.
async fn build(shared: &Shared) {
    let partitions = shared.partitions();
    let mut next = 0u32;
    let mut scanned = ScannedPartition::default();
    let mut pages = ScanPages::under(vec![Table::Objects as u8], PAGE);
    loop {
        let page = match pages.next(&*shared.engine) {
            Ok(Some(page)) => page,
            Ok(None) => break,
            Err(error) => {
                shared.emit(None, EventKind::StorageFailed { detail: error.to_string() });
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            }
        };
        for (key, object) in &page.records {
            let Some(key) = key_of(shared, key) else { continue };
            while next < u32::from(key.partition().0) {
                shared.trees.finish(PartitionId(next as u16), std::mem::take(&mut scanned));
                next += 1;
            }
            scanned.add(key, object);
        }
        if page.more {
            tokio::task::yield_now().await;
        }
    }
    while next < partitions {
        shared.trees.finish(PartitionId(next as u16), std::mem::take(&mut scanned));
        next += 1;
    }
}

/// Builds the trees of one partition. Does nothing if the partition cannot be read.
async fn rebuild(shared: &Shared, partition: PartitionId) {
    let mut scanned = ScannedPartition::default();
    let mut pages = ScanPages::under(StorageKey::partition_start(partition), PAGE);
    loop {
        let page = match pages.next(&*shared.engine) {
            Ok(Some(page)) => page,
            Ok(None) => break,
            Err(_) => return,
        };
        for (key, object) in &page.records {
            if let Some(key) = key_of(shared, key) {
                scanned.add(key, object);
            }
        }
        if page.more {
            tokio::task::yield_now().await;
        }
    }
    shared.trees.finish(partition, scanned);
}

/// Parses the storage key of an object. `None` if the key is malformed, or if the ring does not
/// have the partition that it names.
fn key_of(shared: &Shared, key: &Bytes) -> Option<StorageKey> {
    StorageKey::from_peer(key).filter(|key| shared.has_partition(key.partition()))
}
