//! Read repair: pushing a merged object to replicas that hold less. By merging, never by overwriting.

use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::Bytes;
use quorate_core::codec::decode_object;
use quorate_core::event::EventKind;
use quorate_core::object::MergeRule;
use quorate_core::quorum::{Step, WriteQuorum};
use quorate_core::request::{PeerReply, PeerRequest, PeerWrite, QuorumSize, WritePurpose};
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
/// one client must not be missed by the next. While a layout changes, R in each of the key's replica sets.
pub(crate) async fn repair(
    node: &Rc<Node>,
    place: &Place,
    read: &Read,
    (wish, required): (QuorumSize, u8),
    deadline: Instant,
) -> Result<Vec<NodeId>, RequestError> {
    let moves = !place.also.is_empty();
    let policy = place.bucket.definition.read_repair;
    let Some(object) = read.encoded.as_ref().filter(|_| policy != ReadRepair::Off) else {
        return Ok(Vec::new());
    };
    // Nobody waits for those whose record is damaged: before they count again they have to ask others.
    for &replica in &read.damaged {
        push(node, place, object, replica, deadline, &Gather::default());
    }
    if read.stale.is_empty() && !moves {
        return Ok(Vec::new());
    }
    if !read.stale.is_empty() {
        node.shared.emit(None, EventKind::ReadRepaired { replicas: read.stale.len() });
    }
    let gather = Gather::default();
    for &replica in &read.stale {
        push(node, place, object, replica, deadline, &gather);
    }
    if policy == ReadRepair::Background {
        return Ok(read.stale.clone());
    }

    let begun = Instant::now();
    let mut pushed = read.stale.clone();
    let elsewhere: Vec<NodeId> = place
        .also
        .iter()
        .flatten()
        .copied()
        .filter(|other| !read.replied.contains(other) && !place.replicas.contains(other))
        .collect::<BTreeSet<NodeId>>()
        .into_iter()
        .collect();
    // Replicas that also are one where the key moves to have to hold it all the same: they are no mere spares then.
    let is_needed = |other: &NodeId| moves && place.also.iter().any(|set| set.contains(other));
    let (needed, spares): (Vec<NodeId>, Vec<NodeId>) =
        place.live(node).into_iter().filter(|other| !read.replied.contains(other)).partition(is_needed);
    let moving: Vec<NodeId> =
        needed.into_iter().chain(elsewhere.into_iter().filter(|&replica| node.is_live(replica))).collect();
    let mut holding = quorum(place, read, wish, required)?;
    for &target in read.replied.iter().chain(&moving).chain(&spares) {
        holding.sent(target);
    }
    let mut spares = spares.into_iter();
    let mut step = holding.step();
    for &replica in read.replied.iter().filter(|replica| !read.stale.contains(replica)) {
        step = holding.ack(replica, replica);
    }
    if step != Step::Reached {
        // Mostly they have it: asking costs them no commit.
        moving.iter().for_each(|&replica| look(node, place, replica, deadline, &gather));
    }
    while step != Step::Reached {
        step = match gather.next(deadline).await {
            Some((from, Ok(PeerReply::Acked))) => holding.ack(from, from),
            Some((from, Ok(PeerReply::Object(theirs)))) if holds(&theirs, read) => holding.ack(from, from),
            Some((from, Ok(PeerReply::Object(_)))) => {
                push(node, place, object, from, deadline, &gather);
                holding.step()
            }
            Some((from, _)) => {
                // Another live replica may hold it in place of the one that failed.
                if let Some(spare) = spares.next() {
                    push(node, place, object, spare, deadline, &gather);
                    pushed.push(spare);
                }
                holding.failure(from)
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

/// Asks a replica what it holds, whatever it may have forgotten.
fn look(node: &Rc<Node>, place: &Place, replica: NodeId, deadline: Instant, gather: &Gather) {
    let slot = gather.slot(replica);
    if replica == node.shared.node() {
        return slot.send(node.replica.fetch(&place.key));
    }
    let timeout = deadline.saturating_duration_since(Instant::now());
    node.transport.send(replica, PeerRequest::Fetch(place.key.clone()), timeout, slot);
}

/// True if what a replica holds has all of the merged object.
fn holds(theirs: &Option<Bytes>, read: &Read) -> bool {
    let Some(bytes) = theirs else { return false };
    if Some(bytes) == read.encoded.as_ref() {
        return true;
    }
    let Ok(record) = decode_object(bytes) else { return false };
    let mut both = record.object.clone();
    both.merge(&read.merged, MergeRule::KeepAll);
    both.digest() == record.object.digest()
}

/// Who has to hold the merged object before it is shown.
fn quorum(place: &Place, read: &Read, wish: QuorumSize, required: u8) -> Result<WriteQuorum, RequestError> {
    if place.also.is_empty() {
        return Ok(WriteQuorum::new(required));
    }
    // A fallback that answered counts where its replica would.
    let mut first = place.replicas.clone();
    first.extend(place.fallbacks_among(&read.replied));
    let mut sets = vec![(required, &first[..])];
    for set in &place.also {
        let n = (set.len() as u8).max(1);
        sets.push((place.bucket.required(wish, place.bucket.definition.r, "r", n)?, &set[..]));
    }
    Ok(WriteQuorum::of_sets(sets.into_iter()))
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
    let purpose = match place.is_target(to) {
        true => WritePurpose::Replicate,
        false => WritePurpose::Hint(place.missing(node)),
    };
    let timeout = deadline.saturating_duration_since(Instant::now());
    let valid_until_ms = node.shared.valid_until_ms(timeout);
    let write = PeerWrite {
        key: place.key.clone(),
        object: object.clone(),
        purpose,
        valid_until_ms,
        layout: place.view.written(),
    };
    node.send_write(to, write, timeout, gather.slot(to));
}
