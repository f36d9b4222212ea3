//! Changes of hints. A node keeps a hint for a replica that cannot be reached, and deletes it after
//! the delivery.

use bytes::Bytes;
use quorate_core::codec::{Record, decode_object, encode_object};
use quorate_core::hint::{hint_key, parse_hint_key};
use quorate_core::object::MergeRule;
use quorate_core::planted::{Bug, planted};
use quorate_core::storage::{RecordAction, StorageError};
use quorate_core::{NodeId, PartitionId, StorageKey};

use super::Replica;
use super::completions::Ack;
use super::failure::{WriteFailure, unreadable};
use super::record_update::{Decision, Finished, RecordChange, SideEffect, Tracked};
use crate::state::hint_ledger::HintChange;
use crate::state::shared::Shared;

/// A hint in the state in which it was sent to its target.
pub(crate) struct SentHint<'a> {
    /// The storage key of the hint.
    pub(crate) hint: &'a Bytes,
    /// The encoded object that was sent.
    pub(crate) object: &'a Bytes,
}

impl Replica {
    /// Deletes a delivered hint. Keeps the hint if it has changed since it was sent, because the
    /// change was not delivered.
    pub(crate) fn delete_hint(&self, sent: SentHint<'_>) {
        let (target, key) =
            parse_hint_key(sent.hint).expect("the hint's key was parsed before the hint was sent");
        let (at, partition) = (hint_key(target, &key), key.partition());
        let deletion = DropHint { at, target, partition, sent: sent.object.clone() };
        self.shared.engine.update(vec![Tracked::update(deletion, &self.shared)]);
    }
}

/// The storing of an object as a hint. The object is merged into the hint that this node already
/// keeps for the same target and key.
pub(super) struct KeepHint {
    /// The storage key of the hint.
    pub(super) at: StorageKey,
    pub(super) target: NodeId,
    pub(super) record: Record,
    /// `record`, encoded.
    pub(super) encoded: Bytes,
    pub(super) rule: MergeRule,
    /// The time after which the message is void, in milliseconds since 1970.
    pub(super) valid_until_ms: u64,
    pub(super) ack: Ack,
}

impl RecordChange for KeepHint {
    fn key(&self) -> &StorageKey {
        &self.at
    }

    fn decide(&mut self, shared: &Shared, stored: Option<Bytes>) -> Result<Decision, StorageError> {
        if shared.is_void(self.valid_until_ms) {
            return Err(self.ack.reject(WriteFailure::Expired, "deadline passed".into()));
        }
        let value = match &stored {
            None => self.encoded.clone(),
            Some(stored) if *stored == self.encoded => return Ok(Decision::keep()),
            Some(stored) => match decode_object(stored) {
                Ok(kept) => {
                    self.record.object.merge(&kept.object, self.rule);
                    let long_key = self.record.long_key.as_deref().or(kept.long_key.as_deref());
                    encode_object(&self.record.object, long_key)
                }
                Err(error) => return Err(unreadable(shared, &self.at, error)),
            },
        };
        let key_bytes = self.at.as_bytes().len();
        let change = HintChange {
            target: self.target,
            old: stored.map_or(0, |stored| key_bytes + stored.len()),
            new: key_bytes + value.len(),
            at_ms: shared.environment.wall_ms(),
        };
        if let Err(limit) = shared.check_hint_budget(change) {
            let failure = WriteFailure::HintBudget { target: self.target, limit };
            return Err(self.ack.reject(failure, "hint budget".into()));
        }
        Ok(Decision::put(value, SideEffect::Hint(change)))
    }

    fn applied(&mut self) {
        self.ack.applied(None);
    }

    fn finished(self, _: &Shared, end: Finished) {
        self.ack.finished(end.outcome);
    }
}

/// The deletion of a delivered hint, if its object is still the one that was sent.
struct DropHint {
    /// The storage key of the hint.
    at: StorageKey,
    target: NodeId,
    partition: PartitionId,
    /// The encoded object that was sent.
    sent: Bytes,
}

impl RecordChange for DropHint {
    fn key(&self) -> &StorageKey {
        &self.at
    }

    fn decide(&mut self, shared: &Shared, stored: Option<Bytes>) -> Result<Decision, StorageError> {
        let Some(stored) = stored else { return Ok(Decision::keep()) };
        if stored != self.sent && !planted(Bug::ChangedHintDeleted) {
            return Ok(Decision::keep());
        }
        // The hint may contain writes that this node minted as a fallback. A node that forgets a
        // write of an actor must mint later writes under a new actor.
        shared.actors.renew_fallback();
        shared.note_hint_deleted(self.partition);
        let old = self.at.as_bytes().len() + stored.len();
        let at_ms = shared.environment.wall_ms();
        let change = HintChange { target: self.target, old, new: 0, at_ms };
        Ok(Decision { action: RecordAction::Remove, side_effect: Some(SideEffect::Hint(change)) })
    }

    fn finished(self, _: &Shared, _: Finished) {}
}
