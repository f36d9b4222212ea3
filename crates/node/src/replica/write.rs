//! Writes of this replica. It mints clients' writes that this node coordinates, and merges objects
//! that peers send.

use std::time::Duration;

use bytes::Bytes;
use quorate_core::codec::{CodecError, Record, Unread, decode_object, decode_unread, encode_object};
use quorate_core::hint::hint_key;
use quorate_core::object::{MergeRule, Version, Write, WriteLimits};
use quorate_core::planted::{Bug, planted};
use quorate_core::request::{PeerError, PeerResult, PeerWrite, WritePurpose};
use quorate_core::seams::ReplyTo;
use quorate_core::storage::{RecordAction, StorageError, Update};
use quorate_core::{NodeId, Object, StorageKey};
use tokio::sync::oneshot;

use super::Replica;
use super::completions::{Ack, AckWhen, Applied};
use super::failure::{WriteFailure, unreadable};
use super::hints::KeepHint;
use super::record_update::{Decision, Finished, RecordChange, SideEffect, Tracked};
use crate::state::actors::MintRole;
use crate::state::hash_trees::{RecordState, TreeChange};
use crate::state::hint_ledger::HintChange;
use crate::state::shared::Shared;

/// A client's write, as the coordinator passes it to its own replica.
pub(crate) struct ClientWriteRequest {
    pub(crate) key: StorageKey,
    /// The replica for which the written record is a hint, if this node is a fallback.
    pub(crate) hint_for: Option<NodeId>,
    pub(crate) long_key: Option<Bytes>,
    pub(crate) write: Write,
    pub(crate) timeout: Duration,
}

/// A write that a coordinator or another peer sent.
pub(crate) struct ReceivedWrite {
    pub(crate) write: PeerWrite,
    /// The time that is left until the request's deadline.
    pub(crate) timeout: Duration,
    /// The sink of the ack or the error.
    pub(crate) reply: ReplyTo<PeerResult>,
}

impl Replica {
    /// Applies a client's write that this node coordinates. The write is minted inside the engine's
    /// update. The returned receiver gets the result once the write is applied. `acked` gets the
    /// ack of this replica, which counts towards W.
    pub(crate) fn coordinate_write(
        &self,
        request: ClientWriteRequest,
        acked: ReplyTo<PeerResult>,
    ) -> oneshot::Receiver<Result<Applied, WriteFailure>> {
        let ClientWriteRequest { key, hint_for, long_key, write, timeout } = request;
        let (ticket, applied) = self.completions.for_both(acked);
        let buckets = self.shared.buckets.load();
        let limits = WriteLimits {
            max_siblings: buckets.get(key.bucket()).definition.max_siblings as usize,
            remember_requests_ms: self.shared.settings.coordinator.max_request_timeout_ms,
        };
        let update = ClientWrite {
            at: hint_for.map_or_else(|| key.clone(), |target| hint_key(target, &key)),
            rule: self.shared.merge_rule(key.bucket()),
            object_key: key,
            hint_for,
            long_key,
            write,
            limits,
            expires_ms: self.expires_ms(timeout),
            ack: Ack::new(self.completions.queue(), ticket, self.ack_when()),
            outcome: None,
        };
        self.completions.submit(&*self.shared.engine, vec![Tracked::update(update, &self.shared)]);
        applied
    }

    /// Returns the time at which a timeout that begins now ends, in milliseconds of the monotonic
    /// clock.
    fn expires_ms(&self, timeout: Duration) -> u64 {
        self.shared.environment.monotonic_ms().saturating_add(timeout.as_millis() as u64)
    }

    /// Returns the moment at which this node acks a write: when the write is applied, or when it is
    /// durable.
    fn ack_when(&self) -> AckWhen {
        if self.shared.ack_when_durable { AckWhen::Durable } else { AckWhen::Applied }
    }

    /// Merges a batch of objects into the stored ones. Each write's `reply` gets the ack once the
    /// write is applied or durable, as the engine and the write's purpose require.
    pub(crate) fn write(&self, batch: Vec<ReceivedWrite>) {
        let sender_waits = batch.iter().any(|one| one.write.purpose == WritePurpose::HandOff);
        let updates: Vec<Box<dyn Update>> =
            batch.into_iter().filter_map(|one| self.update_for(one)).collect();
        if !updates.is_empty() {
            self.completions.submit(&*self.shared.engine, updates);
            if sender_waits {
                self.shared.engine.flush();
            }
        }
    }

    /// True if this node may store the object: it accepts writes of the sender's layout, and it has
    /// to hold the key. A hint needs only the first condition, a handoff only the second.
    fn accepts_write(&self, write: &PeerWrite) -> bool {
        let view = self.shared.view();
        let (this, partition) = (self.shared.node(), write.key.partition());
        match write.purpose {
            // Any active layout counts for `holds`. The coordinator may already write in the newest
            // layout, before this node learns that all nodes know that layout.
            WritePurpose::Replicate => view.takes_write(write.layout) && view.holds(this, partition),
            WritePurpose::Hint(_) => view.takes_write(write.layout),
            WritePurpose::HandOff => view.keeps_for(this, partition, write.key.bucket()),
        }
    }

    fn update_for(&self, ReceivedWrite { write, timeout, reply }: ReceivedWrite) -> Option<Box<dyn Update>> {
        if !self.shared.has_partition(write.key.partition()) {
            reply.send(Err(PeerError::Refused {
                detail: "the cluster has no partition of this number".into(),
            }));
            return None;
        }
        if !self.accepts_write(&write) {
            reply.send(Err(PeerError::StaleLayout));
            return None;
        }
        let PeerWrite { key, object, purpose, valid_until_ms, .. } = write;
        let record = match decode_object(&object) {
            Ok(record) => record,
            Err(error) => {
                reply.send(Err(PeerError::Refused { detail: error.to_string() }));
                return None;
            }
        };
        let expires_ms = self.expires_ms(timeout);
        let rule = self.shared.merge_rule(key.bucket());
        let ticket = self.completions.for_ack(reply);
        let when = match purpose {
            // The sender may delete its own copy of the object after the ack.
            WritePurpose::HandOff => AckWhen::Durable,
            WritePurpose::Replicate | WritePurpose::Hint(_) => self.ack_when(),
        };
        let ack = Ack::new(self.completions.queue(), ticket, when);
        if let WritePurpose::Hint(target) = purpose {
            let at = hint_key(target, &key);
            let keep = KeepHint { at, target, record, encoded: object, rule, valid_until_ms, ack };
            return Some(Tracked::update(keep, &self.shared));
        }
        let merge = Merge {
            key,
            record,
            encoded: object,
            rule,
            expires_ms,
            valid_until_ms,
            is_repair: purpose == WritePurpose::HandOff,
            ack,
        };
        Some(Tracked::update(merge, &self.shared))
    }
}

/// The update that mints a client's write, in the engine of the node that coordinates it.
struct ClientWrite {
    /// The storage key of the record: the object's, or the hint's if this node is a fallback.
    at: StorageKey,
    /// The storage key of the client's object.
    object_key: StorageKey,
    /// The replica for which the written record is a hint, if this node is a fallback.
    hint_for: Option<NodeId>,
    long_key: Option<Bytes>,
    write: Write,
    rule: MergeRule,
    limits: WriteLimits,
    /// The end of the request, in milliseconds of the monotonic clock.
    expires_ms: u64,
    ack: Ack,
    /// The result of the write. It is set when the write is decided, and taken when the write is
    /// applied.
    outcome: Option<Applied>,
}

impl ClientWrite {
    fn mint_role(&self) -> MintRole {
        match self.hint_for {
            None => MintRole::Replica(self.object_key.partition()),
            Some(_) => MintRole::Fallback,
        }
    }

    /// Returns the side effect of storing `new`, which takes `new_bytes` bytes.
    fn side_effect(
        &self,
        shared: &Shared,
        old: Option<StoredState>,
        new: &Object,
        new_bytes: usize,
    ) -> SideEffect {
        let Some(target) = self.hint_for else {
            return SideEffect::Tree(TreeChange {
                key: self.object_key.clone(),
                old: old.map(|old| old.state),
                new: Some(RecordState::of(new)),
            });
        };
        let key_bytes = self.at.as_bytes().len();
        SideEffect::Hint(HintChange {
            target,
            old: old.map_or(0, |old| key_bytes + old.bytes),
            new: key_bytes + new_bytes,
            at_ms: shared.environment.wall_ms(),
        })
    }
}

/// The stored record before a write.
struct StoredState {
    state: RecordState,
    /// Bytes of the encoded object.
    bytes: usize,
}

impl RecordChange for ClientWrite {
    fn key(&self) -> &StorageKey {
        &self.at
    }

    fn decide(&mut self, shared: &Shared, stored: Option<Bytes>) -> Result<Decision, StorageError> {
        // A write that is minted after its deadline could replace writes that were made in the
        // meantime.
        if shared.environment.monotonic_ms() > self.expires_ms {
            return Err(self.ack.reject(WriteFailure::Expired, "deadline passed".into()));
        }
        let mut unread = match stored.as_ref().map(decode_unread).transpose() {
            Ok(unread) => unread,
            Err(error) => return Err(unreadable(shared, &self.at, error)),
        };
        let mut object = unread.as_mut().map(Unread::take_unchecked).unwrap_or_default();
        let old = stored.as_ref();
        let old = old.map(|old| StoredState { state: RecordState::of(&object), bytes: old.len() });
        let role = self.mint_role();
        let now_ms = shared.environment.wall_ms();
        let mint = |newest| shared.actors.mint(role, newest);
        match object.write(&self.write, self.rule, self.limits, now_ms, mint) {
            Ok(written) => {
                let fresh = written.fresh;
                let is_old = |version: &Version| version.request != self.write.request;
                if (!fresh || object.live().iter().any(is_old))
                    && let Some(Err(error)) = unread.map(|unread| unread.check())
                {
                    return Err(unreadable(shared, &self.at, error));
                }
                let encoded = match stored {
                    Some(stored) if !fresh => stored,
                    _ => encode_object(&object, self.long_key.as_deref()),
                };
                let side_effect = fresh.then(|| self.side_effect(shared, old, &object, encoded.len()));
                if let Some(SideEffect::Hint(change)) = &side_effect
                    && let Err(limit) = shared.check_hint_budget(*change)
                {
                    let failure = WriteFailure::HintBudget { target: change.target, limit };
                    return Err(self.ack.reject(failure, "hint budget".into()));
                }
                let replicated = if planted(Bug::BareWriteReplicated) {
                    encode_object(&object.bare(&self.write), self.long_key.as_deref())
                } else {
                    encoded.clone()
                };
                self.outcome = Some(Applied { object: replicated, written });
                let action = if fresh { RecordAction::Put(encoded) } else { RecordAction::Keep };
                Ok(Decision { action, side_effect })
            }
            Err(refusal) => Err(self.ack.reject(WriteFailure::Refused(refusal), format!("{refusal:?}"))),
        }
    }

    fn applied(&mut self) {
        self.ack.applied(self.outcome.take());
    }

    /// Renews the actor if the write failed after it was applied: other replicas may have the
    /// write, and this node has forgotten it. The actor of a forgotten write must not mint again.
    /// The version vector of its next write would cover the forgotten one, and merges would drop
    /// that.
    fn finished(mut self, shared: &Shared, end: Finished) {
        if end.outcome.is_err() && end.was_applied {
            match self.mint_role() {
                MintRole::Replica(partition) => self.ack.renew_actor(shared, partition),
                MintRole::Fallback => shared.actors.renew_fallback(),
            }
        }
        self.ack.finished(end.outcome);
    }
}

/// The update that merges an object, sent by a coordinator or by a repair, into the stored object.
struct Merge {
    key: StorageKey,
    record: Record,
    /// `record`, encoded.
    encoded: Bytes,
    rule: MergeRule,
    /// The end of the request, in milliseconds of the monotonic clock.
    expires_ms: u64,
    /// The time after which the message is void, in milliseconds since 1970.
    valid_until_ms: u64,
    /// True if a delivered hint, anti-entropy or a transfer sent the object. False if a coordinator
    /// sent it.
    is_repair: bool,
    ack: Ack,
}

impl Merge {
    /// Returns the decision to store `new` in place of `old`. `encoded`: the bytes of `new`.
    fn put(&self, old: Option<&Object>, new: &Object, encoded: Bytes) -> Decision {
        let (old, new) = (old.map(RecordState::of), Some(RecordState::of(new)));
        Decision::put(encoded, SideEffect::Tree(TreeChange { key: self.key.clone(), old, new }))
    }

    /// Replaces an unreadable stored record with the object that was sent. The damage is treated as
    /// a lost disk. The partition's actor never mints again, because one of its writes may be lost.
    /// This replica answers no reads of the partition until it has merged with enough others.
    fn replace_damaged(&mut self, shared: &Shared, error: CodecError) -> Decision {
        unreadable(shared, &self.key, error);
        self.ack.renew_actor(shared, self.key.partition());
        shared.lost_record_of(self.key.partition());
        let object = std::mem::take(&mut self.record.object);
        self.put(None, &object, self.encoded.clone())
    }
}

impl RecordChange for Merge {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn decide(&mut self, shared: &Shared, stored: Option<Bytes>) -> Result<Decision, StorageError> {
        if shared.environment.monotonic_ms() > self.expires_ms || shared.is_void(self.valid_until_ms) {
            return Err(self.ack.reject(WriteFailure::Expired, "deadline passed".into()));
        }
        let Some(stored) = stored else {
            if self.is_repair && shared.was_collected(&self.key, self.record.object.digest()) {
                return Ok(Decision::keep());
            }
            let object = std::mem::take(&mut self.record.object);
            return Ok(self.put(None, &object, self.encoded.clone()));
        };
        if stored == self.encoded {
            return Ok(Decision::keep());
        }
        let unread = match decode_unread(&stored) {
            Ok(record) => record,
            // A record in the format of a newer version of this program is not damaged: it stays
            // unchanged.
            Err(error @ CodecError::NewerVersion { .. }) => {
                return Err(unreadable(shared, &self.key, error));
            }
            Err(error) => return Ok(self.replace_damaged(shared, error)),
        };
        let stored = unread.unchecked();
        if !self.record.object.replaces_all_of(&stored.object)
            && let Err(error) = unread.check()
        {
            return Ok(self.replace_damaged(shared, error));
        }
        if planted(Bug::RepairOverwrites) && !self.is_repair {
            let object = std::mem::take(&mut self.record.object);
            return Ok(self.put(Some(&stored.object), &object, self.encoded.clone()));
        }
        let mut merged = std::mem::take(&mut self.record.object);
        if !merged.merge(&stored.object, self.rule) && self.record.long_key == stored.long_key {
            // The usual case: the object that was sent contains everything of the stored one.
            return Ok(self.put(Some(&stored.object), &merged, self.encoded.clone()));
        }
        if merged == stored.object {
            return Ok(Decision::keep());
        }
        let long_key = self.record.long_key.as_deref().or(stored.long_key.as_deref());
        Ok(self.put(Some(&stored.object), &merged, encode_object(&merged, long_key)))
    }

    fn applied(&mut self) {
        self.ack.applied(None);
    }

    fn finished(self, _: &Shared, end: Finished) {
        self.ack.finished(end.outcome);
    }
}
