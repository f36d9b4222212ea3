//! Put and delete: mint the write on this node's own replica, send the merged object to the others, count acks.
//!
//! A replica that can't be reached, fails, or takes long is stood in for by a fallback, which keeps the object as a hint
//! (sloppy quorum: the hint's ack counts; strict: it does not). Only where no replica at all can be reached does a
//! fallback coordinate, and mints the write as a hint of its own.

use std::rc::Rc;

use bytes::Bytes;
use quorate_core::codec::{decode_context, encode_context};
use quorate_core::event::EventKind;
use quorate_core::object::{MergeRule, Write, WriteMode, Written};
use quorate_core::planted::{Bug, planted};
use quorate_core::quorum::{Step, WriteQuorum};
use quorate_core::request::{
    ClientReply, ClientRequest, ClientResult, EncodedWriteMode, PeerReply, PeerRequest, PeerWrite, PutReply,
    PutRequest, Receipt, WritePurpose,
};
use quorate_core::seams::ReplyTo;
use quorate_core::{CausalContext, NodeId, Payload, RequestError};
use tokio::time::{Duration, Instant};

use super::forward::forward;
use super::placement::{KeyPlacement, Origin};
use super::read_quorum::read_replicas;
use super::read_repair::push;
use crate::gather::Gather;
use crate::node::Node;
use crate::replica::write::ClientWriteRequest;
use crate::state::settings::AFTERMATH_MS;

/// A write that has not its acks by then is also offered to fallbacks, in place of the replicas that did not answer.
const SLOW_WRITE: Duration = Duration::from_millis(250);

/// Serves a put. Answers at W acks and goes on until all replicas have been heard, or the deadline.
pub(crate) async fn put(
    node: &Rc<Node>,
    request: PutRequest,
    deadline: Instant,
    origin: Origin,
    reply: ReplyTo<ClientResult>,
) {
    let placement = match KeyPlacement::of(node, &request.key) {
        Ok(placement) => placement,
        Err(error) => return reply.send(Err(error)),
    };
    if placement.must_forward(node, origin) {
        return reply.send(forward(node, &placement, ClientRequest::Put(request), deadline).await);
    }
    let mut attempt = match WriteAttempt::prepare(node, &placement, &request, deadline, origin) {
        Ok(attempt) => attempt,
        Err(error) => return reply.send(Err(error)),
    };
    match attempt.write_own_replica().await {
        Ok((written, object)) => attempt.replicate(written, object, reply).await,
        Err(error) => reply.send(Err(error)),
    }
}

/// One attempt at a write, checked and with the number of acks it needs.
struct WriteAttempt<'a> {
    node: &'a Rc<Node>,
    placement: &'a KeyPlacement,
    write: Write,
    required: u8,
    /// Acks that it needs in each of the placement's other replica sets.
    also_required: Vec<u8>,
    /// Fallbacks count.
    sloppy: bool,
    /// This node is no replica: it coordinates as a fallback, and what it mints is a hint for this replica.
    hint_for: Option<NodeId>,
    retry: bool,
    begun: Instant,
    deadline: Instant,
    /// When the object that is sent is void.
    valid_until_ms: u64,
    gather: Gather,
    sent: Vec<SentWrite>,
    /// Fallbacks that were not used yet, once they were looked up.
    fallbacks: Option<std::vec::IntoIter<NodeId>>,
}

/// Somebody who was sent the write.
struct SentWrite {
    to: NodeId,
    /// The replica that it is meant for: `to` itself, or the one that `to` stands in for.
    target: NodeId,
    state: SentState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SentState {
    Open,
    Acked,
    Failed,
}

impl<'a> WriteAttempt<'a> {
    /// Checks the request, and whether enough nodes are in sight, before anything is minted.
    fn prepare(
        node: &'a Rc<Node>,
        placement: &'a KeyPlacement,
        request: &PutRequest,
        deadline: Instant,
        origin: Origin,
    ) -> Result<WriteAttempt<'a>, RequestError> {
        let begun = Instant::now();
        let definition = &placement.bucket.definition;
        let required = placement.bucket.required(request.w, definition.w, "w", placement.n())?;
        let sloppy = request.sloppy.unwrap_or(definition.sloppy);
        let this = node.shared.node();
        let is_replica = placement.replicas.contains(&this);
        // Who passed it on goes by another layout; who is about to come or to go stands in for nobody.
        let stays = || {
            let view = &placement.view;
            view.read.member(this).is_some() && view.newest().member(this).is_some()
        };
        if !is_replica && (origin == Origin::Coordinator || !stays()) {
            return Err(RequestError::Unavailable { needed: required, reachable: 0 });
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
        let mut also_required = Vec::with_capacity(placement.pending_write_sets.len());
        for set in &placement.pending_write_sets {
            let n = set.len() as u8;
            also_required.push(placement.bucket.required(request.w, definition.w, "w", n.max(1))?);
        }
        let may_not = node.shared.clock_problem().is_some() || !node.shared.recovery.are_layouts_confirmed();
        let sets =
            placement.pending_write_sets.iter().zip(&also_required).map(|(set, &needed)| (needed, &set[..]));
        for (needed, set) in std::iter::once((required, &placement.replicas[..])).chain(sets) {
            let live = set.iter().filter(|&&replica| node.is_live(replica)).count();
            let standing_in =
                if sloppy && live < set.len() { placement.live_fallbacks(node).len() } else { 0 };
            let reachable = (live + standing_in).min(set.len()) as u8;
            if reachable < needed || may_not {
                let reachable = if may_not { 0 } else { reachable };
                return Err(RequestError::Unavailable { needed, reachable });
            }
        }
        let mode = match &request.mode {
            EncodedWriteMode::Overwrite { seen } => {
                WriteMode::Overwrite { seen: context_of(node, placement, seen)? }
            }
            EncodedWriteMode::Exactly { context } => {
                WriteMode::Exactly(context_of(node, placement, context)?)
            }
        };
        let left = deadline.saturating_duration_since(begun);
        Ok(WriteAttempt {
            node,
            placement,
            write: Write { request: request.request, payload: request.payload.clone(), mode },
            required,
            also_required,
            sloppy,
            hint_for: (!is_replica).then(|| placement.replicas[0]),
            retry: request.attempt > 0,
            begun,
            deadline,
            valid_until_ms: node.shared.valid_until_ms(left + Duration::from_millis(AFTERMATH_MS)),
            gather: Gather::default(),
            sent: Vec::with_capacity(placement.replicas.len()),
            fallbacks: None,
        })
    }

    /// Makes the object that the replicas are to hold: minted here, or, for a retry that a quorum knows, as it is.
    async fn write_own_replica(&mut self) -> Result<(Written, Bytes), RequestError> {
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
        self.read_before_overwrite().await?;
        let this = self.node.shared.node();
        self.sent.push(SentWrite { to: this, target: self.hint_for.unwrap_or(this), state: SentState::Open });
        let request = ClientWriteRequest {
            key: self.placement.key.clone(),
            hint_for: self.hint_for,
            long_key: self.placement.long_key.clone(),
            write: self.write.clone(),
            timeout: self.deadline.saturating_duration_since(Instant::now()),
        };
        let applied = self.node.replica.coordinate_write(request, self.gather.reply_to(this));
        match tokio::time::timeout_at(self.deadline, applied).await {
            Ok(Ok(Ok(applied))) => Ok((applied.written, applied.object)),
            Ok(Ok(Err(failure))) => Err(failure.for_client()),
            // Submitted, and not heard of: it may still be applied.
            Ok(Err(_)) | Err(_) => Err(RequestError::Indeterminate { needed: self.required, received: 0 }),
        }
    }

    /// An overwrite replaces what its coordinator holds. One that may have forgotten what it held asks R replicas first.
    async fn read_before_overwrite(&self) -> Result<(), RequestError> {
        let recovering = self.node.shared.is_recovering(self.placement.partition());
        if !recovering || self.hint_for.is_some() || matches!(self.write.mode, WriteMode::Exactly(_)) {
            return Ok(());
        }
        let definition = &self.placement.bucket.definition;
        let n = self.placement.n();
        let required = self.placement.bucket.required(Default::default(), definition.r, "r", n)?;
        let read = read_replicas(self.node, self.placement, required, self.sloppy, self.deadline).await?;
        let Some(object) = &read.encoded else { return Ok(()) };
        let gather = Gather::default();
        push(self.node, self.placement, object, self.node.shared.node(), self.deadline, &gather);
        match gather.next(self.deadline).await {
            Some((_, Ok(PeerReply::Acked))) => Ok(()),
            _ => Err(RequestError::Unavailable { needed: self.required, reachable: 0 }),
        }
    }

    fn keeps_newest(&self) -> bool {
        self.node.shared.merge_rule(self.placement.key.bucket()) == MergeRule::KeepNewest
    }

    /// Asks R replicas whether the write's id is live or was replaced.
    ///
    /// # Errors
    /// If they can't be had in time.
    async fn find_earlier_attempt(&self) -> Result<Option<(Written, Bytes)>, RequestError> {
        let now = Instant::now();
        let half = now + self.deadline.saturating_duration_since(now) / 2;
        let (bucket, n) = (&self.placement.bucket, self.placement.n());
        let required = bucket.required(Default::default(), bucket.definition.r, "r", n)?;
        let read = read_replicas(self.node, self.placement, required, self.sloppy, half).await?;
        let known = read.merged.knows(self.write.request);
        let object = read.encoded.filter(|_| known);
        Ok(object.map(|object| (read.merged.already_written(&self.write), object)))
    }

    /// Sends the merged object to all replicas, or to whoever stands in for them, and counts.
    async fn replicate(mut self, written: Written, object: Bytes, reply: ReplyTo<ClientResult>) {
        let mut reply = Some(reply);
        let mut quorum = self.quorum();
        self.sent.iter().for_each(|sent| quorum.sent(sent.target));
        if let Some(replica) = self.hint_for.filter(|_| self.sent.is_empty()) {
            self.send(self.node.shared.node(), replica, &object);
            quorum.sent(replica);
        }
        for replica in self.placement.targets() {
            if self.sent.iter().any(|sent| sent.target == replica) {
                continue;
            }
            if self.node.is_live(replica) {
                self.send(replica, replica, &object);
                quorum.sent(replica);
            } else {
                self.send_hint(replica, &object, &mut quorum);
            }
        }
        if quorum.step() == Step::Impossible {
            self.give_up(0, reply.take());
        }
        let mut slow_at = Some(Instant::now() + SLOW_WRITE).filter(|at| self.sloppy && *at < self.deadline);
        // After the answer this goes on: every replica's ack or failure is heard, whoever still waits for it.
        while self.sent.iter().any(|sent| sent.state == SentState::Open) {
            let until = slow_at.unwrap_or(self.deadline);
            let step = match self.gather.next(until).await {
                Some((from, answer)) => {
                    self.count_answer(from, matches!(answer, Ok(PeerReply::Acked)), &object, &mut quorum)
                }
                None if slow_at.take().is_some() => {
                    if reply.is_some() {
                        self.hint_slow_replicas(&object, &mut quorum);
                    }
                    Step::Wait
                }
                None => break,
            };
            match step {
                Step::Reached => {
                    if let Some(reply) = reply.take() {
                        reply.send(Ok(ClientReply::Put(self.put_reply(&written, quorum.acked()))));
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
        for target in self.unanswered_replicas() {
            self.send_hint(target, &object, &mut quorum);
        }
    }

    /// The acks that the write needs: in each replica set.
    fn quorum(&self) -> WriteQuorum {
        if self.placement.pending_write_sets.is_empty() || planted(Bug::QuorumOverUnion) {
            return WriteQuorum::new(self.required);
        }
        let also = self
            .placement
            .pending_write_sets
            .iter()
            .zip(&self.also_required)
            .map(|(set, &needed)| (needed, &set[..]));
        WriteQuorum::of_sets(std::iter::once((self.required, &self.placement.replicas[..])).chain(also))
    }

    /// Takes an answer: counts it, and finds somebody else where it is a failure.
    fn count_answer(&mut self, from: NodeId, acked: bool, object: &Bytes, quorum: &mut WriteQuorum) -> Step {
        let placement = self.sent.iter_mut().find(|sent| sent.to == from && sent.state == SentState::Open);
        let Some(sent) = placement else { return Step::Wait };
        sent.state = if acked { SentState::Acked } else { SentState::Failed };
        let target = sent.target;
        let counts = self.counts(from);
        if acked {
            // A replica and its stand-in are one copy in the end, and one ack.
            let same = |sent: &&SentWrite| {
                sent.target == target && sent.state == SentState::Acked && self.counts(sent.to)
            };
            let first = self.sent.iter().filter(same).count() == 1;
            return match (counts, first) {
                (true, true) => quorum.ack(target, from),
                (true, false) => quorum.failure(target),
                (false, _) => Step::Wait,
            };
        }
        let covered = |other: &SentWrite| other.target == target && other.state != SentState::Failed;
        if !self.sent.iter().any(covered) {
            self.send_hint(target, object, quorum);
        }
        if counts { quorum.failure(target) } else { Step::Wait }
    }

    /// Whether an ack of this node counts towards W.
    fn counts(&self, from: NodeId) -> bool {
        self.sloppy || self.placement.is_target(from)
    }

    /// Replicas that neither acked nor have a fallback that did, or may yet.
    fn unanswered_replicas(&self) -> Vec<NodeId> {
        let open = |replica: &NodeId| {
            let mut sent = self.sent.iter().filter(|sent| sent.target == *replica);
            !sent.any(|sent| sent.state == SentState::Acked)
        };
        self.placement.targets().into_iter().filter(open).collect()
    }

    fn hint_slow_replicas(&mut self, object: &Bytes, quorum: &mut WriteQuorum) {
        let slow = |sent: &&SentWrite| sent.state == SentState::Open && sent.to == sent.target;
        let targets: Vec<NodeId> = self.sent.iter().filter(slow).map(|sent| sent.target).collect();
        let this = self.node.shared.node();
        for target in targets.into_iter().filter(|&target| target != this) {
            self.send_hint(target, object, quorum);
        }
    }

    /// Has the object kept for a replica by the next fallback, or by this node itself, which does not count, where there
    /// is none.
    fn send_hint(&mut self, target: NodeId, object: &Bytes, quorum: &mut WriteQuorum) {
        let (node, placement) = (self.node, self.placement);
        let this = node.shared.node();
        let fallbacks = self.fallbacks.get_or_insert_with(|| {
            let mut live = placement.live_fallbacks(node);
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
                let write = PeerRequest::Write(self.message(this, target, object));
                node.send(this, write, self.send_timeout(), ReplyTo::ignored());
            }
            None => {}
        }
    }

    fn send(&mut self, to: NodeId, target: NodeId, object: &Bytes) {
        let write = PeerRequest::Write(self.message(to, target, object));
        self.node.send(to, write, self.send_timeout(), self.gather.reply_to(to));
        self.sent.push(SentWrite { to, target, state: SentState::Open });
    }

    fn message(&self, to: NodeId, target: NodeId, object: &Bytes) -> PeerWrite {
        PeerWrite {
            key: self.placement.key.clone(),
            object: object.clone(),
            purpose: if to == target { WritePurpose::Replicate } else { WritePurpose::Hint(target) },
            valid_until_ms: self.valid_until_ms,
            layout: self.placement.view.written(),
        }
    }

    /// How long whoever is sent the write has for it: until the deadline, and a little for what comes after it.
    fn send_timeout(&self) -> Duration {
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

    fn put_reply(&self, written: &Written, acked: &[NodeId]) -> PutReply {
        let fallbacks = self.placement.fallbacks_among(acked);
        PutReply {
            context: encode_context(&written.context, self.placement.key_hash).into(),
            conflict: written.conflict,
            hinted: fallbacks.len() as u8,
            receipt: Receipt {
                coordinator: self.node.shared.node(),
                layout: self.placement.view.read.number(),
                acked: acked.to_vec(),
                fallbacks,
                repaired: Vec::new(),
                micros: self.begun.elapsed().as_micros() as u32,
            },
        }
    }
}

/// A client's context, if it is good for this key and not from a clock too far ahead.
fn context_of(node: &Node, placement: &KeyPlacement, bytes: &[u8]) -> Result<CausalContext, RequestError> {
    let context = decode_context(bytes, placement.key_hash)
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
