//! Hinted handoff: what this node keeps for replicas that can't be reached, and how it brings it to them.
//!
//! Hints lie in the storage engine by (target, key), merged per key. A hint is deleted only after a durable ack of the
//! one it is for, and only if it is then still what was sent.
//!
//! Source: Dynamo §4.6.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate_core::codec::{Record, decode_object, encode_object};
use quorate_core::event::EventKind;
use quorate_core::hint::{all_hints, hint_key, hints_for, parse_hint_key};
use quorate_core::key::end_of_prefix;
use quorate_core::object::MergeRule;
use quorate_core::planted::{Bug, planted};
use quorate_core::request::{HintStatus, PeerReply, PeerRequest, PeerWrite, WritePurpose};
use quorate_core::storage::{Change, Range, StorageEngine, StorageError, Update};
use quorate_core::transition::{Phase, View};
use quorate_core::{NodeId, Object, PartitionId, StorageKey};
use tokio::time::Instant;

use crate::gather::Gather;
use crate::node::Node;
use crate::replica::{Acking, WriteFailure};
use crate::shared::Shared;

/// Hints sent before the first of them must be acked.
const PAGE_HINTS: usize = 256;
const PAGE_BYTES: usize = 1024 * 1024;
/// How long the target may take for a page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the node looks whether somebody is back.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After a page that was not taken.
const PAUSE: Duration = Duration::from_millis(500);

/// The account of hints, by target.
#[derive(Default)]
pub(crate) struct HintBook {
    targets: Mutex<BTreeMap<NodeId, Account>>,
}

#[derive(Clone, Copy, Default, Debug)]
struct Account {
    hints: u64,
    bytes: u64,
    /// Since when there is any, wall clock.
    since_ms: u64,
}

/// How one hint's record changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HintChange {
    pub(crate) target: NodeId,
    /// Bytes of key and value before; 0: there was none.
    pub(crate) old: usize,
    /// And after.
    pub(crate) new: usize,
    pub(crate) at_ms: u64,
}

impl HintChange {
    pub(crate) fn undone(self) -> HintChange {
        HintChange { old: self.new, new: self.old, ..self }
    }
}

impl HintBook {
    /// Counts what the engine holds. Restart rescans.
    pub(crate) fn load(engine: &dyn StorageEngine, now_ms: u64) -> Result<HintBook, StorageError> {
        let book = HintBook::default();
        let mut start = all_hints();
        let end = end_of_prefix(&start);
        let mut after = false;
        loop {
            let range =
                Range { start: &start, after, end: end.as_deref(), limit: PAGE_HINTS, max_bytes: PAGE_BYTES };
            let page = engine.scan(range)?;
            for (key, value) in &page.records {
                if let Some((target, _)) = parse_hint_key(key) {
                    let written = decode_object(value).map_or(now_ms, |hint| hint.object.newest().wall_ms());
                    let new = key.len() + value.len();
                    book.apply(HintChange { target, old: 0, new, at_ms: written.min(now_ms) });
                }
            }
            match page.records.last() {
                Some((last, _)) if page.more => (start, after) = (last.to_vec(), true),
                _ => return Ok(book),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Account>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if the change keeps the target within its budget, or shrinks what it has.
    pub(crate) fn fits(&self, change: HintChange, budget: u64) -> bool {
        let bytes = self.lock().get(&change.target).map_or(0, |account| account.bytes);
        change.new <= change.old || bytes + (change.new - change.old) as u64 <= budget
    }

    pub(crate) fn apply(&self, change: HintChange) {
        let HintChange { target, old, new, at_ms } = change;
        let mut targets = self.lock();
        let account = targets.entry(target).or_default();
        if account.hints == 0 || (new > 0 && at_ms < account.since_ms) {
            account.since_ms = at_ms;
        }
        account.hints = (account.hints + u64::from(new > 0)).saturating_sub(u64::from(old > 0));
        account.bytes = (account.bytes + new as u64).saturating_sub(old as u64);
        if account.hints == 0 {
            targets.remove(&target);
        }
    }

    /// For whom there are any.
    pub(crate) fn targets(&self) -> Vec<NodeId> {
        self.lock().keys().copied().collect()
    }

    pub(crate) fn has_any_for(&self, target: NodeId) -> bool {
        self.lock().contains_key(&target)
    }

    pub(crate) fn status(&self, shared: &Shared) -> Vec<HintStatus> {
        let now_ms = shared.environment.wall_ms();
        let status = |(target, account): (&NodeId, &Account)| HintStatus {
            target: shared.view().name_of(*target),
            hints: account.hints,
            bytes: account.bytes,
            oldest_ms: now_ms.saturating_sub(account.since_ms),
        };
        self.lock().iter().map(status).collect()
    }
}

/// Stores an object as a hint, merged with what is kept for the target already.
pub(crate) struct KeepHint {
    pub(crate) at: StorageKey,
    pub(crate) target: NodeId,
    pub(crate) record: Record,
    pub(crate) encoded: Bytes,
    pub(crate) rule: MergeRule,
    pub(crate) valid_until_ms: u64,
    pub(crate) acking: Acking,
    pub(crate) change: Option<HintChange>,
}

impl Update for KeepHint {
    fn key(&self) -> &StorageKey {
        &self.at
    }

    fn change(&mut self, stored: Option<Bytes>) -> Result<Change, StorageError> {
        let shared = self.acking.shared.clone();
        if shared.is_void(self.valid_until_ms) {
            return Err(self.acking.reject(WriteFailure::Expired, "deadline passed".into()));
        }
        let value = match &stored {
            None => self.encoded.clone(),
            Some(stored) if *stored == self.encoded => return Ok(Change::Keep),
            Some(stored) => match decode_object(stored) {
                Ok(kept) => {
                    self.record.object.merge(&kept.object, self.rule);
                    let long_key = self.record.long_key.as_deref().or(kept.long_key.as_deref());
                    encode_object(&self.record.object, long_key)
                }
                Err(error) => return Err(self.acking.damaged(&self.at, error)),
            },
        };
        let key_bytes = self.at.as_bytes().len();
        let change = HintChange {
            target: self.target,
            old: stored.map_or(0, |stored| key_bytes + stored.len()),
            new: key_bytes + value.len(),
            at_ms: shared.environment.wall_ms(),
        };
        if let Err(limit) = shared.check_budget(change) {
            let failure = WriteFailure::HintBudget { target: self.target, limit };
            return Err(self.acking.reject(failure, "hint budget".into()));
        }
        self.change = Some(change);
        Ok(Change::Put(value))
    }

    fn applied(&mut self) {
        if let Some(change) = self.change {
            self.acking.shared.hints.apply(change);
        }
        self.acking.applied(None);
    }

    fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
        if let (Err(_), Some(change)) = (&outcome, self.change) {
            self.acking.undo_if_applied(|shared| shared.hints.apply(change.undone()));
        }
        self.acking.finished(outcome);
    }
}

/// Deletes a hint that was delivered, if it is still what was sent.
struct DropHint {
    at: StorageKey,
    target: NodeId,
    partition: PartitionId,
    sent: Bytes,
    shared: Arc<Shared>,
    change: Option<HintChange>,
    applied: bool,
}

impl Update for DropHint {
    fn key(&self) -> &StorageKey {
        &self.at
    }

    fn change(&mut self, stored: Option<Bytes>) -> Result<Change, StorageError> {
        let Some(stored) = stored else { return Ok(Change::Keep) };
        if stored != self.sent && !planted(Bug::ChangedHintDeleted) {
            return Ok(Change::Keep);
        }
        // With the hint goes what this node coordinated as a fallback: whoever forgets an event is a new actor.
        self.shared.renew_fallback_actor();
        self.shared.note_hint_deleted(self.partition);
        let old = self.at.as_bytes().len() + stored.len();
        let at_ms = self.shared.environment.wall_ms();
        self.change = Some(HintChange { target: self.target, old, new: 0, at_ms });
        Ok(Change::Remove)
    }

    fn applied(&mut self) {
        self.applied = true;
        if let Some(change) = self.change {
            self.shared.hints.apply(change);
        }
    }

    fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
        if let (Err(_), Some(change), true) = (outcome, self.change, self.applied) {
            self.shared.hints.apply(change.undone());
        }
    }
}

/// What this node keeps for the key's replicas, merged. `None`: nothing.
pub(crate) fn kept_for(shared: &Shared, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
    let rule = shared.merge_rule(key.bucket());
    let mut merged: Option<Object> = None;
    let mut long_key = None;
    let mut only: Option<Bytes> = None;
    // Also for those who are no replicas any more.
    for target in shared.hints.targets() {
        let Some(hint) = shared.engine.get(&hint_key(target, key))? else { continue };
        let record = decode_object(&hint).map_err(|error| StorageError::Io { detail: error.to_string() })?;
        long_key = long_key.or(record.long_key);
        match &mut merged {
            None => {
                only = Some(hint);
                merged = Some(record.object);
            }
            Some(merged) => {
                only = None;
                merged.merge(&record.object, rule);
            }
        }
    }
    Ok(only.or_else(|| merged.map(|merged| encode_object(&merged, long_key.as_deref()))))
}

/// Brings hints to whoever is back, for as long as the node runs.
pub(crate) async fn deliver(node: Rc<Node>) {
    loop {
        let mut refused = false;
        let removed = node.shared.view().removed || !node.shared.is_confirmed();
        for target in node.shared.hints.targets().into_iter().filter(|_| !removed) {
            match drain(&node, target).await {
                // Somebody who has to have them can't be reached: no reason to read them all again at once.
                Ok(0) if !node.shared.view().is_settled() => refused = true,
                Ok(0) => {}
                Ok(hints) => {
                    let target = node.shared.view().name_of(target);
                    node.shared.emit(None, EventKind::HintsDelivered { target, hints });
                }
                Err(()) => refused = true,
            }
        }
        tokio::time::sleep(if refused { PAUSE } else { LOOK_EVERY }).await;
    }
}

/// Sends a target its hints, page by page; the next one goes when all of this one were answered.
async fn drain(node: &Rc<Node>, target: NodeId) -> Result<usize, ()> {
    let view = node.shared.view();
    let waits = view.is_participant(target) && !node.is_live(target) && !hands_over(node, &view);
    drop(view);
    if waits {
        return Ok(0);
    }
    let mut start = hints_for(target);
    let end = end_of_prefix(&start);
    let mut after = false;
    let mut delivered = 0;
    loop {
        let range =
            Range { start: &start, after, end: end.as_deref(), limit: PAGE_HINTS, max_bytes: PAGE_BYTES };
        // Before the hints are read: what they say is void a message's life after that.
        let valid_until_ms = node.shared.valid_until_ms(PAGE_TIMEOUT);
        let page = node.shared.engine.scan(range).map_err(|_| ())?;
        delivered += send_page(node, target, &page.records, valid_until_ms).await?;
        match page.records.last() {
            Some((last, _)) if page.more => (start, after) = (last.to_vec(), true),
            _ => return Ok(delivered),
        }
    }
}

/// True if this node leaves, and is at the point of handing over what it has.
fn hands_over(node: &Node, view: &View) -> bool {
    view.newest().member(node.shared.node()).is_none() && view.least >= Phase::Released
}

/// Who gets the hint: its target, or all of the key's replicas if the target is none any more, or the layout changes. A node
/// that is about to leave gives it to the other replicas, if the target can't be reached.
fn takers(node: &Node, target: NodeId, key: &StorageKey) -> Vec<NodeId> {
    let view = node.shared.view();
    let mut replicas = view.holders_of(key.partition(), key.bucket());
    if view.is_settled() && replicas.contains(&target) {
        return vec![target];
    }
    replicas.retain(|&replica| view.is_participant(replica));
    if hands_over(node, &view) && !node.is_live(target) {
        replicas.retain(|&replica| replica != target);
    }
    replicas
}

async fn send_page(
    node: &Rc<Node>,
    target: NodeId,
    page: &[(Bytes, Bytes)],
    valid_until_ms: u64,
) -> Result<usize, ()> {
    let gather = Gather::default();
    let deadline = Instant::now() + PAGE_TIMEOUT;
    // Acks that each hint still needs.
    let mut open: Vec<usize> = vec![usize::MAX; page.len()];
    let mut asked = 0;
    for (at, (hint, object)) in page.iter().enumerate() {
        let Some((_, key)) = parse_hint_key(hint) else { continue };
        let takers = takers(node, target, &key);
        if takers.is_empty() {
            continue;
        }
        // It goes when all of them have it; who can be reached gets it now.
        open[at] = takers.len();
        for taker in takers.into_iter().filter(|&taker| node.is_live(taker)) {
            let write = PeerWrite {
                key: key.clone(),
                object: object.clone(),
                purpose: WritePurpose::HandOff,
                valid_until_ms,
                layout: 0,
            };
            asked += 1;
            // The slot's number is the hint's place in the page.
            node.send_write(taker, write, PAGE_TIMEOUT, gather.slot(NodeId(at as u64)));
        }
        if planted(Bug::HintDeletedBeforeAck) {
            node.shared.engine.update(vec![dropping(node, hint, object)]);
        }
    }
    let mut delivered = 0;
    let mut failed = false;
    for _ in 0..asked {
        let Some((NodeId(at), answer)) = gather.next(deadline).await else { return Err(()) };
        let at = at as usize;
        if !matches!(answer, Ok(PeerReply::Acked)) {
            failed = true;
            open[at] = usize::MAX;
        } else if open[at] != usize::MAX {
            open[at] -= 1;
        }
        if open[at] == 0 {
            let (hint, object) = &page[at];
            node.shared.engine.update(vec![dropping(node, hint, object)]);
            delivered += 1;
        }
    }
    if failed { Err(()) } else { Ok(delivered) }
}

fn dropping(node: &Rc<Node>, hint: &Bytes, sent: &Bytes) -> Box<dyn Update> {
    let (target, key) = parse_hint_key(hint).expect("checked when it was sent");
    Box::new(DropHint {
        at: hint_key(target, &key),
        target,
        partition: key.partition(),
        sent: sent.clone(),
        shared: node.shared.clone(),
        change: None,
        applied: false,
    })
}

/// A request of the node to itself, or to a peer.
impl Node {
    pub(crate) fn send_write(
        self: &Rc<Self>,
        to: NodeId,
        write: PeerWrite,
        timeout: Duration,
        reply: quorate_core::seams::ReplyTo<quorate_core::request::PeerResult>,
    ) {
        if to == self.shared.node() {
            self.replica.take(vec![crate::replica::ToStore { write, timeout, reply }]);
        } else {
            self.transport.send(to, PeerRequest::Write(write), timeout, reply);
        }
    }
}
