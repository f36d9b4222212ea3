//! What really happened: every write that was ever minted, what it replaced, and whether it was allowed to.
//!
//! It looks over the engines' shoulders, knows what each client had seen, and holds the end state against that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quorate_node::layouts::layouts_fact;
use quorate_core::codec::decode_object;
use quorate_core::hint::parse_hint_key;
use quorate_core::transition::{Layouts, Phase};
use quorate_core::{CausalContext, Dot, Layout, NodeId, Object, Payload, RequestId, StorageKey};

use crate::disk::Disk;

/// What the checker holds a run against: DESIGN's promises, by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rule {
    /// 1. An acked write that fewer than W of its acking nodes lost is present, or replaced by one that saw it.
    AckedWritesSurvive,
    /// 2. No value that nobody wrote.
    NoInventedValue,
    /// 3. What was replaced or deleted, and acked, does not come back.
    NothingReturns,
    /// 4. Quorum reads see acked writes, and never go back.
    ReadsGoForward,
    /// 5. In the end replicas are identical and no hint is left.
    Convergence,
    /// 6. A write and its retries are shown as one value.
    RetriesAreOne,
    /// 7. A write appears whole or not at all.
    Whole,
    /// 8. No dot names two values, stamps respect causality, no context covers what its owner has not seen.
    Causality,
    /// A task panicked, or a run did not come to rest.
    Crash,
}

/// A broken promise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// What happened.
    pub text: String,
}

/// A write as its client asked for it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Which key.
    pub key: StorageKey,
    /// What it says.
    pub payload: Payload,
    /// What the client had seen.
    pub context: CausalContext,
    /// It replaces what its coordinator holds, too.
    pub overwrites: bool,
    /// How it ended.
    pub acked: Option<Ack>,
}

/// An ack, as its receipt has it.
#[derive(Clone, Debug)]
pub struct Ack {
    /// When it was heard, in the run's milliseconds.
    pub at_ms: u64,
    /// When it was asked for: disks that were lost since then may have been lost after they had acked.
    pub since_ms: u64,
    /// Acks that were needed.
    pub w: usize,
    /// Nodes that acked.
    pub nodes: Vec<usize>,
    /// Those of them that keep it for another.
    pub fallbacks: Vec<usize>,
    /// Which of the write's dots the answer spoke of: attempts that failed may have left others.
    pub dots: Vec<Dot>,
}

#[derive(Clone, Debug)]
struct Mint {
    request: RequestId,
    tombstone: bool,
    /// What it was allowed to replace, and did.
    replaced: BTreeSet<Dot>,
}

/// Everything that is known.
#[derive(Default)]
pub struct Oracle {
    state: Mutex<Known>,
    /// To see whether a hint that goes has arrived.
    disks: Mutex<Vec<std::sync::Weak<Disk>>>,
}

#[derive(Default)]
struct Known {
    asked: BTreeMap<RequestId, Asked>,
    minted: BTreeMap<Dot, Mint>,
    keys: BTreeMap<StorageKey, Vec<Dot>>,
    by_request: BTreeMap<RequestId, Vec<Dot>>,
    replaced_by: BTreeMap<Dot, BTreeSet<Dot>>,
    lost_disks: Vec<(usize, u64)>,
    /// Tombstones that were reaped somewhere.
    reaped: BTreeSet<Dot>,
    /// What quorum reads showed, as if replicas had acked it.
    shown: BTreeMap<(StorageKey, RequestId), Ack>,
    violations: Vec<Violation>,
    /// Keys whose bucket keeps the newest version only.
    keep_newest: BTreeSet<StorageKey>,
    retries_seen_twice: u64,
    /// What nodes hold may move to others.
    moves: bool,
    /// The newest layout that each node has stored.
    layouts: BTreeMap<usize, std::sync::Arc<Layout>>,
    /// When the last node acked a layout, by its number.
    acked_layout: BTreeMap<u64, u64>,
}

impl Oracle {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node's disk, in the order of their numbers.
    pub fn add_disk(&self, disk: &std::sync::Arc<Disk>) {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner).push(std::sync::Arc::downgrade(disk));
    }

    /// A node deletes a hint: what it says must be durable on the node that it was for.
    fn hint_goes(&self, node: usize, target: NodeId, key: &StorageKey, hint: &Object) {
        let disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let number = (0..disks.len()).find(|number| NodeId::of_name(&format!("n{number}")) == target);
        let Some((number, disk)) = number.and_then(|number| Some((number, disks[number].upgrade()?))) else {
            return;
        };
        let on = |disk: &Disk| {
            let held = disk.image().get(&key.to_bytes()).and_then(|bytes| decode_object(bytes).ok());
            held.map(|record| record.object).unwrap_or_default()
        };
        let mut held = on(&disk);
        if self.is_holder(node, key) {
            // It may be the only one left of those whom the hint is for now, and its disk is busy.
            return;
        }
        if self.lock().moves {
            // It may be a replica no more: then others have it.
            let others = disks.iter().enumerate().filter(|(other, _)| *other != node);
            for disk in others.filter_map(|(_, disk)| disk.upgrade()) {
                held.merge(&on(&disk), quorate_core::object::MergeRule::KeepAll);
            }
        }
        let mut known = self.lock();
        let missing = |dot: &Dot| {
            !held.context().contains(*dot) && !known.is_reaped(*dot) && !known.keep_newest.contains(key)
        };
        let lost = hint.live().iter().map(|version| version.dot).find(missing);
        let was_wiped = known.lost_disks.iter().any(|(lost, _)| *lost == number);
        if let Some(dot) = lost.filter(|_| !was_wiped) {
            let text =
                format!("n{node} deletes a hint for n{number}, which does not have {dot:?} of {key:?}");
            known.violations.push(Violation { rule: Rule::AckedWritesSurvive, text });
        }
    }

    /// True if layouts change, and the node is a replica of the key by the newest one that it has stored.
    fn is_holder(&self, node: usize, key: &StorageKey) -> bool {
        let this = NodeId::of_name(&format!("n{node}"));
        let known = self.lock();
        known.moves && known.layouts.get(&node).is_some_and(|layout| owns(layout, this, key))
    }

    /// True if a node that removes a record is no replica of it any more.
    fn is_dropped(&self, node: usize, key: &StorageKey) -> bool {
        let this = NodeId::of_name(&format!("n{node}"));
        let known = self.lock();
        known.moves && known.layouts.get(&node).is_some_and(|layout| !owns(layout, this, key))
    }

    /// A node drops what is not its own any more: every owner must durably have it.
    fn record_goes(&self, node: usize, key: &StorageKey, old: &Object) {
        let Some(layout) = self.lock().layouts.get(&node).cloned() else { return };
        let disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (owner, disk) in disks.iter().enumerate().filter(|(owner, _)| *owner != node) {
            let id = NodeId::of_name(&format!("n{owner}"));
            let Some(disk) = disk.upgrade().filter(|_| owns(&layout, id, key)) else { continue };
            let held = disk.image().get(&key.to_bytes()).and_then(|bytes| decode_object(bytes).ok());
            let held = held.map(|record| record.object).unwrap_or_default();
            let mut known = self.lock();
            let excused = known.keep_newest.contains(key)
                || known.lost_disks.iter().any(|(lost, _)| *lost == owner || *lost == node);
            let missing = |dot: &Dot| !held.context().contains(*dot) && !known.is_reaped(*dot);
            let lost = old.live().iter().map(|version| version.dot).find(missing);
            if let Some(dot) = lost.filter(|_| !excused) {
                let text = format!(
                    "n{node} drops {dot:?} of {key:?} by layout {}, which n{owner}, its owner, does not have: {old:?}, there {held:?}",
                    layout.number()
                );
                known.violations.push(Violation { rule: Rule::AckedWritesSurvive, text });
            }
        }
    }

    /// A client is about to send a write.
    pub fn asked(&self, request: RequestId, asked: Asked) {
        self.lock().asked.insert(request, asked);
    }

    /// A client got its ack, and with it a context.
    pub fn acked(&self, request: RequestId, mut ack: Ack, context: &CausalContext) {
        ack.dots = self.lock().by_request.get(&request).cloned().unwrap_or_default();
        ack.dots.retain(|dot| context.contains(*dot));
        if let Some(asked) = self.lock().asked.get_mut(&request) {
            asked.acked = Some(ack);
        }
    }

    /// The key's bucket keeps the newest version only.
    pub fn keeps_newest(&self, key: &StorageKey) {
        self.lock().keep_newest.insert(key.clone());
    }

    /// From now on what nodes hold may move to others.
    pub fn layout_changes(&self) {
        self.lock().moves = true;
    }

    /// A node has reached a phase of a change of layout. Who says that it has synced must hold every write that a quorum of
    /// replicas acked before the last node acked the layout: from then on writes need acks in the new sets, too.
    pub fn phase(&self, node: usize, number: u64, phase: Phase, at_ms: u64) {
        if phase == Phase::Acked {
            let mut known = self.lock();
            let last = known.acked_layout.entry(number).or_default();
            *last = (*last).max(at_ms);
        }
        if phase != Phase::Synced {
            return;
        }
        let disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(disk) = disks.get(node).and_then(std::sync::Weak::upgrade) else { return };
        let image = disk.image();
        let this = NodeId::of_name(&format!("n{node}"));
        let Some(layouts) =
            image.get(&layouts_fact().to_bytes()).and_then(|bytes| Layouts::decode(this, bytes).ok())
        else {
            return;
        };
        let newest = layouts.newest();
        let moves = |key: &StorageKey| {
            let n = |layout: &Layout| layout.buckets().get(key.bucket()).n;
            let replicas = |layout: &Layout| layout.replicas_of(key.partition(), n(newest)).to_vec();
            let then = replicas(newest);
            // What a bucket with another n holds is there once all have given it away.
            let moved = |source: &std::sync::Arc<Layout>| n(source) == n(newest) && replicas(source) != then;
            then.contains(&this) && layouts.sources().iter().any(moved)
        };
        let before = self.lock().acked_layout.get(&number).copied().unwrap_or(0);
        let due: Vec<(RequestId, StorageKey)> = {
            let known = self.lock();
            let is_due = |(request, asked): (&RequestId, &Asked)| {
                let ack = asked.acked.as_ref()?;
                let counts = ack.at_ms < before
                    && ack.fallbacks.is_empty()
                    && ack.w > usize::from(newest.replicas()) / 2
                    && known.losses(ack, &[]) == 0
                    && moves(&asked.key);
                counts.then(|| (*request, asked.key.clone()))
            };
            known.asked.iter().filter_map(is_due).collect()
        };
        for (request, key) in due {
            let held = image.get(&key.to_bytes()).and_then(|bytes| decode_object(bytes).ok());
            let held = held.map(|record| record.object).unwrap_or_default();
            if !self.covers(&held.context(), request, &key) {
                let text = format!(
                    "n{node} says that it has synced for layout {number}, and does not have {request:?} of {key:?}"
                );
                self.report(Rule::AckedWritesSurvive, text);
            }
        }
    }

    /// A node's disk lost what it had acked.
    pub fn lost_disk(&self, node: usize, at_ms: u64) {
        self.lock().lost_disks.push((node, at_ms));
    }

    /// Adds a violation that was found elsewhere.
    pub fn report(&self, rule: Rule, text: String) {
        self.lock().violations.push(Violation { rule, text });
    }

    /// All broken promises.
    pub fn violations(&self) -> Vec<Violation> {
        self.lock().violations.clone()
    }

    /// How often a write that was retried was found live twice, or back after it was replaced: allowed, and counted.
    pub fn retries_seen_twice(&self) -> u64 {
        self.lock().retries_seen_twice
    }

    /// An engine changes a record.
    pub fn observe(&self, node: usize, key: &Bytes, old: Option<&Bytes>, new: Option<&Bytes>) {
        if *key == layouts_fact().to_bytes() {
            let stored = new.and_then(|bytes| Layouts::decode(NodeId(0), bytes).ok());
            let stored = stored.map(|layouts| (node, layouts.newest().clone()));
            return self.lock().layouts.extend(stored);
        }
        let hint_for = parse_hint_key(key).map(|(target, _)| target);
        let key = match parse_hint_key(key) {
            Some((_, key)) => key,
            None => match StorageKey::from_peer(key) {
                Some(key) => key,
                None => return,
            },
        };
        let decode = |bytes: Option<&Bytes>| bytes.and_then(|bytes| decode_object(bytes).ok());
        let old = decode(old).map(|record| record.object).unwrap_or_default();
        let Some(new) = decode(new) else {
            if let Some(target) = hint_for {
                self.hint_goes(node, target, &key, &old);
            } else if old.is_tombstone() && !self.is_dropped(node, &key) {
                self.lock().reaped.extend(old.live().iter().map(|version| version.dot));
            } else {
                self.record_goes(node, &key, &old);
            }
            return;
        };
        self.lock().observe(node, &key, &old, &new.object);
    }

    /// Checks what a client is told of what it has seen: after a put, `own` is its request.
    pub fn check_context(
        &self,
        key: &StorageKey,
        context: &CausalContext,
        before: &CausalContext,
        shown: &[RequestId],
        what: &str,
    ) {
        let mut known = self.lock();
        let dots = known.keys.get(key).cloned().unwrap_or_default();
        for dot in dots {
            if !context.contains(dot) || before.contains(dot) {
                continue;
            }
            let mint = &known.minted[&dot];
            let replaced = known.replaced_by.contains_key(&dot);
            let allowed = shown.contains(&mint.request)
                || mint.tombstone
                || replaced
                || known.keep_newest.contains(key);
            if !allowed {
                let text = format!(
                    "{what} of {key:?} covers {dot:?}, which its client was not shown and nothing replaced"
                );
                known.violations.push(Violation { rule: Rule::Causality, text });
            }
        }
    }

    /// The requests of those who wrote a value: values are unique in a run.
    pub fn writer_of(&self, key: &StorageKey, value: &[u8]) -> Option<RequestId> {
        let known = self.lock();
        let wrote = |asked: &Asked| {
            asked.key == *key && asked.payload == Payload::Value(Bytes::copy_from_slice(value))
        };
        // A scenario may ask for one value again when nothing was attempted.
        let mut writers = known.asked.iter().filter(|(_, asked)| wrote(asked)).map(|(request, _)| *request);
        writers.clone().find(|request| known.by_request.contains_key(request)).or_else(|| writers.next())
    }

    /// Writes to a key that were acked before `at_ms` by replicas alone and are not lost: what a read that begins then
    /// must have in its context, if it asks `r` of them.
    pub fn must_see(&self, key: &StorageKey, at_ms: u64, replicas: &[usize], r: usize) -> Vec<RequestId> {
        let known = self.lock();
        let due = |(request, asked): (&RequestId, &Asked)| {
            let ack = asked.acked.as_ref()?;
            let counts = asked.key == *key
                && ack.at_ms <= at_ms
                && ack.fallbacks.is_empty()
                && known.survives(ack, replicas)
                && ack.w + r > replicas.len();
            counts.then_some(*request)
        };
        let mut all: BTreeSet<RequestId> = known.asked.iter().filter_map(due).collect();
        for ((shown_of, request), ack) in &known.shown {
            if shown_of == key
                && ack.at_ms <= at_ms
                && known.survives(ack, replicas)
                && ack.w + r > replicas.len()
            {
                all.insert(*request);
            }
        }
        all.into_iter().collect()
    }

    /// A quorum read that `r` replicas and no fallback answered showed these writes: no later one may miss them.
    pub fn shown(
        &self,
        key: &StorageKey,
        requests: &[RequestId],
        (since_ms, at_ms): (u64, u64),
        r: usize,
        replicas: &[usize],
    ) {
        let mut known = self.lock();
        for &request in requests {
            let ack = Ack {
                at_ms,
                since_ms,
                w: r,
                nodes: replicas.to_vec(),
                fallbacks: Vec::new(),
                dots: Vec::new(),
            };
            let known_as = known.shown.entry((key.clone(), request)).or_insert_with(|| ack.clone());
            if known_as.w < r {
                *known_as = ack;
            }
        }
    }

    /// True if a context covers the write, or shows that a deletion of it was reaped.
    pub fn covers(&self, context: &CausalContext, request: RequestId, key: &StorageKey) -> bool {
        let known = self.lock();
        let Some(dots) = known.by_request.get(&request) else { return false };
        dots.iter().any(|dot| {
            known.descendants(*dot).iter().any(|dot| context.contains(*dot) || known.reaped.contains(dot))
                || (known.keep_newest.contains(key)
                    && (context.newest() >= dot.stamp
                        || known.newer_tombstone(*dot, key, &Object::default())))
        })
    }

    /// A read shows these writes: none of them may have been deleted, and the deletion reaped.
    pub fn check_shown(&self, key: &StorageKey, shown: &[RequestId]) {
        let mut known = self.lock();
        for request in shown {
            let dots = known.by_request.get(request).cloned().unwrap_or_default();
            if !dots.is_empty() && dots.iter().all(|dot| known.is_reaped(*dot)) {
                let text = format!(
                    "a read of {key:?} shows {request:?}, which was deleted, and the deletion reaped"
                );
                known.violations.push(Violation { rule: Rule::NothingReturns, text });
            }
        }
    }

    /// Holds the end state of a key against everything that happened to it.
    pub fn check_end(&self, key: &StorageKey, end: &Object, replicas: &[usize]) {
        let mut known = self.lock();
        let mut found = Vec::new();
        for version in end.live() {
            let asked = known.asked.get(&version.request);
            match asked {
                None => found
                    .push((Rule::NoInventedValue, format!("{key:?} holds {version:?}, which nobody wrote"))),
                Some(asked) if asked.payload != version.payload || asked.key != *key => {
                    found.push((
                        Rule::Whole,
                        format!("{key:?} holds {version:?}, which was asked as {asked:?}"),
                    ));
                }
                Some(_) => {}
            }
        }
        let requests: Vec<(RequestId, Asked)> =
            known.asked.iter().filter(|(_, asked)| asked.key == *key).map(|(r, a)| (*r, a.clone())).collect();
        for (request, asked) in &requests {
            let Some(ack) = &asked.acked else { continue };
            if !known.survives(ack, replicas) {
                continue;
            }
            let all = known.by_request.get(request).cloned().unwrap_or_default();
            let dots = if ack.dots.is_empty() { all } else { ack.dots.clone() };
            let mut memo = BTreeMap::new();
            if !dots.iter().any(|dot| known.is_kept(*dot, key, end, &mut memo)) {
                found.push((
                    Rule::AckedWritesSurvive,
                    format!("{key:?}: {request:?} = {:?} was acked ({ack:?}) and is neither there nor replaced; dots {dots:?}; end {end:?}", asked.payload),
                ));
            }
        }
        for version in end.live() {
            let replacers = known.replaced_by.get(&version.dot).cloned().unwrap_or_default();
            let acked_replacer = replacers.iter().find(|dot| {
                let ack = known.asked.get(&known.minted[dot].request).and_then(|asked| asked.acked.as_ref());
                ack.is_some_and(|ack| ack.dots.contains(dot) && known.survives(ack, replicas))
            });
            if let Some(by) = acked_replacer {
                let retried = known.by_request.get(&version.request).is_some_and(|dots| dots.len() > 1);
                if retried {
                    known.retries_seen_twice += 1;
                } else {
                    found.push((
                        Rule::NothingReturns,
                        format!("{key:?}: {:?} is back, although {by:?} had replaced it", version.dot),
                    ));
                }
            }
        }
        let shown: Vec<_> =
            end.shown().iter().map(|version| (version.request, version.payload.clone())).collect();
        let distinct: BTreeSet<_> = shown.iter().map(|(request, _)| *request).collect();
        if distinct.len() != shown.len() {
            found.push((Rule::RetriesAreOne, format!("{key:?} shows one write twice: {shown:?}")));
        }
        known.violations.extend(found.into_iter().map(|(rule, text)| Violation { rule, text }));
    }
}

impl Known {
    /// How many of those who acked may have lost the write: a fallback passes it on to a replica, which may lose it then.
    /// True if somebody who acked the write, or who has it from them, still has its disk.
    fn survives(&self, ack: &Ack, replicas: &[usize]) -> bool {
        // A bucket may have got fewer replicas since.
        self.losses(ack, replicas) < ack.w.min(replicas.len())
    }

    fn losses(&self, ack: &Ack, replicas: &[usize]) -> usize {
        if self.moves {
            // What was acked may have moved to whoever lost its disk.
            let lost = self.lost_disks.iter().filter(|(_, at)| *at >= ack.since_ms).count();
            return lost.min(ack.nodes.len());
        }
        let lost =
            |node: &usize| self.lost_disks.iter().any(|(lost, at)| lost == node && *at >= ack.since_ms);
        let taker_lost = replicas.iter().any(|replica| !ack.nodes.contains(replica) && lost(replica));
        ack.nodes.iter().filter(|node| lost(node) || (ack.fallbacks.contains(node) && taker_lost)).count()
    }

    fn observe(&mut self, node: usize, key: &StorageKey, old: &Object, new: &Object) {
        for version in new.live() {
            match self.minted.get(&version.dot) {
                Some(mint) if mint.request != version.request => {
                    let text = format!(
                        "n{node}: {key:?}: {:?} names {:?} and {:?}",
                        version.dot, mint.request, version.request
                    );
                    self.violations.push(Violation { rule: Rule::Causality, text });
                }
                Some(_) => {}
                None => self.mint(node, key, old, new, version.dot, version.request, &version.payload),
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn mint(
        &mut self,
        node: usize,
        key: &StorageKey,
        old: &Object,
        new: &Object,
        dot: Dot,
        request: RequestId,
        payload: &Payload,
    ) {
        let Some(asked) = self.asked.get(&request).cloned() else {
            let text =
                format!("n{node}: {key:?}: {dot:?} was written by {request:?}, which nobody asked for");
            self.violations.push(Violation { rule: Rule::NoInventedValue, text });
            return;
        };
        if old.knows(request) {
            let text = format!(
                "n{node}: {key:?}: {request:?} is minted again as {dot:?}, although its coordinator knew of it"
            );
            self.violations.push(Violation { rule: Rule::RetriesAreOne, text });
        }
        let was_live = |dot: &Dot| old.live().iter().any(|version| version.dot == *dot);
        // Where only the newest is kept, what is older loses, seen or not.
        let newest_wins = self.keep_newest.contains(key);
        let loses = |other: &Dot| newest_wins && other.stamp < dot.stamp;
        let mut replaced = BTreeSet::new();
        for &other in self.keys.get(key).map_or(&[][..], Vec::as_slice) {
            if !new.replaced().contains(other) {
                continue;
            }
            let seen = asked.context.contains(other) || (asked.overwrites && was_live(&other));
            if seen {
                if other.stamp >= dot.stamp {
                    let text = format!("n{node}: {key:?}: {dot:?} replaces {other:?}, which is not older");
                    self.violations.push(Violation { rule: Rule::Causality, text });
                }
                replaced.insert(other);
            } else if !old.replaced().contains(other) && !loses(&other) && !self.is_reaped(other) {
                let text = format!(
                    "n{node}: {key:?}: {dot:?} of {request:?} covers {other:?}, which its writer had not seen"
                );
                self.violations.push(Violation { rule: Rule::Causality, text });
            }
        }
        if new.replaced().contains(dot) || self.replaced_by.contains_key(&dot) {
            let text = format!("n{node}: {key:?}: {dot:?} is born replaced");
            self.violations.push(Violation { rule: Rule::Causality, text });
        }
        for &other in &replaced {
            self.replaced_by.entry(other).or_default().insert(dot);
        }
        self.keys.entry(key.clone()).or_default().push(dot);
        self.by_request.entry(request).or_default().push(dot);
        self.minted.insert(dot, Mint { request, tombstone: *payload == Payload::Tombstone, replaced });
    }

    /// True if the write is live in the end, or something is that saw it, or it was deleted and the deletion reaped.
    fn is_kept(&self, dot: Dot, key: &StorageKey, end: &Object, memo: &mut BTreeMap<Dot, bool>) -> bool {
        if let Some(&known) = memo.get(&dot) {
            return known;
        }
        memo.insert(dot, false);
        let live = end.live().iter().any(|version| version.dot == dot);
        let newer_wins = self.keep_newest.contains(key)
            && end
                .live()
                .iter()
                .any(|version| (version.dot.stamp, version.dot.actor) > (dot.stamp, dot.actor));
        let newer_was_reaped = self.keep_newest.contains(key) && self.newer_tombstone(dot, key, end);
        let reaped = (self.reaped.contains(&dot) && !live) || newer_was_reaped;
        let kept = live
            || newer_wins
            || reaped
            || self
                .replaced_by
                .get(&dot)
                .is_some_and(|by| by.iter().any(|by| self.is_kept(*by, key, end, memo)));
        memo.insert(dot, kept);
        kept
    }

    /// True if a deletion is newer than the write, and is no more itself.
    fn newer_tombstone(&self, dot: Dot, key: &StorageKey, end: &Object) -> bool {
        self.keys[key].iter().any(|other| {
            let gone = !end.live().iter().any(|version| version.dot == *other);
            self.reaped.contains(other) && gone && (other.stamp, other.actor) > (dot.stamp, dot.actor)
        })
    }

    /// The write, and everything that replaced it, directly or not.
    fn descendants(&self, dot: Dot) -> BTreeSet<Dot> {
        let mut open = vec![dot];
        let mut seen = BTreeSet::new();
        while let Some(dot) = open.pop() {
            if seen.insert(dot) {
                open.extend(self.replaced_by.get(&dot).into_iter().flatten().copied());
            }
        }
        seen
    }

    /// True if a deletion that saw the write, directly or not, was reaped.
    fn is_reaped(&self, dot: Dot) -> bool {
        self.descendants(dot).iter().any(|dot| self.reaped.contains(dot))
    }
}

impl std::fmt::Debug for Oracle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known = self.lock();
        let edges: usize = known.minted.values().map(|mint| mint.replaced.len()).sum();
        write!(f, "{} writes, {} minted, {edges} replaced", known.asked.len(), known.minted.len())
    }
}

/// True if a node is a replica of the key.
fn owns(layout: &Layout, node: NodeId, key: &StorageKey) -> bool {
    layout.replicas_for(key.partition(), key.bucket()).contains(&node)
}
