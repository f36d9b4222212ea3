//! Put and delete: mint the write on this node's own replica, send the merged object to the others, count acks.
//!
//! A replica that can't be reached, fails, or takes long is stood in for by a fallback, which keeps the object as a hint
//! (sloppy quorum: the hint's ack counts; strict: it does not). Only where no replica at all can be reached does a
//! fallback coordinate, and mints the write as a hint of its own.

use std::rc::Rc;

use bytes::Bytes;
use quorate_core::codec::{decode_context, encode_context};
use quorate_core::event::EventKind;
use quorate_core::object::{MergeRule, Replaces, Write, Written};
use quorate_core::planted::{Bug, planted};
use quorate_core::quorum::{Step, WriteQuorum};
use quorate_core::request::{
    ClientReply, ClientRequest, ClientResult, PeerReply, PeerWrite, PutReply, PutRequest, Receipt, Replacing,
    WritePurpose,
};
use quorate_core::seams::ReplyTo;
use quorate_core::{CausalContext, NodeId, Payload, RequestError};
use tokio::time::{Duration, Instant};

use super::Place;
use super::forward::forward;
use super::read::read_replicas;
use super::repair::push;
use crate::gather::Gather;
use crate::node::Node;
use crate::settings::AFTERMATH_MS;

/// A write that has not its acks by then is also offered to fallbacks, in place of the replicas that did not answer.
const SLOW_WRITE: Duration = Duration::from_millis(250);

/// Serves a put. Answers at W acks and goes on until all replicas have been heard, or the deadline.
pub(crate) async fn put(
    node: &Rc<Node>,
    request: PutRequest,
    deadline: Instant,
    forwarded: bool,
    reply: ReplyTo<ClientResult>,
) {
    let place = match Place::of(node, &request.key) {
        Ok(place) => place,
        Err(error) => return reply.send(Err(error)),
    };
    if place.must_forward(node, forwarded) {
        return reply.send(forward(node, &place, ClientRequest::Put(request), deadline).await);
    }
    let mut attempt = match Attempt::prepare(node, &place, &request, deadline, forwarded) {
        Ok(attempt) => attempt,
        Err(error) => return reply.send(Err(error)),
    };
    match attempt.begin().await {
        Ok((written, object)) => attempt.replicate(written, object, reply).await,
        Err(error) => reply.send(Err(error)),
    }
}

/// One attempt at a write, checked and with the number of acks it needs.
struct Attempt<'a> {
    node: &'a Rc<Node>,
    place: &'a Place,
    write: Write,
    required: u8,
    /// Acks that it needs in each of the place's other replica sets.
    also_required: Vec<u8>,
    /// Fallbacks count.
    sloppy: bool,
    /// This node is no replica: it coordinates as a fallback, and what it mints is a hint for this replica.
    stands_for: Option<NodeId>,
    retry: bool,
    begun: Instant,
    deadline: Instant,
    /// When the object that is sent is void.
    valid_until_ms: u64,
    gather: Gather,
    asked: Vec<Asked>,
    /// Fallbacks that were not used yet, once they were looked up.
    fallbacks: Option<std::vec::IntoIter<NodeId>>,
}

/// Somebody who was sent the write.
struct Asked {
    to: NodeId,
    /// The replica that it is meant for: `to` itself, or the one that `to` stands in for.
    target: NodeId,
    state: Asking,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asking {
    Open,
    Acked,
    Failed,
}

impl<'a> Attempt<'a> {
    /// Checks the request, and whether enough nodes are in sight, before anything is minted.
    fn prepare(
        node: &'a Rc<Node>,
        place: &'a Place,
        request: &PutRequest,
        deadline: Instant,
        forwarded: bool,
    ) -> Result<Attempt<'a>, RequestError> {
        let begun = Instant::now();
        let definition = &place.bucket.definition;
        let required = place.bucket.required(request.w, definition.w, "w", place.n())?;
        let sloppy = request.sloppy.unwrap_or(definition.sloppy);
        let this = node.shared.node();
        let is_replica = place.replicas.contains(&this);
        // Who passed it on goes by another layout; who is about to come or to go stands in for nobody.
        let stays = || {
            let view = &place.view;
            view.read.member(this).is_some() && view.newest().member(this).is_some()
        };
        if !is_replica && (forwarded || !stays()) {
            return Err(RequestError::NotAttempted { needed: required, reachable: 0 });
        }
        if let Payload::Value(value) = &request.payload
            && value.len() > definition.max_value_bytes as usize
        {
            return Err(RequestError::invalid(format!(
                "value of {} bytes: this bucket takes up to {} (max_value_bytes); split it, or raise the limit up to 16 MiB",
                value.len(),
                definition.max_value_bytes
            )));
        }
        let mut also_required = Vec::with_capacity(place.also.len());
        for set in &place.also {
            let n = set.len() as u8;
            also_required.push(place.bucket.required(request.w, definition.w, "w", n.max(1))?);
        }
        let may_not = node.shared.clock_trouble().is_some() || !node.shared.is_confirmed();
        let sets = place.also.iter().zip(&also_required).map(|(set, &needed)| (needed, &set[..]));
        for (needed, set) in std::iter::once((required, &place.replicas[..])).chain(sets) {
            let live = set.iter().filter(|&&replica| node.is_live(replica)).count();
            let standing_in = if sloppy && live < set.len() { place.live_fallbacks(node).len() } else { 0 };
            let reachable = (live + standing_in).min(set.len()) as u8;
            if reachable < needed || may_not {
                let reachable = if may_not { 0 } else { reachable };
                return Err(RequestError::NotAttempted { needed, reachable });
            }
        }
        let replaces = match &request.replacing {
            Replacing::WhatIsThere { seen } => Replaces::WhatIsThere { seen: context_of(node, place, seen)? },
            Replacing::Exactly { context } => Replaces::Exactly(context_of(node, place, context)?),
        };
        let left = deadline.saturating_duration_since(begun);
        Ok(Attempt {
            node,
            place,
            write: Write { request: request.request, payload: request.payload.clone(), replaces },
            required,
            also_required,
            sloppy,
            stands_for: (!is_replica).then(|| place.replicas[0]),
            retry: request.attempt > 0,
            begun,
            deadline,
            valid_until_ms: node.shared.valid_until_ms(left + Duration::from_millis(AFTERMATH_MS)),
            gather: Gather::default(),
            asked: Vec::with_capacity(place.replicas.len()),
            fallbacks: None,
        })
    }

    /// Makes the object that the replicas are to hold: minted here, or, for a retry that a quorum knows, as it is.
    async fn begin(&mut self) -> Result<(Written, Bytes), RequestError> {
        if self.retry {
            match self.find_earlier_attempt().await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                // Minted once more it would be a sibling of what replaced it; where only the newest is kept, it would
                // undo that.
                Err(error) if self.keeps_newest() => return Err(error),
                Err(_) => {}
            }
        }
        self.remember_first().await?;
        let this = self.node.shared.node();
        self.asked.push(Asked { to: this, target: self.stands_for.unwrap_or(this), state: Asking::Open });
        let applied = self.node.replica.write(
            self.place.key.clone(),
            self.stands_for,
            self.place.long_key.clone(),
            self.write.clone(),
            self.deadline.saturating_duration_since(Instant::now()),
            self.gather.slot(this),
        );
        match tokio::time::timeout_at(self.deadline, applied).await {
            Ok(Ok(Ok(applied))) => Ok((applied.written, applied.object)),
            Ok(Ok(Err(failure))) => Err(failure.for_client()),
            // Submitted, and not heard of: it may still be applied.
            Ok(Err(_)) | Err(_) => Err(RequestError::Indeterminate { needed: self.required, received: 0 }),
        }
    }

    /// An overwrite replaces what its coordinator holds. One that may have forgotten what it held asks R replicas first.
    async fn remember_first(&self) -> Result<(), RequestError> {
        let recovering = self.node.shared.is_recovering(self.place.partition());
        if !recovering || self.stands_for.is_some() || matches!(self.write.replaces, Replaces::Exactly(_)) {
            return Ok(());
        }
        let definition = &self.place.bucket.definition;
        let n = self.place.n();
        let required = self.place.bucket.required(Default::default(), definition.r, "r", n)?;
        let read = read_replicas(self.node, self.place, required, self.sloppy, self.deadline).await?;
        let Some(object) = &read.encoded else { return Ok(()) };
        let gather = Gather::default();
        push(self.node, self.place, object, self.node.shared.node(), self.deadline, &gather);
        match gather.next(self.deadline).await {
            Some((_, Ok(PeerReply::Acked))) => Ok(()),
            _ => Err(RequestError::NotAttempted { needed: self.required, reachable: 0 }),
        }
    }

    fn keeps_newest(&self) -> bool {
        self.node.shared.merge_rule(self.place.key.bucket()) == MergeRule::KeepNewest
    }

    /// Asks R replicas whether the write's id is live or was replaced.
    ///
    /// # Errors
    /// If they can't be had in time.
    async fn find_earlier_attempt(&self) -> Result<Option<(Written, Bytes)>, RequestError> {
        let now = Instant::now();
        let half = now + self.deadline.saturating_duration_since(now) / 2;
        let (bucket, n) = (&self.place.bucket, self.place.n());
        let required = bucket.required(Default::default(), bucket.definition.r, "r", n)?;
        let read = read_replicas(self.node, self.place, required, self.sloppy, half).await?;
        let known = read.merged.knows(self.write.request);
        let object = read.encoded.filter(|_| known);
        Ok(object.map(|object| (read.merged.already_written(&self.write), object)))
    }

    /// Sends the merged object to all replicas, or to whoever stands in for them, and counts.
    async fn replicate(mut self, written: Written, object: Bytes, reply: ReplyTo<ClientResult>) {
        let mut reply = Some(reply);
        let mut quorum = self.quorum();
        self.asked.iter().for_each(|asked| quorum.sent(asked.target));
        if let Some(replica) = self.stands_for.filter(|_| self.asked.is_empty()) {
            self.send(self.node.shared.node(), replica, &object);
            quorum.sent(replica);
        }
        for replica in self.place.targets() {
            if self.asked.iter().any(|asked| asked.target == replica) {
                continue;
            }
            if self.node.is_live(replica) {
                self.send(replica, replica, &object);
                quorum.sent(replica);
            } else {
                self.stand_in(replica, &object, &mut quorum);
            }
        }
        if quorum.step() == Step::Impossible {
            self.give_up(0, reply.take());
        }
        let mut slow_at = Some(Instant::now() + SLOW_WRITE).filter(|at| self.sloppy && *at < self.deadline);
        // After the answer this goes on: every replica's ack or failure is heard, whoever still waits for it.
        while self.asked.iter().any(|asked| asked.state == Asking::Open) {
            let until = slow_at.unwrap_or(self.deadline);
            let step = match self.gather.next(until).await {
                Some((from, answer)) => {
                    self.heard(from, matches!(answer, Ok(PeerReply::Acked)), &object, &mut quorum)
                }
                None if slow_at.take().is_some() => {
                    if reply.is_some() {
                        self.stand_in_for_the_slow(&object, &mut quorum);
                    }
                    Step::Wait
                }
                None => break,
            };
            match step {
                Step::Reached => {
                    if let Some(reply) = reply.take() {
                        reply.send(Ok(ClientReply::Put(self.answer(&written, quorum.acked()))));
                    }
                }
                Step::Impossible if reply.is_some() => self.give_up(quorum.acked().len() as u8, reply.take()),
                Step::Impossible | Step::Wait | Step::Ask(_) => {}
            }
        }
        if reply.is_some() {
            self.give_up(quorum.acked().len() as u8, reply.take());
        }
        // Who has not answered by now is told of the write by a hint, not only by the next round of anti-entropy.
        for target in self.without_answer() {
            self.stand_in(target, &object, &mut quorum);
        }
    }

    /// The acks that the write needs: in each replica set.
    fn quorum(&self) -> WriteQuorum {
        if self.place.also.is_empty() || planted(Bug::QuorumOverUnion) {
            return WriteQuorum::new(self.required);
        }
        let also = self.place.also.iter().zip(&self.also_required).map(|(set, &needed)| (needed, &set[..]));
        WriteQuorum::of_sets(std::iter::once((self.required, &self.place.replicas[..])).chain(also))
    }

    /// Takes an answer: counts it, and finds somebody else where it is a failure.
    fn heard(&mut self, from: NodeId, acked: bool, object: &Bytes, quorum: &mut WriteQuorum) -> Step {
        let place = self.asked.iter_mut().find(|asked| asked.to == from && asked.state == Asking::Open);
        let Some(asked) = place else { return Step::Wait };
        asked.state = if acked { Asking::Acked } else { Asking::Failed };
        let target = asked.target;
        let counts = self.counts(from);
        if acked {
            // A replica and its stand-in are one copy in the end, and one ack.
            let same = |asked: &&Asked| {
                asked.target == target && asked.state == Asking::Acked && self.counts(asked.to)
            };
            let first = self.asked.iter().filter(same).count() == 1;
            return match (counts, first) {
                (true, true) => quorum.ack(target, from),
                (true, false) => quorum.failure(target),
                (false, _) => Step::Wait,
            };
        }
        let covered = |other: &Asked| other.target == target && other.state != Asking::Failed;
        if !self.asked.iter().any(covered) {
            self.stand_in(target, object, quorum);
        }
        if counts { quorum.failure(target) } else { Step::Wait }
    }

    /// Whether an ack of this node counts towards W.
    fn counts(&self, from: NodeId) -> bool {
        self.sloppy || self.place.is_target(from)
    }

    /// Replicas that neither acked nor have a fallback that did, or may yet.
    fn without_answer(&self) -> Vec<NodeId> {
        let open = |replica: &NodeId| {
            let mut asked = self.asked.iter().filter(|asked| asked.target == *replica);
            !asked.any(|asked| asked.state == Asking::Acked)
        };
        self.place.targets().into_iter().filter(open).collect()
    }

    fn stand_in_for_the_slow(&mut self, object: &Bytes, quorum: &mut WriteQuorum) {
        let slow = |asked: &&Asked| asked.state == Asking::Open && asked.to == asked.target;
        let targets: Vec<NodeId> = self.asked.iter().filter(slow).map(|asked| asked.target).collect();
        let this = self.node.shared.node();
        for target in targets.into_iter().filter(|&target| target != this) {
            self.stand_in(target, object, quorum);
        }
    }

    /// Has the object kept for a replica by the next fallback, or by this node itself, which does not count, where there
    /// is none.
    fn stand_in(&mut self, target: NodeId, object: &Bytes, quorum: &mut WriteQuorum) {
        let (node, place) = (self.node, self.place);
        let this = node.shared.node();
        let fallbacks = self.fallbacks.get_or_insert_with(|| {
            let mut live = place.live_fallbacks(node);
            live.retain(|&fallback| fallback != this);
            live.into_iter()
        });
        match fallbacks.next() {
            Some(fallback) => {
                self.send(fallback, target, object);
                if self.sloppy {
                    quorum.sent(target);
                }
            }
            None if target != this => {
                let nobody = Gather::default();
                let write = self.message(this, target, object);
                node.send_write(this, write, self.patience(), nobody.slot(this));
            }
            None => {}
        }
    }

    fn send(&mut self, to: NodeId, target: NodeId, object: &Bytes) {
        let write = self.message(to, target, object);
        self.node.send_write(to, write, self.patience(), self.gather.slot(to));
        self.asked.push(Asked { to, target, state: Asking::Open });
    }

    fn message(&self, to: NodeId, target: NodeId, object: &Bytes) -> PeerWrite {
        PeerWrite {
            key: self.place.key.clone(),
            object: object.clone(),
            purpose: if to == target { WritePurpose::Replicate } else { WritePurpose::Hint(target) },
            valid_until_ms: self.valid_until_ms,
            layout: self.place.view.written(),
        }
    }

    /// How long whoever is sent the write has for it: until the deadline, and a little for what comes after it.
    fn patience(&self) -> Duration {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Duration::from_millis(AFTERMATH_MS / 2) } else { left }
    }

    fn give_up(&self, received: u8, reply: Option<ReplyTo<ClientResult>>) {
        let needed = self.required;
        self.node.shared.emit(Some(self.write.request), EventKind::WriteIndeterminate { needed, received });
        if let Some(reply) = reply {
            reply.send(Err(RequestError::Indeterminate { needed, received }));
        }
    }

    fn answer(&self, written: &Written, acked: &[NodeId]) -> PutReply {
        let fallbacks = self.place.fallbacks_among(acked);
        PutReply {
            context: encode_context(&written.context, self.place.key_hash).into(),
            conflict: written.conflict,
            hinted: fallbacks.len() as u8,
            receipt: Receipt {
                coordinator: self.node.shared.node(),
                layout: self.place.view.read.number(),
                acked: acked.to_vec(),
                fallbacks,
                repaired: Vec::new(),
                micros: self.begun.elapsed().as_micros() as u32,
            },
        }
    }
}

/// A client's context, if it is good for this key and not from a clock too far ahead.
fn context_of(node: &Node, place: &Place, bytes: &[u8]) -> Result<CausalContext, RequestError> {
    let context = decode_context(bytes, place.key_hash)
        .map_err(|error| RequestError::invalid(format!("context of {} bytes: {error}", bytes.len())))?;
    let ahead = context.newest().wall_ms().saturating_sub(node.shared.environment.wall_ms());
    let limit = node.shared.settings.coordinator.max_clock_skew_ms;
    if ahead > limit {
        return Err(RequestError::invalid(format!(
            "context is from {ahead} ms ahead of this node's clock, the limit is {limit} (max_clock_skew_ms): check the nodes' clocks"
        )));
    }
    Ok(context)
}
