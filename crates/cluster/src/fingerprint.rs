//! A digest of all that a node holds, a partition each, to compare replicas by.

use quorate_core::PartitionId;
use quorate_core::codec::decode_object;
use quorate_core::key::end_of_prefix;
use quorate_core::request::PartitionFingerprint;
use quorate_core::storage::{Range, StorageError};
use quorate_core::{RequestError, StorageKey};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::shared::Shared;

const PAGE_RECORDS: usize = 1_000;
const PAGE_BYTES: usize = 1024 * 1024;

/// Reads every record of every partition in which this node holds any. Yields between pages.
pub(crate) async fn fingerprint(shared: &Shared) -> Result<Vec<PartitionFingerprint>, RequestError> {
    let failed = |error: StorageError| RequestError::StorageFailed {
        detail: error.to_string(),
    };
    let mut found = Vec::new();
    for partition in 0..shared.layout.partitions() {
        let partition = PartitionId(partition as u16);
        let mut print = PartitionFingerprint {
            partition,
            records: 0,
            digest: 0,
        };
        let begin = StorageKey::partition_start(partition);
        let end = end_of_prefix(&begin);
        let mut start = begin.clone();
        let mut after = false;
        loop {
            let range = Range {
                start: &start,
                after,
                end: end.as_deref(),
                limit: PAGE_RECORDS,
                max_bytes: PAGE_BYTES,
            };
            let page = shared.engine.scan(range).map_err(failed)?;
            for (key, object) in &page.records {
                let record = decode_object(object).map_err(|error| RequestError::StorageFailed {
                    detail: error.to_string(),
                })?;
                print.records += 1;
                print.digest ^= xxh3_64_with_seed(key, record.object.digest().0);
            }
            match page.records.last() {
                Some((last, _)) if page.more => (start, after) = (last.to_vec(), true),
                _ => break,
            }
            tokio::task::yield_now().await;
        }
        if print.records > 0 {
            found.push(print);
        }
    }
    Ok(found)
}
