//! Durable records of a node's disk, as the oracle reads them.

use bytes::Bytes;
use quorate_core::{Object, StorageKey};

use crate::records::decode_object;

/// A node's disk. The simulated disk implements this trait, so that the oracle does not depend on
/// the simulated disk's type.
pub trait DurableRecords: Send + Sync {
    /// Returns the committed record under `key`.
    fn durable_record(&self, key: &[u8]) -> Option<Bytes>;
}

/// Returns the object that a disk durably holds under `key`; the empty object if there is none.
pub(super) fn durable_object(disk: &dyn DurableRecords, key: &StorageKey) -> Object {
    let record = disk.durable_record(key.as_bytes());
    record.and_then(|bytes| decode_object(&bytes)).unwrap_or_default()
}
