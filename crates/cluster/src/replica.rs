//! A node as replica: reads and merges records of its engine, for its own coordinator and for peers.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_core::codec::{CodecError, Record, decode_object, encode_object};
use quorate_core::event::EventKind;
use quorate_core::object::{MAX_OBJECT_BYTES, MergeRule, Write, WriteLimits, WriteRefusal};
use quorate_core::request::{PeerError, PeerReply, PeerResult, ScanPage, ScanPartition};
use quorate_core::seams::ReplyTo;
use quorate_core::storage::{Change, Range, StorageError, Update};
use quorate_core::{Object, PartitionId, RequestError, StorageKey};
use tokio::sync::oneshot;

use crate::completions::{Applied, Completions, Outbox, Progress};
use crate::shared::Shared;

/// Most records of one page that a peer asks for.
const MAX_PAGE_RECORDS: usize = 4_096;
/// Most bytes of one page that a peer asks for.
const MAX_PAGE_BYTES: usize = 1024 * 1024;

/// Why a write did not happen on this replica.
#[derive(Clone, Debug)]
pub(crate) enum WriteFailure {
    /// The write breaks a limit.
    Refused(WriteRefusal),
    /// Its deadline passed while it waited.
    Expired,
    /// The engine failed, or the record that is there can't be read.
    Storage(StorageError),
}

impl WriteFailure {
    pub(crate) fn for_peer(&self) -> PeerError {
        match self {
            WriteFailure::Refused(refusal) => PeerError::Refused { detail: format!("{refusal:?}") },
            WriteFailure::Expired => PeerError::Expired,
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

/// An object that a coordinator sent, to be merged into what is stored.
pub(crate) struct ToMerge {
    pub(crate) key: StorageKey,
    /// Encoded.
    pub(crate) object: Bytes,
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

    /// The encoded object under a key.
    pub(crate) fn read(&self, key: &StorageKey) -> PeerResult {
        match self.shared.engine.get(key) {
            Ok(object) => Ok(PeerReply::Object(object)),
            Err(error) => {
                self.shared.emit(None, EventKind::StorageFailed { detail: error.to_string() });
                Err(storage_error_for_peer(&error))
            }
        }
    }

    /// Merges objects into what is stored, together; each one's `reply` is acked once the engine's promise holds.
    pub(crate) fn merge(&self, batch: Vec<ToMerge>) {
        let updates: Vec<Box<dyn Update>> = batch.into_iter().filter_map(|one| self.merging(one)).collect();
        if !updates.is_empty() {
            self.completions.submit(&*self.shared.engine, updates);
        }
    }

    fn merging(&self, ToMerge { key, object, timeout, reply }: ToMerge) -> Option<Box<dyn Update>> {
        if key.partition().0 as u32 >= self.shared.layout.partitions() {
            reply.send(Err(PeerError::Refused { detail: "no such partition".into() }));
            return None;
        }
        let record = match decode_object(&object) {
            Ok(record) => record,
            Err(error) => {
                reply.send(Err(PeerError::Refused { detail: error.to_string() }));
                return None;
            }
        };
        let expires_ms = self.expires_ms(timeout);
        let rule = self.shared.merge_rule(key.bucket());
        let acking = self.acking(self.completions.for_ack(reply));
        Some(Box::new(Merge { key, record, encoded: object, rule, expires_ms, acking }))
    }

    /// Applies a client's write as its coordinator: minted inside the engine's update. The receiver hears when it is
    /// applied, `acked` when this replica may count.
    pub(crate) fn write(
        &self,
        key: StorageKey,
        long_key: Option<Bytes>,
        write: Write,
        timeout: Duration,
        acked: ReplyTo<PeerResult>,
    ) -> oneshot::Receiver<Result<Applied, WriteFailure>> {
        let (ticket, applied) = self.completions.for_both(acked);
        let bucket = &self.shared.buckets.get(key.bucket()).definition;
        let limits = WriteLimits {
            max_siblings: bucket.max_siblings as usize,
            remember_requests_ms: self.shared.config.max_request_timeout_ms,
        };
        let rule = self.shared.merge_rule(key.bucket());
        let acking = self.acking(ticket);
        let expires_ms = self.expires_ms(timeout);
        let update = ClientWrite {
            key,
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
        Acking { shared: self.shared.clone(), outbox, ticket, failure: None, renewed: None }
    }
}

/// When an update of this node acks, and who hears of it.
struct Acking {
    shared: Arc<Shared>,
    outbox: Arc<Outbox>,
    ticket: u64,
    /// A typed reason, where the engine only knows that the update rejected its record.
    failure: Option<WriteFailure>,
    /// The partition whose actor this update had to replace.
    renewed: Option<PartitionId>,
}

impl Acking {
    fn reject(&mut self, failure: WriteFailure, detail: String) -> StorageError {
        self.failure = Some(failure);
        StorageError::Rejected { detail }
    }

    fn damaged(&mut self, key: &StorageKey, error: CodecError) -> StorageError {
        let detail = format!("record {key:?}: {error}");
        self.shared.emit(None, EventKind::StorageFailed { detail: detail.clone() });
        StorageError::Rejected { detail }
    }

    fn applied(&self, applied: Option<Applied>) {
        let acked = (!self.shared.ack_when_durable).then_some(Ok(()));
        if applied.is_some() || acked.is_some() {
            self.outbox.post(Progress { ticket: self.ticket, applied, acked, renewed: None });
        }
    }

    /// Called by the engine, perhaps under its lock: nothing is logged here, that is done where it is delivered.
    fn finished(self, outcome: Result<(), StorageError>) {
        let acked = match outcome {
            Ok(()) if !self.shared.ack_when_durable && self.renewed.is_none() => return,
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

/// Merges an object that a coordinator sent.
struct Merge {
    key: StorageKey,
    record: Record,
    encoded: Bytes,
    rule: MergeRule,
    expires_ms: u64,
    acking: Acking,
}

impl Update for Merge {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, stored: Option<Bytes>) -> Result<Change, StorageError> {
        if self.acking.shared.environment.monotonic_ms() > self.expires_ms {
            return Err(self.acking.reject(WriteFailure::Expired, "deadline passed".into()));
        }
        let Some(stored) = stored else {
            return Ok(Change::Put(self.encoded.clone()));
        };
        if stored == self.encoded {
            return Ok(Change::Keep);
        }
        let stored = match decode_object(&stored) {
            Ok(record) => record,
            // Not damaged, only beyond this build: it stays as it is.
            Err(error @ CodecError::NewerVersion { .. }) => {
                return Err(self.acking.damaged(&self.key, error));
            }
            // What was here can't be read any more, which is a lost disk for this key: what others hold takes its
            // place, and the actor that may be forgotten with it never speaks again.
            Err(error) => {
                self.acking.damaged(&self.key, error);
                self.acking.renew_actor(self.key.partition());
                return Ok(Change::Put(self.encoded.clone()));
            }
        };
        let merged = &mut self.record.object;
        if !merged.merge(&stored.object, self.rule) && self.record.long_key == stored.long_key {
            // The usual case: what came knows all that was here.
            return Ok(Change::Put(self.encoded.clone()));
        }
        if *merged == stored.object {
            return Ok(Change::Keep);
        }
        let long_key = self.record.long_key.as_deref().or(stored.long_key.as_deref());
        Ok(Change::Put(encode_object(merged, long_key)))
    }

    fn applied(&mut self) {
        self.acking.applied(None);
    }

    fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
        self.acking.finished(outcome);
    }
}

/// Applies a write that this node coordinates.
struct ClientWrite {
    key: StorageKey,
    long_key: Option<Bytes>,
    write: Write,
    rule: MergeRule,
    limits: WriteLimits,
    expires_ms: u64,
    acking: Acking,
    outcome: Option<Applied>,
    applied: bool,
}

impl Update for ClientWrite {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, stored: Option<Bytes>) -> Result<Change, StorageError> {
        // A write that is minted late would come after what its client, or another, wrote meanwhile.
        if self.acking.shared.environment.monotonic_ms() > self.expires_ms {
            return Err(self.acking.reject(WriteFailure::Expired, "deadline passed".into()));
        }
        let mut object = match &stored {
            None => Object::default(),
            Some(bytes) => match decode_object(bytes) {
                Ok(record) => record.object,
                Err(error) => return Err(self.acking.damaged(&self.key, error)),
            },
        };
        let shared = self.acking.shared.clone();
        let partition: PartitionId = self.key.partition();
        let now_ms = shared.environment.wall_ms();
        let mint = |newest| shared.mint(partition, newest);
        match object.write(&self.write, self.rule, self.limits, now_ms, mint) {
            Ok(written) => {
                let fresh = written.fresh;
                let object = match stored {
                    Some(stored) if !fresh => stored,
                    _ => encode_object(&object, self.long_key.as_deref()),
                };
                self.outcome = Some(Applied { object: object.clone(), written });
                Ok(if fresh { Change::Put(object) } else { Change::Keep })
            }
            Err(refusal) => Err(self.acking.reject(WriteFailure::Refused(refusal), format!("{refusal:?}"))),
        }
    }

    fn applied(&mut self) {
        self.applied = true;
        self.acking.applied(self.outcome.take());
    }

    /// What was applied was told to others. If it failed all the same, the actor has forgotten an event that they know
    /// of, and must not speak again.
    fn finished(mut self: Box<Self>, outcome: Result<(), StorageError>) {
        if outcome.is_err() && self.applied {
            self.acking.renew_actor(self.key.partition());
        }
        self.acking.finished(outcome);
    }
}
