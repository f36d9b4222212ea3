//! A node as replica: reads and merges records of its engine, for its own coordinator and for peers.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate_core::codec::{CodecError, Record, Unread, decode_object, decode_unread, encode_object};
use quorate_core::event::EventKind;
use quorate_core::hint::hint_key;
use quorate_core::object::{MAX_OBJECT_BYTES, MergeRule, Version, Write, WriteLimits, WriteRefusal};
use quorate_core::planted::{Bug, planted};
use quorate_core::request::{
    PeerError, PeerReply, PeerResult, PeerWrite, Reap, ScanPage, ScanPartition, WritePurpose,
};
use quorate_core::seams::{ReplySink, ReplyTo};
use quorate_core::storage::{Change, Range, StorageError, Update};
use quorate_core::{Digest, NodeId, Object, PartitionId, RequestError, StorageKey};
use tokio::sync::oneshot;

use crate::completions::{Applied, Completions, Outbox, Progress};
use crate::hints::{HintChange, KeepHint, kept_for};
use crate::shared::{Shared, Tenure};
use crate::trees::{Held, TreeChange};

/// Most records of one page that a peer asks for.
const MAX_PAGE_RECORDS: usize = 4_096;
/// Most bytes of one page that a peer asks for.
const MAX_PAGE_BYTES: usize = 1024 * 1024;

/// What a full hint budget is called in errors.
const HINT_BUDGET: &str = "bytes of hints for one replica ([hints] max_mib_per_target)";

/// Why a write did not happen on this replica.
#[derive(Clone, Debug)]
pub(crate) enum WriteFailure {
    /// The write breaks a limit.
    Refused(WriteRefusal),
    /// Its deadline passed while it waited.
    Expired,
    /// What is kept for one replica would pass its budget.
    HintBudget {
        /// For whom it was.
        target: NodeId,
        /// The budget, bytes.
        limit: u64,
    },
    /// The engine failed, or the record that is there can't be read.
    Storage(StorageError),
}

impl WriteFailure {
    pub(crate) fn for_peer(&self) -> PeerError {
        match self {
            WriteFailure::Refused(refusal) => PeerError::Refused { detail: format!("{refusal:?}") },
            WriteFailure::Expired => PeerError::Expired,
            WriteFailure::HintBudget { limit, .. } => {
                PeerError::Overloaded { what: HINT_BUDGET.into(), limit: *limit }
            }
            WriteFailure::Storage(error) => storage_error_for_peer(error),
        }
    }

    pub(crate) fn for_client(&self) -> RequestError {
        match self {
            WriteFailure::Refused(WriteRefusal::TooManySiblings { siblings, limit }) => {
                RequestError::TooManySiblings { siblings: *siblings as u32, limit: *limit as u32 }
            }
            WriteFailure::Refused(WriteRefusal::TooManyDots { dots }) => RequestError::invalid(format!(
                "this context has {dots} single dots over what the key has: read the key and write with the context of that read"
            )),
            WriteFailure::Refused(WriteRefusal::TooLarge { bytes }) => RequestError::invalid(format!(
                "the values side by side would be {bytes} bytes, the limit is {MAX_OBJECT_BYTES}: read the key and write with the context of that read"
            )),
            WriteFailure::Expired => RequestError::Overloaded {
                what: "what the storage engine does before a deadline".into(),
                limit: 0,
            },
            WriteFailure::HintBudget { limit, .. } => {
                RequestError::Overloaded { what: HINT_BUDGET.into(), limit: *limit }
            }
            WriteFailure::Storage(StorageError::QueueFull { limit }) => {
                RequestError::Overloaded { what: "the storage engine's queue".into(), limit: *limit }
            }
            WriteFailure::Storage(error) => RequestError::StorageFailed { detail: error.to_string() },
        }
    }
}

fn storage_error_for_peer(error: &StorageError) -> PeerError {
    match error {
        StorageError::QueueFull { limit } => {
            PeerError::Overloaded { what: "the storage engine's queue".into(), limit: *limit }
        }
        other => PeerError::Storage { detail: other.to_string() },
    }
}

/// An object that was sent, to be merged into what is stored.
pub(crate) struct ToStore {
    pub(crate) write: PeerWrite,
    /// What is left of the request's deadline.
    pub(crate) timeout: Duration,
    pub(crate) reply: ReplyTo<PeerResult>,
}

/// This node's records, as one worker uses them.
pub(crate) struct Replica {
    shared: Arc<Shared>,
    completions: Rc<Completions>,
}

impl Replica {
    pub(crate) fn new(shared: Arc<Shared>) -> Replica {
        Replica { completions: Completions::start(shared.clone()), shared }
    }

    /// The encoded object under a key, for a coordinator that reads this layout, unless this replica may have forgotten it.
    pub(crate) fn read(&self, key: &StorageKey, layout: u64) -> PeerResult {
        if !self.takes_read(layout, key.partition()) {
            return Err(PeerError::StaleLayout);
        }
        if self.shared.is_recovering(key.partition()) && !planted(Bug::AmnesiacAnswers) {
            return Err(PeerError::Recovering);
        }
        self.fetch(key)
    }

    fn takes_read(&self, layout: u64, partition: PartitionId) -> bool {
        let known = u32::from(partition.0) < self.shared.partitions();
        known && self.shared.view().takes_read(layout, self.shared.node(), partition)
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

    /// The encoded object under a key, for repair: what is here, whatever was forgotten.
    pub(crate) fn fetch(&self, key: &StorageKey) -> PeerResult {
        self.answer(self.shared.engine.get(key))
    }

    /// What this node keeps for the key's replicas. Absent means that it keeps nothing, never that there is nothing.
    pub(crate) fn read_hints(&self, key: &StorageKey) -> PeerResult {
        self.answer(kept_for(&self.shared, key))
    }

    fn answer(&self, found: Result<Option<Bytes>, StorageError>) -> PeerResult {
        match found {
            Ok(object) => Ok(PeerReply::Object(object)),
            Err(error) => {
                self.shared.emit(None, EventKind::StorageFailed { detail: error.to_string() });
                Err(storage_error_for_peer(&error))
            }
        }
    }

    /// Merges objects into what is stored, together; each one's `reply` is acked once the engine's promise holds.
    pub(crate) fn take(&self, batch: Vec<ToStore>) {
        let waits = batch.iter().any(|one| one.write.purpose == WritePurpose::HandOff);
        let updates: Vec<Box<dyn Update>> = batch.into_iter().filter_map(|one| self.storing(one)).collect();
        if !updates.is_empty() {
            self.completions.submit(&*self.shared.engine, updates);
            if waits {
                self.shared.engine.flush();
            }
        }
    }

    fn storing(&self, ToStore { write, timeout, reply }: ToStore) -> Option<Box<dyn Update>> {
        if u32::from(write.key.partition().0) >= self.shared.partitions() {
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
        let mut acking = self.acking(ticket);
        if let WritePurpose::Hint(target) = purpose {
            let at = hint_key(target, &key);
            return Some(Box::new(KeepHint {
                at,
                target,
                record,
                encoded: object,
                rule,
                valid_until_ms,
                acking,
                change: None,
            }));
        }
        acking.only_when_durable = purpose == WritePurpose::HandOff;
        Some(Box::new(Merge {
            key,
            record,
            encoded: object,
            rule,
            expires_ms,
            valid_until_ms,
            is_repair: purpose == WritePurpose::HandOff,
            acking,
            change: None,
        }))
    }

    /// What is durably stored under some keys, as digests.
    pub(crate) fn held_durably(&self, keys: Vec<StorageKey>, reply: ReplyTo<PeerResult>) {
        if keys.iter().any(|key| self.shared.is_recovering(key.partition())) {
            return reply.send(Err(PeerError::Recovering));
        }
        if keys.is_empty() {
            return reply.send(Ok(PeerReply::Held(Vec::new())));
        }
        let look = Arc::new(Look::new(keys.len()));
        let answer =
            ReplyTo::new(Rc::new(LookReply { look: look.clone(), reply: Cell::new(Some(reply)) }), 0);
        let ticket = self.completions.for_ack(answer);
        let outbox = &self.completions.outbox;
        let look_at = |(at, key)| -> Box<dyn Update> {
            Box::new(LookAt { key, at, look: look.clone(), outbox: outbox.clone(), ticket })
        };
        let updates: Vec<Box<dyn Update>> = keys.into_iter().enumerate().map(look_at).collect();
        self.completions.submit(&*self.shared.engine, updates);
        self.shared.engine.flush();
    }

    /// Deletes objects that are exactly in the state named.
    pub(crate) fn reap(&self, reap: Reap, reply: ReplyTo<PeerResult>) {
        let Reap { entries, valid_until_ms } = reap;
        self.shared.note_reaped(&entries, valid_until_ms);
        let one = |(key, digest): (StorageKey, Digest)| -> Box<dyn Update> {
            let shared = self.shared.clone();
            Box::new(ReapOne { key, digest, valid_until_ms, shared, change: None, applied: false })
        };
        self.completions.submit(&*self.shared.engine, entries.into_iter().map(one).collect());
        reply.send(Ok(PeerReply::Acked));
    }

    /// Applies a client's write as its coordinator: minted inside the engine's update. The receiver hears when it is
    /// applied, `acked` when this replica may count.
    ///
    /// `hint_for`: this node is no replica and coordinates as a fallback: what it writes is a hint for this replica.
    pub(crate) fn write(
        &self,
        key: StorageKey,
        hint_for: Option<NodeId>,
        long_key: Option<Bytes>,
        write: Write,
        timeout: Duration,
        acked: ReplyTo<PeerResult>,
    ) -> oneshot::Receiver<Result<Applied, WriteFailure>> {
        let (ticket, applied) = self.completions.for_both(acked);
        let buckets = self.shared.buckets.load();
        let limits = WriteLimits {
            max_siblings: buckets.get(key.bucket()).definition.max_siblings as usize,
            remember_requests_ms: self.shared.settings.coordinator.max_request_timeout_ms,
        };
        let rule = self.shared.merge_rule(key.bucket());
        let acking = self.acking(ticket);
        let expires_ms = self.expires_ms(timeout);
        let (at, role) = match hint_for {
            None => (key.clone(), Role::Replica),
            Some(target) => (hint_key(target, &key), Role::Fallback { target }),
        };
        let update = ClientWrite {
            at,
            named: key,
            role,
            effect: None,
            long_key,
            write,
            rule,
            limits,
            expires_ms,
            acking,
            outcome: None,
            applied: false,
        };
        self.completions.submit(&*self.shared.engine, vec![Box::new(update)]);
        applied
    }

    /// A page of a partition.
    pub(crate) fn scan(&self, scan: &ScanPartition) -> PeerResult {
        if !self.takes_read(scan.layout, scan.partition) {
            return Err(PeerError::StaleLayout);
        }
        if self.shared.is_recovering(scan.partition) && !planted(Bug::AmnesiacAnswers) {
            return Err(PeerError::Recovering);
        }
        let begin = StorageKey::partition_start(scan.partition);
        if !scan.prefix.starts_with(&begin) || !(scan.after.is_empty() || scan.after.starts_with(&begin)) {
            return Err(PeerError::Refused { detail: "a scan stays within its partition".into() });
        }
        let end = quorate_core::key::end_of_prefix(&scan.prefix);
        let start = scan.after.clone().max(scan.prefix.clone());
        let range = Range {
            start: &start,
            after: !scan.after.is_empty() && start == scan.after,
            end: end.as_deref(),
            limit: (scan.limit as usize).clamp(1, MAX_PAGE_RECORDS),
            max_bytes: (scan.max_bytes as usize).min(MAX_PAGE_BYTES),
        };
        match self.shared.engine.scan(range) {
            Ok(page) => Ok(PeerReply::Page(ScanPage { records: page.records, more: page.more })),
            Err(error) => Err(storage_error_for_peer(&error)),
        }
    }

    fn expires_ms(&self, timeout: Duration) -> u64 {
        self.shared.environment.monotonic_ms().saturating_add(timeout.as_millis() as u64)
    }

    fn acking(&self, ticket: u64) -> Acking {
        let outbox = self.completions.outbox.clone();
        Acking {
            shared: self.shared.clone(),
            outbox,
            ticket,
            only_when_durable: false,
            was_applied: false,
            failure: None,
            renewed: None,
        }
    }
}

/// When an update of this node acks, and who hears of it.
pub(crate) struct Acking {
    pub(crate) shared: Arc<Shared>,
    outbox: Arc<Outbox>,
    ticket: u64,
    /// Whoever sent this may forget it then: only what is durable is acked, whatever the engine promises otherwise.
    only_when_durable: bool,
    was_applied: bool,
    /// A typed reason, where the engine only knows that the update rejected its record.
    failure: Option<WriteFailure>,
    /// The partition whose actor this update had to replace.
    renewed: Option<PartitionId>,
}

impl Acking {
    pub(crate) fn reject(&mut self, failure: WriteFailure, detail: String) -> StorageError {
        self.failure = Some(failure);
        StorageError::Rejected { detail }
    }

    pub(crate) fn damaged(&mut self, key: &StorageKey, error: CodecError) -> StorageError {
        let detail = format!("record {key:?}: {error}");
        self.shared.emit(None, EventKind::StorageFailed { detail: detail.clone() });
        StorageError::Rejected { detail }
    }

    pub(crate) fn applied(&mut self, applied: Option<Applied>) {
        self.was_applied = true;
        let now = !self.waits() || planted(Bug::AckBeforeDurable);
        let acked = now.then_some(Ok(()));
        if applied.is_some() || acked.is_some() {
            self.outbox.post(Progress { ticket: self.ticket, applied, acked, renewed: None });
        }
    }

    fn waits(&self) -> bool {
        self.shared.ack_when_durable || self.only_when_durable
    }

    /// Called where a change could not be committed after all.
    pub(crate) fn undo_if_applied(&self, undo: impl FnOnce(&Shared)) {
        if self.was_applied {
            undo(&self.shared);
        }
    }

    /// Called by the engine, perhaps under its lock: nothing is logged here, that is done where it is delivered.
    pub(crate) fn finished(self, outcome: Result<(), StorageError>) {
        let acked = match outcome {
            Ok(()) if !self.waits() && self.renewed.is_none() => return,
            Ok(()) => Ok(()),
            Err(error) => Err(self.failure.unwrap_or(WriteFailure::Storage(error))),
        };
        let Acking { outbox, ticket, renewed, .. } = self;
        outbox.post(Progress { ticket, applied: None, acked: Some(acked), renewed });
    }

    fn renew_actor(&mut self, partition: PartitionId) {
        self.shared.renew_actor(partition);
        self.renewed = Some(partition);
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
    acking: Acking,
    change: Option<TreeChange>,
}

impl Merge {
    fn changing(&mut self, old: Option<&Object>, new: &Object) {
        let change = TreeChange { key: self.key.clone(), old: old.map(Held::of), new: Some(Held::of(new)) };
        self.change = Some(change);
    }

    /// What was here can't be read any more, which is a lost disk for this key: what others hold takes its place, the actor
    /// that may be forgotten with it never speaks again, and until enough others were asked this replica answers no reads
    /// of the partition.
    fn replace_damaged(&mut self, error: CodecError) -> Change {
        self.acking.damaged(&self.key, error);
        self.acking.renew_actor(self.key.partition());
        self.acking.shared.lost_something_of(self.key.partition());
        let object = std::mem::take(&mut self.record.object);
        self.changing(None, &object);
        Change::Put(self.encoded.clone())
    }
}

impl Update for Merge {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, stored: Option<Bytes>) -> Result<Change, StorageError> {
        let shared = self.acking.shared.clone();
        if shared.environment.monotonic_ms() > self.expires_ms || shared.is_void(self.valid_until_ms) {
            return Err(self.acking.reject(WriteFailure::Expired, "deadline passed".into()));
        }
        let Some(stored) = stored else {
            if self.is_repair && shared.was_reaped(&self.key, self.record.object.digest()) {
                return Ok(Change::Keep);
            }
            let object = std::mem::take(&mut self.record.object);
            self.changing(None, &object);
            return Ok(Change::Put(self.encoded.clone()));
        };
        if stored == self.encoded {
            return Ok(Change::Keep);
        }
        let unread = match decode_unread(&stored) {
            Ok(record) => record,
            // Not damaged, only beyond this build: it stays as it is.
            Err(error @ CodecError::NewerVersion { .. }) => {
                return Err(self.acking.damaged(&self.key, error));
            }
            Err(error) => return Ok(self.replace_damaged(error)),
        };
        let stored = unread.unchecked();
        if !self.record.object.replaces_all_of(&stored.object)
            && let Err(error) = unread.check()
        {
            return Ok(self.replace_damaged(error));
        }
        if planted(Bug::RepairOverwrites) && !self.is_repair {
            let object = std::mem::take(&mut self.record.object);
            self.changing(Some(&stored.object), &object);
            return Ok(Change::Put(self.encoded.clone()));
        }
        let mut merged = std::mem::take(&mut self.record.object);
        if !merged.merge(&stored.object, self.rule) && self.record.long_key == stored.long_key {
            // The usual case: what came knows all that was here.
            self.changing(Some(&stored.object), &merged);
            return Ok(Change::Put(self.encoded.clone()));
        }
        if merged == stored.object {
            return Ok(Change::Keep);
        }
        self.changing(Some(&stored.object), &merged);
        let long_key = self.record.long_key.as_deref().or(stored.long_key.as_deref());
        Ok(Change::Put(encode_object(&merged, long_key)))
    }

    fn applied(&mut self) {
        if let Some(change) = &self.change {
            self.acking.shared.trees.apply(change);
        }
        self.acking.applied(None);
    }

    fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
        if let (Err(_), Some(change)) = (&outcome, &self.change) {
            self.acking.undo_if_applied(|shared| shared.trees.undo(change));
        }
        self.acking.finished(outcome);
    }
}

/// As what a node coordinates a write.
#[derive(Clone, Copy, Debug)]
enum Role {
    /// As a replica of the key.
    Replica,
    /// As a fallback: what it writes is a hint.
    Fallback { target: NodeId },
}

/// What else changes with a record: its partition's hash tree, or the account of hints.
enum Effect {
    Tree(TreeChange),
    Hint(HintChange),
}

impl Effect {
    fn apply(&self, shared: &Shared) {
        match self {
            Effect::Tree(change) => shared.trees.apply(change),
            Effect::Hint(change) => shared.hints.apply(*change),
        }
    }

    fn undo(&self, shared: &Shared) {
        match self {
            Effect::Tree(change) => shared.trees.undo(change),
            Effect::Hint(change) => shared.hints.apply(change.undone()),
        }
    }
}

/// Applies a write that this node coordinates.
struct ClientWrite {
    /// The record: the key's, or a hint's.
    at: StorageKey,
    named: StorageKey,
    role: Role,
    effect: Option<Effect>,
    long_key: Option<Bytes>,
    write: Write,
    rule: MergeRule,
    limits: WriteLimits,
    expires_ms: u64,
    acking: Acking,
    outcome: Option<Applied>,
    applied: bool,
}

impl ClientWrite {
    fn tenure(&self) -> Tenure {
        match self.role {
            Role::Replica => Tenure::Replica(self.named.partition()),
            Role::Fallback { .. } => Tenure::Fallback,
        }
    }

    fn effect(&self, old: Option<(Held, usize)>, new: &Object, new_bytes: usize) -> Effect {
        match self.role {
            Role::Replica => Effect::Tree(TreeChange {
                key: self.named.clone(),
                old: old.map(|(held, _)| held),
                new: Some(Held::of(new)),
            }),
            Role::Fallback { target } => {
                let key_bytes = self.at.as_bytes().len();
                Effect::Hint(HintChange {
                    target,
                    old: old.map_or(0, |(_, bytes)| key_bytes + bytes),
                    new: key_bytes + new_bytes,
                    at_ms: self.acking.shared.environment.wall_ms(),
                })
            }
        }
    }
}

impl Update for ClientWrite {
    fn key(&self) -> &StorageKey {
        &self.at
    }

    fn change(&mut self, stored: Option<Bytes>) -> Result<Change, StorageError> {
        // A write that is minted late would come after what its client, or another, wrote meanwhile.
        if self.acking.shared.environment.monotonic_ms() > self.expires_ms {
            return Err(self.acking.reject(WriteFailure::Expired, "deadline passed".into()));
        }
        let mut unread = match stored.as_ref().map(decode_unread).transpose() {
            Ok(unread) => unread,
            Err(error) => return Err(self.acking.damaged(&self.at, error)),
        };
        let mut object = unread.as_mut().map(Unread::take_unchecked).unwrap_or_default();
        let old = stored.as_ref().map(|bytes| (Held::of(&object), bytes.len()));
        let shared = self.acking.shared.clone();
        let tenure = self.tenure();
        let now_ms = shared.environment.wall_ms();
        let mint = |newest| shared.mint(tenure, newest);
        match object.write(&self.write, self.rule, self.limits, now_ms, mint) {
            Ok(written) => {
                let fresh = written.fresh;
                let is_old = |version: &Version| version.request != self.write.request;
                if (!fresh || object.live().iter().any(is_old))
                    && let Some(Err(error)) = unread.map(|unread| unread.check())
                {
                    return Err(self.acking.damaged(&self.at, error));
                }
                let encoded = match stored {
                    Some(stored) if !fresh => stored,
                    _ => encode_object(&object, self.long_key.as_deref()),
                };
                if fresh {
                    let effect = self.effect(old, &object, encoded.len());
                    if let Effect::Hint(change) = effect
                        && let Err(limit) = shared.check_budget(change)
                    {
                        let failure = WriteFailure::HintBudget { target: change.target, limit };
                        return Err(self.acking.reject(failure, "hint budget".into()));
                    }
                    self.effect = Some(effect);
                }
                let sent = if planted(Bug::BareWriteReplicated) {
                    encode_object(&object.bare(&self.write), self.long_key.as_deref())
                } else {
                    encoded.clone()
                };
                self.outcome = Some(Applied { object: sent, written });
                Ok(if fresh { Change::Put(encoded) } else { Change::Keep })
            }
            Err(refusal) => Err(self.acking.reject(WriteFailure::Refused(refusal), format!("{refusal:?}"))),
        }
    }

    fn applied(&mut self) {
        self.applied = true;
        if let Some(effect) = &self.effect {
            effect.apply(&self.acking.shared);
        }
        self.acking.applied(self.outcome.take());
    }

    /// What was applied was told to others. If it failed all the same, the actor has forgotten an event that they know
    /// of, and must not speak again.
    fn finished(mut self: Box<Self>, outcome: Result<(), StorageError>) {
        if outcome.is_err() && self.applied {
            if let Some(effect) = &self.effect {
                effect.undo(&self.acking.shared);
            }
            match self.role {
                Role::Replica => self.acking.renew_actor(self.named.partition()),
                Role::Fallback { .. } => self.acking.shared.renew_fallback_actor(),
            }
        }
        self.acking.finished(outcome);
    }
}

/// Looks at several records; whoever is the last to be durable tells.
struct Look {
    found: Mutex<Vec<Option<Digest>>>,
    open: AtomicUsize,
    failed: Mutex<Option<StorageError>>,
}

impl Look {
    fn new(keys: usize) -> Look {
        Look { found: Mutex::new(vec![None; keys]), open: AtomicUsize::new(keys), failed: Mutex::new(None) }
    }
}

struct LookAt {
    key: StorageKey,
    at: usize,
    look: Arc<Look>,
    outbox: Arc<Outbox>,
    ticket: u64,
}

impl Update for LookAt {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, stored: Option<Bytes>) -> Result<Change, StorageError> {
        let digest = match stored.map(|stored| decode_object(&stored)) {
            None => None,
            Some(Ok(record)) => Some(record.object.digest()),
            Some(Err(error)) => return Err(StorageError::Rejected { detail: error.to_string() }),
        };
        self.look.found.lock().unwrap_or_else(PoisonError::into_inner)[self.at] = digest;
        Ok(Change::Keep)
    }

    fn applied(&mut self) {}

    fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
        let mut failed = self.look.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = outcome {
            *failed = Some(error);
        }
        if self.look.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            let acked = failed.take().map_or(Ok(()), |error| Err(WriteFailure::Storage(error)));
            let Self { outbox, ticket, .. } = &*self;
            outbox.post(Progress { ticket: *ticket, applied: None, acked: Some(acked), renewed: None });
        }
    }
}

struct LookReply {
    look: Arc<Look>,
    reply: Cell<Option<ReplyTo<PeerResult>>>,
}

impl ReplySink<PeerResult> for LookReply {
    fn reply(&self, _: u64, answer: Option<PeerResult>) {
        let (Some(reply), Some(answer)) = (self.reply.take(), answer) else { return };
        let found = || self.look.found.lock().unwrap_or_else(PoisonError::into_inner).clone();
        reply.send(answer.map(|_| PeerReply::Held(found())));
    }
}

/// Deletes one object if it is exactly in this state.
struct ReapOne {
    key: StorageKey,
    digest: Digest,
    valid_until_ms: u64,
    shared: Arc<Shared>,
    change: Option<TreeChange>,
    applied: bool,
}

impl Update for ReapOne {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, stored: Option<Bytes>) -> Result<Change, StorageError> {
        if self.shared.is_void(self.valid_until_ms) {
            return Err(StorageError::Rejected { detail: "the order is void".into() });
        }
        let Some(record) = stored.and_then(|stored| decode_object(&stored).ok()) else {
            return Ok(Change::Keep);
        };
        if record.object.digest() != self.digest || !record.object.is_tombstone() {
            return Ok(Change::Keep);
        }
        let old = Some(Held::of(&record.object));
        self.change = Some(TreeChange { key: self.key.clone(), old, new: None });
        Ok(Change::Remove)
    }

    fn applied(&mut self) {
        self.applied = true;
        if let Some(change) = &self.change {
            self.shared.trees.apply(change);
        }
    }

    fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
        if let (Err(_), Some(change), true) = (outcome, &self.change, self.applied) {
            self.shared.trees.undo(change);
        }
    }
}
