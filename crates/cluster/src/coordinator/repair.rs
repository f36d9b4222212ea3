//! Read repair: pushing a merged object to replicas that hold less. By merging, never by overwriting.

use std::rc::Rc;

use bytes::Bytes;
use quorate_core::event::EventKind;
use quorate_core::quorum::{Step, WriteQuorum};
use quorate_core::request::{PeerReply, PeerWrite, WritePurpose};
use quorate_core::{NodeId, ReadRepair, RequestError};
use tokio::time::Instant;

use super::Place;
use super::read::Read;
use crate::gather::Gather;
use crate::node::Node;

/// Brings the stale repliers of a read up to date, as the bucket says. Returns whom it sent the merged object.
///
/// # Errors
/// With blocking repair, `DeadlineExceeded` if fewer than R replicas hold the merged object in time: what is shown to
/// one client must not be missed by the next.
pub(crate) async fn repair(
    node: &Rc<Node>,
    place: &Place,
    read: &Read,
    required: u8,
    deadline: Instant,
) -> Result<Vec<NodeId>, RequestError> {
    let Some(object) = read.encoded.as_ref().filter(|_| !read.stale.is_empty()) else {
        return Ok(Vec::new());
    };
    let policy = place.bucket.definition.read_repair;
    if policy == ReadRepair::Off {
        return Ok(Vec::new());
    }
    node.shared.emit(None, EventKind::ReadRepaired { replicas: read.stale.len() });
    let gather = Gather::default();
    for &replica in &read.stale {
        push(node, place, object, replica, deadline, &gather);
    }
    if policy == ReadRepair::Background {
        return Ok(read.stale.clone());
    }

    let begun = Instant::now();
    let mut pushed = read.stale.clone();
    let spares: Vec<NodeId> =
        place.live(node).into_iter().filter(|other| !read.replied.contains(other)).collect();
    let mut spares = spares.into_iter();
    let mut holding = WriteQuorum::new(required);
    (0..read.replied.len() + spares.len()).for_each(|_| holding.sent());
    let mut step = Step::Wait;
    for &replica in read.replied.iter().filter(|replica| !read.stale.contains(replica)) {
        step = holding.ack(replica);
    }
    while step != Step::Reached {
        step = match gather.next(deadline).await {
            Some((from, Ok(PeerReply::Acked))) => holding.ack(from),
            Some(_) => {
                // Another live replica may hold it in place of the one that failed.
                if let Some(spare) = spares.next() {
                    push(node, place, object, spare, deadline, &gather);
                    pushed.push(spare);
                }
                holding.failure()
            }
            None => Step::Impossible,
        };
        if step == Step::Impossible {
            let received = holding.acked().len() as u8;
            let after_ms = begun.elapsed().as_millis() as u32;
            return Err(RequestError::DeadlineExceeded { needed: required, received, after_ms });
        }
    }
    Ok(pushed)
}

/// Sends a node the merged object: a replica to merge it, anybody else to keep it for a replica that can't be reached. It
/// may be this node itself.
pub(crate) fn push(
    node: &Rc<Node>,
    place: &Place,
    object: &Bytes,
    to: NodeId,
    deadline: Instant,
    gather: &Gather,
) {
    let purpose = match place.replicas.contains(&to) {
        true => WritePurpose::Replicate,
        false => WritePurpose::Hint(place.missing(node)),
    };
    let timeout = deadline.saturating_duration_since(Instant::now());
    let valid_until_ms = node.shared.valid_until_ms(timeout);
    let write = PeerWrite { key: place.key.clone(), object: object.clone(), purpose, valid_until_ms };
    node.send_write(to, write, timeout, gather.slot(to));
}
