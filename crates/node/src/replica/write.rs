//! Writes of this replica: minting a client's write, and merging an object that a peer sent.

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

/// A client's write, for its coordinator's own replica.
pub(crate) struct ClientWriteRequest {
    pub(crate) key: StorageKey,
    /// The replica that the written record is a hint for, if this node is a fallback.
    pub(crate) hint_for: Option<NodeId>,
    pub(crate) long_key: Option<Bytes>,
    pub(crate) write: Write,
    pub(crate) timeout: Duration,
}

/// An object that a coordinator or a peer sent.
pub(crate) struct ReceivedWrite {
    pub(crate) write: PeerWrite,
    /// The rest of the request's time.
    pub(crate) timeout: Duration,
    /// The sink of the ack.
    pub(crate) reply: ReplyTo<PeerResult>,
}

impl Replica {
    /// Applies a client's write as its coordinator: the write is minted inside the engine's update.
    /// The receiver hears that it was applied; `acked` hears that this replica counts towards W.
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

    fn ack_when(&self) -> AckWhen {
        if self.shared.ack_when_durable { AckWhen::Durable } else { AckWhen::Applied }
    }

    /// Merges objects into what is stored, together; each one's `reply` is acked once the engine's promise holds.
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

    /// Whether an object that was sent may be stored here: by whom it goes, and whether it belongs here.
    fn takes_write(&self, write: &PeerWrite) -> bool {
        let view = self.shared.view();
        let (this, partition) = (self.shared.node(), write.key.partition());
        match write.purpose {
            // That everybody knows the newest layout its coordinator may have heard earlier.
            WritePurpose::Replicate => view.takes_write(write.layout) && view.holds(this, partition),
            WritePurpose::Hint(_) => view.takes_write(write.layout),
            WritePurpose::HandOff => view.keeps_for(this, partition, write.key.bucket()),
        }
    }

    fn update_for(&self, ReceivedWrite { write, timeout, reply }: ReceivedWrite) -> Option<Box<dyn Update>> {
        if !self.shared.has_partition(write.key.partition()) {
            reply.send(Err(PeerError::Refused { detail: "no such partition".into() }));
            return None;
        }
        if !self.takes_write(&write) {
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
            // The sender may forget the object once it is acked.
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

/// A client's write that this node coordinates.
struct ClientWrite {
    /// The storage key of the record: the key's own, or a hint's.
    at: StorageKey,
    /// The storage key of the client's object.
    object_key: StorageKey,
    /// The replica that the written record is a hint for, if this node is a fallback.
    hint_for: Option<NodeId>,
    long_key: Option<Bytes>,
    write: Write,
    rule: MergeRule,
    limits: WriteLimits,
    /// The end of the request, in milliseconds of the monotonic clock.
    expires_ms: u64,
    ack: Ack,
    outcome: Option<Applied>,
}

impl ClientWrite {
    fn mint_role(&self) -> MintRole {
        match self.hint_for {
            None => MintRole::Replica(self.object_key.partition()),
            Some(_) => MintRole::Fallback,
        }
    }

    /// The side effect of storing `new` in `new_bytes` bytes.
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
        // A write that is minted late would replace writes that were made in the meantime.
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
                let sent = if planted(Bug::BareWriteReplicated) {
                    encode_object(&object.bare(&self.write), self.long_key.as_deref())
                } else {
                    encoded.clone()
                };
                self.outcome = Some(Applied { object: sent, written });
                let action = if fresh { RecordAction::Put(encoded) } else { RecordAction::Keep };
                Ok(Decision { action, side_effect })
            }
            Err(refusal) => Err(self.ack.reject(WriteFailure::Refused(refusal), format!("{refusal:?}"))),
        }
    }

    fn applied(&mut self) {
        self.ack.applied(self.outcome.take());
    }

    /// A write that was applied was sent to other replicas. If it failed after that, its actor has
    /// forgotten an event that they know of, and must not mint again.
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

/// Merges an object that a coordinator, or a replica that repairs, sent.
struct Merge {
    key: StorageKey,
    record: Record,
    encoded: Bytes,
    rule: MergeRule,
    expires_ms: u64,
    valid_until_ms: u64,
    /// It does not come from a client's request.
    is_repair: bool,
    ack: Ack,
}

impl Merge {
    fn put(&self, old: Option<&Object>, new: &Object, encoded: Bytes) -> Decision {
        let (old, new) = (old.map(RecordState::of), Some(RecordState::of(new)));
        Decision::put(encoded, SideEffect::Tree(TreeChange { key: self.key.clone(), old, new }))
    }

    /// WriteMode a stored record that cannot be read by the object that was sent. For this key that is
    /// a lost disk: the actor that may be forgotten with it never mints again, and this replica answers
    /// no reads of the partition until it has asked enough others.
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
            // A record of a newer build is not damaged: it stays as it is.
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
            // The usual case: the object that was sent contains everything that is stored.
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
