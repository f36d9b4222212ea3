//! Put and delete: mint the write on this node's own replica, send the merged object to the others, count acks.

use std::rc::Rc;

use bytes::Bytes;
use quorate_core::codec::{decode_context, encode_context};
use quorate_core::event::EventKind;
use quorate_core::object::{Replaces, Write, Written};
use quorate_core::quorum::{Step, WriteQuorum};
use quorate_core::request::{
    ClientReply, ClientRequest, ClientResult, PeerReply, PutReply, PutRequest, Receipt, Replacing,
};
use quorate_core::seams::ReplyTo;
use quorate_core::{CausalContext, NodeId, Payload, RequestError};
use tokio::time::Instant;

use super::Place;
use super::forward::forward;
use super::read::read_replicas;
use super::repair::push;
use crate::gather::Gather;
use crate::node::Node;

/// Serves a put. Answers at W acks and goes on until all replicas have been heard, or the deadline.
pub(crate) async fn put(
    node: &Rc<Node>,
    request: PutRequest,
    deadline: Instant,
    forwarded: bool,
    reply: ReplyTo<ClientResult>,
) {
    let place = Place::of(node, &request.key);
    if !place.replicas.contains(&node.shared.node()) && !forwarded {
        return reply.send(forward(node, &place, ClientRequest::Put(request), deadline).await);
    }
    let mut attempt = match Attempt::prepare(node, &place, &request, deadline) {
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
    retry: bool,
    begun: Instant,
    deadline: Instant,
    gather: Gather,
    /// Replicas that were sent the write, this node included if it minted it.
    sent: Vec<NodeId>,
}

impl<'a> Attempt<'a> {
    /// Checks the request, and whether enough replicas are in sight, before anything is minted.
    fn prepare(
        node: &'a Rc<Node>,
        place: &'a Place,
        request: &PutRequest,
        deadline: Instant,
    ) -> Result<Attempt<'a>, RequestError> {
        let begun = Instant::now();
        let definition = &place.bucket.definition;
        let required = place.bucket.required(request.w, definition.w, "w")?;
        if !place.replicas.contains(&node.shared.node()) {
            return Err(RequestError::invalid("this node is no replica of the key; refresh the layout"));
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
        let reachable = place.live(node).len() as u8;
        if reachable < required {
            return Err(RequestError::NotAttempted { needed: required, reachable });
        }
        let replaces = match &request.replacing {
            Replacing::WhatIsThere { seen } => Replaces::WhatIsThere { seen: context_of(node, place, seen)? },
            Replacing::Exactly { context } => Replaces::Exactly(context_of(node, place, context)?),
        };
        let write = Write { request: request.request, payload: request.payload.clone(), replaces };
        let retry = request.attempt > 0;
        let gather = Gather::default();
        Ok(Attempt { node, place, write, required, retry, begun, deadline, gather, sent: Vec::new() })
    }

    /// Makes the object that the replicas are to hold: minted here, or, for a retry that a quorum knows, as it is.
    async fn begin(&mut self) -> Result<(Written, Bytes), RequestError> {
        if self.retry
            && let Some(found) = self.find_earlier_attempt().await
        {
            return Ok(found);
        }
        let this = self.node.shared.node();
        self.sent.push(this);
        let applied = self.node.replica.write(
            self.place.key.clone(),
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

    /// Asks R replicas, if they can be had, whether the write's id is live or was replaced.
    async fn find_earlier_attempt(&self) -> Option<(Written, Bytes)> {
        let now = Instant::now();
        let half = now + self.deadline.saturating_duration_since(now) / 2;
        let required =
            self.place.bucket.required(Default::default(), self.place.bucket.definition.r, "r").ok()?;
        let read = read_replicas(self.node, self.place, required, half).await.ok()?;
        let object = read.encoded.filter(|_| read.merged.knows(self.write.request))?;
        Some((read.merged.already_written(&self.write), object))
    }

    /// Sends the merged object to all replicas that do not have it yet, and counts.
    async fn replicate(mut self, written: Written, object: Bytes, reply: ReplyTo<ClientResult>) {
        for replica in self.place.live(self.node) {
            if !self.sent.contains(&replica) {
                push(self.node, self.place, &object, replica, self.deadline, &self.gather);
                self.sent.push(replica);
            }
        }
        let mut reply = Some(reply);
        let mut quorum = match WriteQuorum::new(self.required, self.sent.len()) {
            Ok(quorum) => quorum,
            Err(_) => return self.give_up(0, reply.take()),
        };
        // After the answer this goes on: every replica's ack or failure is heard, whoever still waits for it.
        while quorum.is_open() {
            let step = match self.gather.next(self.deadline).await {
                Some((from, Ok(PeerReply::Acked))) => quorum.ack(from),
                Some(_) => quorum.failure(),
                None => Step::Impossible,
            };
            match step {
                Step::Reached => {
                    if let Some(reply) = reply.take() {
                        reply.send(Ok(ClientReply::Put(self.answer(&written, quorum.acked()))));
                    }
                }
                Step::Impossible if reply.is_some() => {
                    return self.give_up(quorum.acked().len() as u8, reply.take());
                }
                Step::Impossible => return,
                Step::Wait | Step::Ask(_) => {}
            }
        }
    }

    fn give_up(&self, received: u8, reply: Option<ReplyTo<ClientResult>>) {
        let needed = self.required;
        self.node.shared.emit(Some(self.write.request), EventKind::WriteIndeterminate { needed, received });
        if let Some(reply) = reply {
            reply.send(Err(RequestError::Indeterminate { needed, received }));
        }
    }

    fn answer(&self, written: &Written, acked: &[NodeId]) -> PutReply {
        PutReply {
            context: encode_context(&written.context, self.place.key_hash).into(),
            conflict: written.conflict,
            hinted: 0,
            receipt: Receipt {
                coordinator: self.node.shared.node(),
                layout: self.node.shared.layout.number(),
                acked: acked.to_vec(),
                fallbacks: Vec::new(),
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
    let limit = node.shared.config.max_clock_skew_ms;
    if ahead > limit {
        return Err(RequestError::invalid(format!(
            "context is from {ahead} ms ahead of this node's clock, the limit is {limit} (max_clock_skew_ms): check the nodes' clocks"
        )));
    }
    Ok(context)
}
