//! Checks of replies to clients: a quorum read returns every acked write, and a context covers
//! only versions that the client has seen.

use std::collections::BTreeSet;

use bytes::Bytes;
use quorate_core::{CausalContext, Object, Payload, RequestId, StorageKey};

use super::checker::Oracle;
use super::history::{Ack, ClientWrite};
use super::rules::Rule;

/// A quorum read that only replicas answered.
#[derive(Clone, Copy, Debug)]
pub struct QuorumRead<'a> {
    /// Time at which the client sent the read, in milliseconds since the run began.
    pub since_ms: u64,
    /// Time at which the client received the reply.
    pub at_ms: u64,
    /// Replies that the read waited for.
    pub r: usize,
    /// The key's replicas.
    pub replicas: &'a [usize],
}

impl Oracle {
    /// Checks the context in a reply: each of its versions was in the client's context before, was
    /// shown to the client, is a tombstone, or was replaced.
    ///
    /// `shown` are the writes that the reply shows; for a put, the write itself.
    pub fn check_context(
        &self,
        key: &StorageKey,
        context: &CausalContext,
        before: &CausalContext,
        shown: &[RequestId],
        reply: &str,
    ) {
        let mut history = self.lock();
        let dots = history.dots_of_key.get(key).cloned().unwrap_or_default();
        for dot in dots {
            if !context.contains(dot) || before.contains(dot) {
                continue;
            }
            let version = &history.versions[&dot];
            let allowed = shown.contains(&version.request)
                || version.is_tombstone
                || history.replaced_by.contains_key(&dot)
                || history.last_write_wins.contains(key);
            if !allowed {
                let text = format!(
                    "{reply} of {key:?} covers {dot:?}, which its client was not shown and nothing replaced"
                );
                history.report(Rule::Causality, text);
            }
        }
    }

    /// Returns the write that wrote a value. If several writes have the same value, the one that was
    /// stored is returned.
    pub fn writer_of(&self, key: &StorageKey, value: &[u8]) -> Option<RequestId> {
        let history = self.lock();
        let wrote = |write: &ClientWrite| {
            write.key == *key && write.payload == Payload::Value(Bytes::copy_from_slice(value))
        };
        // A scenario may send a value again, in a new write, after an answer "unavailable".
        let mut writers =
            history.writes.iter().filter(|(_, write)| wrote(write)).map(|(request, _)| *request);
        let stored = writers.clone().find(|request| history.dots_of_request.contains_key(request));
        stored.or_else(|| writers.next())
    }

    /// Returns the writes that a read which begins at `at_ms` and waits for `r` replies must have
    /// in its context.
    ///
    /// These are the writes that only replicas acked, or that a quorum read showed, before `at_ms`.
    /// Each must survive the lost disks, and its quorum must overlap the read's:
    /// `w + r > replicas.len()`.
    pub fn writes_due(&self, key: &StorageKey, at_ms: u64, replicas: &[usize], r: usize) -> Vec<RequestId> {
        let history = self.lock();
        let counts =
            |ack: &Ack| ack.at_ms <= at_ms && history.survives(ack, replicas) && ack.w + r > replicas.len();
        let mut due = BTreeSet::new();
        for (request, write) in history.writes.iter().filter(|(_, write)| write.key == *key) {
            if write.acked.as_ref().is_some_and(|ack| ack.fallbacks.is_empty() && counts(ack)) {
                due.insert(*request);
            }
        }
        for ((shown_key, request), ack) in &history.shown {
            if shown_key == key && counts(ack) {
                due.insert(*request);
            }
        }
        due.into_iter().collect()
    }

    /// Records that a quorum read showed these writes: no later quorum read may miss them.
    pub fn record_shown(&self, key: &StorageKey, requests: &[RequestId], read: QuorumRead<'_>) {
        let mut history = self.lock();
        for &request in requests {
            let ack = Ack {
                at_ms: read.at_ms,
                since_ms: read.since_ms,
                w: read.r,
                nodes: read.replicas.to_vec(),
                fallbacks: Vec::new(),
                dots: Vec::new(),
            };
            let known = history.shown.entry((key.clone(), request)).or_insert_with(|| ack.clone());
            if known.w < read.r {
                *known = ack;
            }
        }
    }

    /// Returns true if a context contains the write or a version that replaced it, or if a tombstone
    /// that replaced the write was collected. If the last write wins, a newer version is enough.
    pub fn covers(&self, context: &CausalContext, request: RequestId, key: &StorageKey) -> bool {
        let history = self.lock();
        let Some(dots) = history.dots_of_request.get(&request) else { return false };
        dots.iter().any(|dot| {
            let descendants = history.descendants(*dot);
            let contains_or_collected =
                descendants.iter().any(|dot| context.contains(*dot) || history.collected.contains(dot));
            contains_or_collected
                || (history.last_write_wins.contains(key)
                    && (context.newest() >= dot.stamp
                        || history.newer_tombstone_collected(*dot, key, &Object::default())))
        })
    }

    /// Checks the writes that a read shows: none of them was deleted by a tombstone that was then
    /// collected.
    pub fn check_shown(&self, key: &StorageKey, shown: &[RequestId]) {
        let mut history = self.lock();
        for request in shown {
            let dots = history.dots_of_request.get(request).cloned().unwrap_or_default();
            if !dots.is_empty() && dots.iter().all(|dot| history.is_collected(*dot)) {
                let text = format!(
                    "a read of {key:?} shows {request:?}, which was deleted, and the tombstone was collected"
                );
                history.report(Rule::NothingReturns, text);
            }
        }
    }
}
