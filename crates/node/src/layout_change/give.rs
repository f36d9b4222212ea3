//! Sends objects to the nodes that have to hold them, and waits until all are durable.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use quorate_core::codec::decode_object;
use quorate_core::request::{PeerError, PeerRequest, PeerWrite, WritePurpose};
use quorate_core::{NodeId, StorageKey};
use tokio::time::Instant;

use crate::gather::Gather;
use crate::node::Node;

/// Pause after a peer or the engine failed, or while the remaining peers cannot be reached.
pub(super) const PAUSE: Duration = Duration::from_millis(200);

/// Largest number of records that are sent together, as one batch. Clients' writes that arrive
/// meanwhile wait until the batch is committed, so a batch is small.
const BATCH_RECORDS: usize = 32;
/// Largest number of bytes of a batch.
const BATCH_BYTES: usize = 32 * 1024;

/// Timeout of one batch, and time for which the objects of a page are valid after they were read.
/// Receivers refuse the objects after this time.
pub(super) const PAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns the storage key of a record. `None` if the record is damaged: repair replaces it from
/// other replicas.
pub(super) fn key_if_readable(key: &Bytes, object: &Bytes) -> Option<StorageKey> {
    decode_object(object).ok()?;
    StorageKey::from_peer(key)
}

/// Returns the size of an object and its key together, in bytes.
pub(super) fn size_of((_, key, object): &(NodeId, StorageKey, Bytes)) -> u64 {
    (key.as_bytes().len() + object.len()) as u64
}

/// Returns the number of objects in the next batch, from the first of `objects` on. It is at least
/// 1, so that an object is sent even if it is larger than a batch.
pub(super) fn batch_len(objects: &[(NodeId, StorageKey, Bytes)]) -> usize {
    let mut bytes = 0;
    let fits = |object: &&(NodeId, StorageKey, Bytes)| {
        bytes += size_of(object) as usize;
        bytes <= BATCH_BYTES
    };
    objects.iter().take(BATCH_RECORDS).take_while(fits).count().max(1)
}

/// Sends objects, each to one node, and waits until all are durable there. Compute `valid_until_ms`
/// before you read the objects: the receivers refuse them after this time.
///
/// # Errors
/// The node that did not store an object, and its error. After a timeout: the first object's node.
pub(super) async fn give(
    node: &Rc<Node>,
    objects: &[(NodeId, StorageKey, Bytes)],
    valid_until_ms: u64,
) -> Result<(), (NodeId, PeerError)> {
    let acked = Gather::default();
    for (to, key, object) in objects.iter().cloned() {
        let write = PeerWrite { key, object, purpose: WritePurpose::HandOff, valid_until_ms, layout: 0 };
        node.send(to, PeerRequest::Write(write), PAGE_TIMEOUT, acked.reply_to(to));
    }
    let deadline = Instant::now() + PAGE_TIMEOUT;
    for _ in objects {
        match acked.next(deadline).await {
            Some((_, Ok(_))) => {}
            Some((from, Err(error))) => return Err((from, error)),
            None => return Err((objects[0].0, PeerError::Expired)),
        }
    }
    Ok(())
}
