//! Fingerprints of the partitions that a node holds, for comparing replicas in tests.

use std::collections::BTreeMap;

use quorate_core::codec::decode_object;
use quorate_core::request::PartitionFingerprint;
use quorate_core::storage::StorageError;
use quorate_core::{RequestError, StorageKey};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::state::scan_pages::{PageBounds, ScanPages};
use crate::state::shared::Shared;

/// Records that are read at a time.
const PAGE: PageBounds = PageBounds { records: 1_000, bytes: 1024 * 1024 };

/// Computes one fingerprint for each partition and each n (replicas of a bucket's keys) of which
/// this node holds records. Yields between pages.
///
/// # Errors
/// `StorageFailed` if a record cannot be read.
pub(crate) async fn fingerprint(shared: &Shared) -> Result<Vec<PartitionFingerprint>, RequestError> {
    let failed = |error: StorageError| RequestError::StorageFailed { detail: error.to_string() };
    let replicas = shared.view().newest().replicas();
    let mut found = Vec::new();
    for partition in shared.all_partitions() {
        let mut prints: BTreeMap<u8, PartitionFingerprint> = BTreeMap::new();
        let mut pages = ScanPages::under(StorageKey::partition_start(partition), PAGE);
        while let Some(page) = pages.next(&*shared.engine).map_err(failed)? {
            for (key, object) in &page.records {
                let record = decode_object(object)
                    .map_err(|error| RequestError::StorageFailed { detail: error.to_string() })?;
                let n = shared.n_of(bucket_of(key)).min(replicas);
                let fresh = PartitionFingerprint { partition, n, records: 0, digest: 0 };
                let print = prints.entry(n).or_insert(fresh);
                print.records += 1;
                print.digest ^= xxh3_64_with_seed(key, record.object.digest().0);
            }
            if page.more {
                tokio::task::yield_now().await;
            }
        }
        found.extend(prints.into_values());
    }
    Ok(found)
}

/// Returns the bucket's name in an object's storage key. Empty if the name is malformed; such a
/// bucket has the default definition.
fn bucket_of(key: &[u8]) -> &str {
    let rest = key.get(3..).unwrap_or_default();
    let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
    std::str::from_utf8(&rest[..end]).unwrap_or_default()
}
