//! Read repair: sends the merged object of a read to replicas that hold less. A replica merges it
//! into its own object, and never overwrites that object.

use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::Bytes;
use quorate_core::codec::decode_object;
use quorate_core::event::EventKind;
use quorate_core::object::MergeRule;
use quorate_core::quorum::QuorumSize;
use quorate_core::quorum::{Step, WriteQuorum};
use quorate_core::request::{PeerReply, PeerRequest, PeerWrite, WritePurpose};
use quorate_core::{NodeId, ReadRepair, RequestError};
use tokio::time::Instant;

use super::placement::KeyPlacement;
use super::read_quorum::Read;
use crate::gather::Gather;
use crate::node::Node;

/// The number of replicas that must hold the merged object before a client is shown that object.
#[derive(Clone, Copy)]
pub(crate) struct HoldersNeeded {
    /// The R that the request names, for example `quorum`. The number of replicas in each pending
    /// write set follows from it.
    pub(crate) size: QuorumSize,
    /// The number of replicas in the layout that reads use. It follows from the request's R too.
    pub(crate) required: u8,
}

/// Sends the merged object to replicas that hold less, as the bucket's `read_repair` says. Returns
/// the nodes to which the object was sent.
///
/// Blocking repair waits until R replicas hold the merged object, because a later read must not
/// miss a version that this read shows. While the layout changes, it waits for R replicas in each
/// of the key's replica sets.
///
/// # Errors
/// With blocking repair, `DeadlineExceeded` if fewer than R replicas hold the merged object in
/// time.
pub(crate) async fn repair(
    node: &Rc<Node>,
    placement: &KeyPlacement,
    read: &Read,
    wanted: HoldersNeeded,
    deadline: Instant,
) -> Result<Vec<NodeId>, RequestError> {
    let is_changing = !placement.pending_write_sets.is_empty();
    let policy = placement.bucket.definition.read_repair;
    let Some(object) = read.encoded.as_ref().filter(|_| policy != ReadRepair::Off) else {
        return Ok(Vec::new());
    };
    // Nothing waits for the repair of a damaged record: its replica does not count until it has
    // recovered.
    for &replica in &read.damaged {
        push(node, placement, object, replica, deadline, &Gather::default());
    }
    if read.stale.is_empty() && !is_changing {
        return Ok(Vec::new());
    }
    if !read.stale.is_empty() {
        node.shared.emit(None, EventKind::ReadRepaired { replicas: read.stale.len() });
    }
    let gather = Gather::default();
    for &replica in &read.stale {
        push(node, placement, object, replica, deadline, &gather);
    }
    if policy == ReadRepair::Background {
        return Ok(read.stale.clone());
    }

    let begun = Instant::now();
    let mut pushed = read.stale.clone();
    let only_pending: Vec<NodeId> = placement
        .pending_write_sets
        .iter()
        .flatten()
        .copied()
        .filter(|other| !read.replied.contains(other) && !placement.replicas.contains(other))
        .collect::<BTreeSet<NodeId>>()
        .into_iter()
        .collect();
    // Of the replicas that did not reply, those in a pending write set are asked for their object.
    // The others are substitutes: they are sent the object only after another replica has failed.
    let is_needed =
        |other: &NodeId| is_changing && placement.pending_write_sets.iter().any(|set| set.contains(other));
    let (needed, substitutes): (Vec<NodeId>, Vec<NodeId>) =
        placement.live(node).into_iter().filter(|other| !read.replied.contains(other)).partition(is_needed);
    let pending: Vec<NodeId> =
        needed.into_iter().chain(only_pending.into_iter().filter(|&replica| node.is_live(replica))).collect();
    let mut holding = quorum(placement, read, wanted)?;
    for &target in read.replied.iter().chain(&pending).chain(&substitutes) {
        holding.sent(target);
    }
    let mut substitutes = substitutes.into_iter();
    let mut step = holding.step();
    for &replica in read.replied.iter().filter(|replica| !read.stale.contains(replica)) {
        step = holding.ack(replica, replica);
    }
    if step != Step::Reached {
        // Mostly these replicas hold the object already. So it is read from them first, because a
        // write would cost them a commit.
        pending.iter().for_each(|&replica| fetch(node, placement, replica, deadline, &gather));
    }
    while step != Step::Reached {
        step = match gather.next(deadline).await {
            Some((from, Ok(PeerReply::Acked))) => holding.ack(from, from),
            Some((from, Ok(PeerReply::Object(theirs)))) if holds(&theirs, read) => holding.ack(from, from),
            Some((from, Ok(PeerReply::Object(_)))) => {
                push(node, placement, object, from, deadline, &gather);
                holding.step()
            }
            Some((from, _)) => {
                // A substitute is sent the object in place of the replica that failed.
                if let Some(substitute) = substitutes.next() {
                    push(node, placement, object, substitute, deadline, &gather);
                    pushed.push(substitute);
                }
                holding.failure(from)
            }
            None => Step::Impossible,
        };
        if step == Step::Impossible {
            let received = holding.acked().len() as u8;
            let after_ms = begun.elapsed().as_millis() as u32;
            return Err(RequestError::DeadlineExceeded { needed: wanted.required, received, after_ms });
        }
    }
    Ok(pushed)
}

/// Asks a replica for its object. A recovering replica answers too.
fn fetch(node: &Node, placement: &KeyPlacement, replica: NodeId, deadline: Instant, gather: &Gather) {
    let timeout = deadline.saturating_duration_since(Instant::now());
    node.send(replica, PeerRequest::Fetch(placement.key.clone()), timeout, gather.reply_to(replica));
}

/// True if a replica's object contains everything of the merged object.
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

/// Returns the quorum of replicas that must hold the merged object before it is shown.
fn quorum(placement: &KeyPlacement, read: &Read, wanted: HoldersNeeded) -> Result<WriteQuorum, RequestError> {
    if placement.pending_write_sets.is_empty() {
        return Ok(WriteQuorum::new(wanted.required));
    }
    // A fallback that replied counts in the set of the layout that reads use.
    let mut first = placement.replicas.clone();
    first.extend(placement.fallbacks_among(&read.replied));
    let mut sets = vec![(wanted.required, &first[..])];
    for set in &placement.pending_write_sets {
        let n = (set.len() as u8).max(1);
        sets.push((placement.bucket.required(wanted.size, placement.bucket.definition.r, "r", n)?, &set[..]));
    }
    Ok(WriteQuorum::of_sets(sets.into_iter()))
}

/// Sends the merged object to a node, which may be this one. A replica merges it. Any other node
/// keeps it as a hint for a replica that cannot be reached.
pub(crate) fn push(
    node: &Rc<Node>,
    placement: &KeyPlacement,
    object: &Bytes,
    to: NodeId,
    deadline: Instant,
    gather: &Gather,
) {
    let purpose = match placement.is_target(to) {
        true => WritePurpose::Replicate,
        false => WritePurpose::Hint(placement.hint_target(node)),
    };
    let timeout = deadline.saturating_duration_since(Instant::now());
    let valid_until_ms = node.shared.valid_until_ms(timeout);
    let write = PeerWrite {
        key: placement.key.clone(),
        object: object.clone(),
        purpose,
        valid_until_ms,
        layout: placement.view.written(),
    };
    node.send(to, PeerRequest::Write(write), timeout, gather.reply_to(to));
}
