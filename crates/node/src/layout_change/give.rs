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

pub(super) const PAUSE: Duration = Duration::from_millis(200);

/// What is stored of it at a time: clients' writes that come meanwhile wait for its commit.
const GIVEN_RECORDS: usize = 32;

const GIVEN_BYTES: usize = 32 * 1024;

pub(super) const PAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The record's key, unless the record is damaged: that others have to mend.
pub(super) fn readable(key: &Bytes, object: &Bytes) -> Option<StorageKey> {
    decode_object(object).ok()?;
    StorageKey::from_peer(key)
}

pub(super) fn size((_, key, object): &(NodeId, StorageKey, Bytes)) -> u64 {
    (key.as_bytes().len() + object.len()) as u64
}

/// How many of some objects are stored together.
pub(super) fn bounded(objects: &[(NodeId, StorageKey, Bytes)]) -> usize {
    let mut bytes = 0;
    let fits = |object: &&(NodeId, StorageKey, Bytes)| {
        bytes += size(object) as usize;
        bytes <= GIVEN_BYTES
    };
    objects.iter().take(GIVEN_RECORDS).take_while(fits).count().max(1)
}

/// Sends objects, each to one node, and waits until all are stored durably. `valid_until_ms`: as of when they were read.
///
/// # Errors
/// Who did not take one, and why.
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
