//! The replica's part of tombstone collection. A replica reports digests of its durable objects,
//! agrees to a collection or not, and deletes tombstones.
//!
//! The part of the node that orders a collection is `repair/tombstone_gc.rs`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use quorate_core::codec::decode_object;
use quorate_core::hint::hint_key;
use quorate_core::request::{CollectTombstones, PeerError, PeerReply, PeerResult};
use quorate_core::seams::ReplyTo;
use quorate_core::storage::{RecordAction, StorageError, Update};
use quorate_core::{Digest, StorageKey};

use super::Replica;
use super::completions::{Completion, CompletionQueue};
use super::failure::WriteFailure;
use super::record_update::{Decision, Finished, RecordChange, SideEffect, Tracked};
use crate::state::hash_trees::{RecordState, TreeChange};
use crate::state::shared::Shared;

impl Replica {
    /// Answers with the digest of the durable object under each key.
    pub(crate) fn durable_digests(&self, keys: Vec<StorageKey>, reply: ReplyTo<PeerResult>) {
        if keys.iter().any(|key| self.shared.is_recovering(key.partition())) {
            return reply.send(Err(PeerError::Recovering));
        }
        if keys.is_empty() {
            return reply.send(Ok(PeerReply::DurableDigests(Vec::new())));
        }
        let reads = Arc::new(DurableDigests::new(keys.len()));
        let found = reads.clone();
        let ticket = self.completions.for_ack(ReplyTo::call(move |answer: PeerResult| {
            reply.send(answer.map(|_| PeerReply::DurableDigests(found.digests())));
        }));
        let queue = self.completions.queue();
        let read = |(at, key)| -> Box<dyn Update> {
            Box::new(DigestRead { key, at, reads: reads.clone(), queue: queue.clone(), ticket })
        };
        let updates: Vec<Box<dyn Update>> = keys.into_iter().enumerate().map(read).collect();
        self.completions.submit(&*self.shared.engine, updates);
        self.shared.engine.flush();
    }

    /// Deletes each tombstone of the order, unless its object no longer has the digest that the
    /// order names.
    pub(crate) fn collect_tombstones(&self, order: CollectTombstones, reply: ReplyTo<PeerResult>) {
        let CollectTombstones { entries, valid_until_ms } = order;
        self.shared.note_collected(&entries, valid_until_ms);
        let deletion = |(key, digest): (StorageKey, Digest)| {
            Tracked::update(DeleteTombstone { key, digest, valid_until_ms }, &self.shared)
        };
        self.completions.submit(&*self.shared.engine, entries.into_iter().map(deletion).collect());
        reply.send(Ok(PeerReply::Acked));
    }

    /// Answers, for each key, true if this node agrees to the collection of the key's tombstone. It
    /// does not agree if one of its hints could bring back an older version.
    pub(crate) fn may_collect(&self, keys: &[StorageKey], layout: u64) -> PeerResult {
        let shared = &self.shared;
        let view = shared.view();
        if !view.is_settled() || view.newest().digest() != layout {
            return Err(PeerError::StaleLayout);
        }
        let grace = shared.settings.tombstone_gc.grace_ms;
        let mut agrees = Vec::with_capacity(keys.len());
        for key in keys {
            if !shared.has_partition(key.partition()) {
                agrees.push(false);
                continue;
            }
            let mut has_objection = shared.clock_problem().is_some();
            let mut targets = shared.hints.targets();
            targets.extend(view.newest().members().iter().map(|member| member.id));
            for target in targets {
                let hint = shared.engine.get(&hint_key(target, key));
                has_objection |=
                    hint.map_err(|error| PeerError::Storage { detail: error.to_string() })?.is_some();
            }
            // This check comes after the search for hints: a hint that was deleted during the
            // search counts here.
            has_objection |= shared.deleted_hint_within(key.partition(), grace);
            agrees.push(!has_objection);
        }
        Ok(PeerReply::MayCollect(agrees))
    }
}

/// The digests of several durable records. The read that finishes last answers the request.
struct DurableDigests {
    found: Mutex<Vec<Option<Digest>>>,
    /// Number of reads that have not finished.
    unfinished: AtomicUsize,
    failed: Mutex<Option<StorageError>>,
}

impl DurableDigests {
    fn new(keys: usize) -> DurableDigests {
        let (found, failed) = (Mutex::new(vec![None; keys]), Mutex::new(None));
        DurableDigests { found, unfinished: AtomicUsize::new(keys), failed }
    }

    fn digests(&self) -> Vec<Option<Digest>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The read of one record's digest. It runs as an update, because an update finishes only once the
/// record is durable.
struct DigestRead {
    key: StorageKey,
    /// The key's position in the request.
    at: usize,
    reads: Arc<DurableDigests>,
    queue: Arc<CompletionQueue>,
    ticket: u64,
}

impl Update for DigestRead {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, stored: Option<Bytes>) -> Result<RecordAction, StorageError> {
        let digest = match stored.map(|stored| decode_object(&stored)) {
            None => None,
            Some(Ok(record)) => Some(record.object.digest()),
            Some(Err(error)) => return Err(StorageError::Rejected { detail: error.to_string() }),
        };
        self.reads.found.lock().unwrap_or_else(PoisonError::into_inner)[self.at] = digest;
        Ok(RecordAction::Keep)
    }

    fn applied(&mut self) {}

    fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
        let mut failed = self.reads.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = outcome {
            *failed = Some(error);
        }
        if self.reads.unfinished.fetch_sub(1, Ordering::AcqRel) == 1 {
            let acked = failed.take().map_or(Ok(()), |error| Err(WriteFailure::Storage(error)));
            self.queue.post(Completion { acked: Some(acked), ..Completion::of(self.ticket) });
        }
    }
}

/// The deletion of one tombstone, if its object still has this digest.
struct DeleteTombstone {
    key: StorageKey,
    digest: Digest,
    /// The time after which the order is void, in milliseconds since 1970.
    valid_until_ms: u64,
}

impl RecordChange for DeleteTombstone {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn decide(&mut self, shared: &Shared, stored: Option<Bytes>) -> Result<Decision, StorageError> {
        if shared.is_void(self.valid_until_ms) {
            return Err(StorageError::Rejected { detail: "the order is void".into() });
        }
        let Some(record) = stored.and_then(|stored| decode_object(&stored).ok()) else {
            return Ok(Decision::keep());
        };
        if record.object.digest() != self.digest || !record.object.is_tombstone() {
            return Ok(Decision::keep());
        }
        let old = Some(RecordState::of(&record.object));
        let change = TreeChange { key: self.key.clone(), old, new: None };
        Ok(Decision { action: RecordAction::Remove, side_effect: Some(SideEffect::Tree(change)) })
    }

    fn finished(self, _: &Shared, _: Finished) {}
}
