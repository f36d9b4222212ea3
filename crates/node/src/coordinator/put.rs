//! Put and delete: mints the write on this node's own replica, sends the merged object to the other
//! replicas, and counts acks.
//!
//! A fallback stands in for a replica that cannot be reached, fails, or is slow. It keeps the
//! object as a hint. In a sloppy quorum the fallback's ack counts, in a strict one it does not. A
//! fallback coordinates only if no replica can be reached. It then stores the write as a hint for the
//! first replica.

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

/// Time after which a sloppy write that still lacks acks is also sent to fallbacks: one for each
/// replica that has not answered.
const SLOW_WRITE: Duration = Duration::from_millis(250);

/// Coordinates a put. Replies to the client after W acks. Then waits until all replicas have
/// answered or the deadline has passed. For each replica that did not ack, a
/// fallback or this node keeps a hint.
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

/// The state of one put: the checked write, and the acks that it needs and has.
struct WriteAttempt<'a> {
    node: &'a Rc<Node>,
    placement: &'a KeyPlacement,
    write: Write,
    /// Acks that the write needs in the layout that reads use.
    required: u8,
    /// Acks that the write needs in each of `placement.pending_write_sets`.
    pending_required: Vec<u8>,
    /// True if acks of fallbacks count towards W.
    sloppy: bool,
    /// The replica for which this node mints the write as a hint, if this node is a fallback.
    hint_for: Option<NodeId>,
    /// True if the client has sent this write before.
    retry: bool,
    begun: Instant,
    deadline: Instant,
    /// The time after which the messages of this write are void, in milliseconds since 1970.
    valid_until_ms: u64,
    gather: Gather,
    sent: Vec<SentWrite>,
    /// Fallbacks that are not used yet. `None` until the first one is needed.
    fallbacks: Option<std::vec::IntoIter<NodeId>>,
}

/// One sending of the write to a node, and its outcome.
struct SentWrite {
    to: NodeId,
    /// The replica for which the write was sent: `to` itself, or the replica that `to` stands in
    /// for.
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
    /// Checks the request, and checks that enough nodes can be reached. Nothing is minted yet.
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
        // If this node is no replica, it refuses two kinds of requests. The first are forwarded
        // requests: their sender took this node for a replica, so the sender uses another layout.
        // The second are all requests while this node joins or leaves, because it cannot be a
        // fallback then.
        let is_permanent_member = || {
            let view = &placement.view;
            view.read.member(this).is_some() && view.newest().member(this).is_some()
        };
        if !is_replica && (origin == Origin::Coordinator || !is_permanent_member()) {
            return Err(RequestError::Unavailable { needed: required, reachable: 0 });
        }
        if let Payload::Value(value) = &request.payload
            && value.len() > definition.max_value_bytes as usize
        {
            return Err(RequestError::invalid(format!(
                "value of {} bytes: the limit of this bucket is {} (max_value_bytes); split it, or raise the limit up to 16 MiB",
                value.len(),
                definition.max_value_bytes
            )));
        }
        let mut pending_required = Vec::with_capacity(placement.pending_write_sets.len());
        for set in &placement.pending_write_sets {
            let n = set.len() as u8;
            pending_required.push(placement.bucket.required(request.w, definition.w, "w", n.max(1))?);
        }
        let must_not_mint =
            node.shared.clock_problem().is_some() || !node.shared.recovery.are_layouts_confirmed();
        let sets = placement
            .pending_write_sets
            .iter()
            .zip(&pending_required)
            .map(|(set, &needed)| (needed, &set[..]));
        for (needed, set) in std::iter::once((required, &placement.replicas[..])).chain(sets) {
            let live = set.iter().filter(|&&replica| node.is_live(replica)).count();
            let fallbacks = if sloppy && live < set.len() { placement.live_fallbacks(node).len() } else { 0 };
            let reachable = (live + fallbacks).min(set.len()) as u8;
            if reachable < needed || must_not_mint {
                let reachable = if must_not_mint { 0 } else { reachable };
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
            pending_required,
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

    /// Applies the write on this node. Returns the object to send to the other replicas: this
    /// node's object after the write. If this is a retry, and R replicas know an earlier attempt of
    /// the write, nothing is minted. The merged object of these replicas is returned then.
    async fn write_own_replica(&mut self) -> Result<(Written, Bytes), RequestError> {
        if self.retry {
            match self.find_earlier_attempt().await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                // The read failed. An earlier attempt may still have been applied, and its version
                // replaced since. Minted again, the write would be newer than the version that
                // replaced it. In a bucket that keeps only the newest version the write would win,
                // so the put fails there. In other buckets the write becomes a sibling, which loses
                // nothing: the put continues.
                Err(error) if self.bucket_keeps_newest() => return Err(error),
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
            // The write was submitted and its outcome is unknown: the engine may still apply it.
            Ok(Err(_)) | Err(_) => Err(RequestError::Indeterminate { needed: self.required, received: 0 }),
        }
    }

    /// Reads R replicas before an overwrite, if this node recovers, and merges the result into this
    /// node's own record. An overwrite replaces the versions that its coordinator holds, and a
    /// recovering node may have forgotten some of them.
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

    /// True if replicas keep only the newest version of the bucket's keys.
    fn bucket_keeps_newest(&self) -> bool {
        self.node.shared.merge_rule(self.placement.key.bucket()) == MergeRule::KeepNewest
    }

    /// Reads R replicas to find an earlier attempt of this write. Returns their merged object if
    /// one of its live or replaced versions has the write's request id.
    ///
    /// # Errors
    /// If fewer than R replicas answer in half of the remaining time. The other half is left for
    /// the write.
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

    /// Sends the merged object to all replicas, or to their fallbacks, counts the acks, and replies
    /// to the client.
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
        // The loop goes on after the reply to the client, until every node has acked or failed, or
        // the deadline has passed.
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
        // A hint is sent for each replica for which no node acked, so that the replica need not
        // wait for the next round of anti-entropy.
        for target in self.unacked_replicas() {
            self.send_hint(target, &object, &mut quorum);
        }
    }

    /// Returns the quorum of the write, with the acks that it needs in each replica set.
    fn quorum(&self) -> WriteQuorum {
        if self.placement.pending_write_sets.is_empty() || planted(Bug::QuorumOverUnion) {
            return WriteQuorum::new(self.required);
        }
        let pending = self
            .placement
            .pending_write_sets
            .iter()
            .zip(&self.pending_required)
            .map(|(set, &needed)| (needed, &set[..]));
        WriteQuorum::of_sets(std::iter::once((self.required, &self.placement.replicas[..])).chain(pending))
    }

    /// Counts the answer of the node `from`. After a failure, sends the object to a fallback,
    /// unless another node has acked the object for the same replica, or may still ack it.
    fn count_answer(&mut self, from: NodeId, acked: bool, object: &Bytes, quorum: &mut WriteQuorum) -> Step {
        let open = self.sent.iter_mut().find(|sent| sent.to == from && sent.state == SentState::Open);
        let Some(sent) = open else { return Step::Wait };
        sent.state = if acked { SentState::Acked } else { SentState::Failed };
        let target = sent.target;
        let counts = self.counts(from);
        if acked {
            // Acks of a replica and of its fallback count as one, because the fallback keeps that
            // replica's copy.
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

    /// True if an ack of the node `from` counts towards W.
    fn counts(&self, from: NodeId) -> bool {
        self.sloppy || self.placement.is_target(from)
    }

    /// Returns the replicas that did not ack, and for which no fallback acked.
    fn unacked_replicas(&self) -> Vec<NodeId> {
        let is_unacked = |replica: &NodeId| {
            let mut sent = self.sent.iter().filter(|sent| sent.target == *replica);
            !sent.any(|sent| sent.state == SentState::Acked)
        };
        self.placement.targets().into_iter().filter(is_unacked).collect()
    }

    /// Sends the object to a fallback for each other replica that has not answered.
    fn hint_slow_replicas(&mut self, object: &Bytes, quorum: &mut WriteQuorum) {
        let slow = |sent: &&SentWrite| sent.state == SentState::Open && sent.to == sent.target;
        let targets: Vec<NodeId> = self.sent.iter().filter(slow).map(|sent| sent.target).collect();
        let this = self.node.shared.node();
        for target in targets.into_iter().filter(|&target| target != this) {
            self.send_hint(target, object, quorum);
        }
    }

    /// Sends the object to the next unused fallback, as a hint for the replica `target`. If no
    /// fallback is left, this node keeps the hint itself. That hint does not count towards W.
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

    /// Sends the object to `to`, for the replica `target`.
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

    /// Returns the timeout for sending the object to a node: the rest of the request's time. Hints
    /// that are sent after the deadline get a short time.
    fn send_timeout(&self) -> Duration {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Duration::from_millis(AFTERMATH_MS / 2) } else { left }
    }

    /// Reports that the write did not get its acks: emits the event, and replies `Indeterminate`.
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

/// Decodes a client's context.
///
/// # Errors
/// `InvalidRequest` if it is malformed, belongs to another key, or contains a time too far ahead of
/// this node's clock.
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
