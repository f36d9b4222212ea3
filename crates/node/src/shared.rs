//! What all workers of a node share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use quorate_core::admission::Identity;
use quorate_core::clock::{HybridClock, Stamp};
use quorate_core::environment::Environment;
use quorate_core::event::{Event, EventKind, EventSink};
use quorate_core::key::Table;
use quorate_core::membership::Membership;
use quorate_core::object::{MergeRule, RequestId};
use quorate_core::planted::{Bug, planted};
use quorate_core::recovery::others_needed;
use quorate_core::request::{HintStatus, ReapingStatus, RepairStatus, TransferReport, TreeName};
use quorate_core::resolver::ConflictResolver;
use quorate_core::storage::{Change, StorageEngine, StorageError, Update};
use quorate_core::transition::{Layouts, View};
use quorate_core::{Actor, Buckets, Digest, Dot, NodeId, PartitionId, RequestError, StorageKey};

use crate::hints::{HintBook, HintChange};
use crate::layouts::LayoutBook;
use crate::settings::Settings;
use crate::sync::Way;
use crate::transfer::TransferProgress;
use crate::trees::Trees;

/// A node's state that all of its workers share: who it is, its layout, its engine, its clock and its actors.
pub struct Shared {
    /// Who this node is.
    pub identity: Identity,
    /// The layouts it goes by.
    pub(crate) layouts: LayoutBook,
    /// Q.
    pub(crate) partitions: u32,
    /// What buckets' keys are held to in the newest layout.
    pub(crate) buckets: Arc<ArcSwap<Buckets>>,
    /// All conflict resolvers by name.
    pub resolvers: BTreeMap<String, Arc<dyn ConflictResolver>>,
    /// Where its records are.
    pub engine: Arc<dyn StorageEngine>,
    /// For people: the engine's name and durability.
    pub storage_name: String,
    /// Wall clock and randomness.
    pub environment: Arc<dyn Environment>,
    /// Where events go.
    pub events: Arc<dyn EventSink>,
    /// Who is in the cluster.
    pub membership: Arc<Mutex<Box<dyn Membership>>>,
    /// What an operator can set.
    pub settings: Settings,
    /// When this node acks a write: once it is durable, or once it is applied.
    pub(crate) ack_when_durable: bool,
    started_ms: u64,
    clock: AtomicU64,
    /// One a partition. Zero: none drawn yet in this run of the process.
    actors: Vec<AtomicU64>,
    /// Under which this node coordinates what it is no replica of. Zero: none drawn yet.
    fallback_actor: AtomicU64,
    /// The hash trees of all partitions.
    pub(crate) trees: Trees,
    /// What is kept for others.
    pub(crate) hints: HintBook,
    /// Not all that this node may have forgotten at its start was asked for yet.
    forgot: AtomicBool,
    /// Enough others were asked about layouts since this node may have forgotten those, too. Until then it takes nothing from
    /// anybody: whom it takes for a member may have been taken out.
    confirmed: AtomicBool,
    /// Per partition: this node may have forgotten what it held, and has not asked enough others yet.
    recovering: Vec<AtomicBool>,
    /// Per partition: how often a record of it was found lost.
    losses: Vec<AtomicU64>,
    /// Per partition: when a hint was last deleted here, milliseconds of the monotonic clock, plus one. Zero: never.
    hint_deleted: Vec<AtomicU64>,
    /// What was reaped lately, with the end of its order: not to be offered to others, nor taken from them.
    reaped: Mutex<BTreeMap<StorageKey, (Digest, u64)>>,
    /// Set while this node's clock is too far from most of its peers: why.
    clock_trouble: Mutex<Option<String>>,
    has_clock_trouble: AtomicBool,
    /// Wall clock minus monotonic clock, milliseconds, when peers last agreed with it: a jump since then is noticed before
    /// the next write is stamped, not at the next comparison.
    clock_base: AtomicI64,
    /// Raised to ask for a round of anti-entropy with everybody.
    pub(crate) repairs_asked: AtomicU64,
    /// What anti-entropy is doing.
    pub(crate) repair: Mutex<RepairProgress>,
    /// What reaping came to.
    pub(crate) reaping: Mutex<ReapingProgress>,
    /// Clients are sent elsewhere: an operator is about to stop the node.
    drained: AtomicBool,
    /// What is copied or handed over in a change of layout.
    pub(crate) transfer: Mutex<TransferProgress>,
    /// How far this clock is ahead of its peers', milliseconds.
    pub(crate) clock_ahead_ms: AtomicI64,
    /// Clients' requests under way, on all workers.
    pub(crate) in_flight: AtomicUsize,
}

/// What goes on without any client, for metrics and `status`.
#[derive(Clone, Debug)]
pub struct Upkeep {
    /// What is kept for others.
    pub hints_for: Vec<HintStatus>,
    /// Partitions that may have forgotten.
    pub recovering: usize,
    /// Why the node coordinates nothing, if it does not.
    pub clock_trouble: Option<String>,
    /// How far its clock is ahead of its peers' (the median), milliseconds.
    pub clock_ahead_ms: i64,
    /// Anti-entropy.
    pub repair: RepairStatus,
    /// Deletes.
    pub reaping: ReapingStatus,
    /// Clients' requests under way.
    pub in_flight: usize,
}

/// What anti-entropy is doing, for people.
#[derive(Default)]
pub(crate) struct RepairProgress {
    pub(crate) status: RepairStatus,
    pub(crate) last_ended_ms: Option<u64>,
}

/// What reaping came to, for people.
#[derive(Default)]
pub(crate) struct ReapingProgress {
    pub(crate) reaped: u64,
    pub(crate) blocked_by: Option<String>,
}

/// Where it is noted, on disk, that this node has not recovered yet.
pub fn recovering_fact() -> StorageKey {
    StorageKey::of_table(Table::Facts, b"recovering")
}

/// Notes that this node may have forgotten what it held, or that it has asked the others.
pub(crate) struct Mark {
    pub(crate) key: StorageKey,
    pub(crate) recovering: bool,
}

impl Update for Mark {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, _: Option<Bytes>) -> Result<Change, StorageError> {
        Ok(if self.recovering { Change::Put(Bytes::from_static(b"1")) } else { Change::Remove })
    }

    fn applied(&mut self) {}

    fn finished(self: Box<Self>, _: Result<(), StorageError>) {}
}

/// In which role a write is minted: each has an actor of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tenure {
    /// As a replica of this partition.
    Replica(PartitionId),
    /// As a fallback, while no replica can be reached.
    Fallback,
}

/// What a node is made of.
pub struct Parts {
    /// Who this node is.
    pub identity: Identity,
    /// What it knows of layouts.
    pub layouts: Layouts,
    /// All conflict resolvers by name.
    pub resolvers: BTreeMap<String, Arc<dyn ConflictResolver>>,
    /// Where its records are.
    pub engine: Arc<dyn StorageEngine>,
    /// For people: the engine's name and durability.
    pub storage_name: String,
    /// Wall clock and randomness.
    pub environment: Arc<dyn Environment>,
    /// Where events go.
    pub events: Arc<dyn EventSink>,
    /// Who is in the cluster. Whoever looks for seeds shares it.
    pub membership: Arc<Mutex<Box<dyn Membership>>>,
    /// What an operator can set.
    pub settings: Settings,
    /// The engine held nothing when this node opened it: it is new, or was wiped.
    pub is_empty: bool,
}

impl Shared {
    /// A node that begins now: with new actors, whatever its engine holds.
    ///
    /// # Errors
    /// If the engine can't be read.
    pub fn new(parts: Parts) -> Result<Arc<Shared>, StorageError> {
        let Parts {
            identity,
            layouts,
            resolvers,
            engine,
            storage_name,
            environment,
            events,
            membership,
            settings,
            is_empty,
        } = parts;
        let buckets = Arc::new(ArcSwap::new(layouts.newest().buckets().clone()));
        let view = layouts.view();
        let partitions = view.read.partitions();
        let hints = HintBook::load(&*engine, environment.wall_ms())?;
        let marked = engine.get(&recovering_fact())?.is_some();
        let forgot = is_empty || marked || !engine.capability().durable;
        if forgot && !marked {
            // Before anything else is stored: a node that is stopped before it has recovered has not recovered. One whose engine
            // forgets never has: if it is started with another durability, what it holds may be what a kill left of it.
            engine.update(vec![Box::new(Mark { key: recovering_fact(), recovering: true })]);
        }
        let may_forget = |p: u32| {
            let partition = PartitionId(p as u16);
            let holds = view.active.iter().filter(|layout| layout.holds(identity.node, partition));
            holds.into_iter().any(|layout| layout.replicas() > 1)
        };
        let recovering = (0..partitions).map(|p| AtomicBool::new(forgot && may_forget(p))).collect();
        let losses = (0..partitions).map(|_| AtomicU64::new(0)).collect();
        let hint_deleted = (0..partitions).map(|_| AtomicU64::new(0)).collect();
        let actors = (0..partitions).map(|_| AtomicU64::new(0)).collect();
        let started_ms = environment.monotonic_ms();
        let clock = AtomicU64::new(0);
        let ack_when_durable = engine.capability().ack_when_durable;
        let trees = Trees::new(partitions, buckets.clone());
        let clock_base = AtomicI64::new(environment.wall_ms() as i64 - environment.monotonic_ms() as i64);
        Ok(Arc::new(Shared {
            ack_when_durable,
            identity,
            layouts: LayoutBook::new(layouts),
            partitions,
            buckets,
            resolvers,
            engine,
            storage_name,
            environment,
            events,
            membership,
            settings,
            started_ms,
            clock,
            actors,
            fallback_actor: AtomicU64::new(0),
            trees,
            hints,
            forgot: AtomicBool::new(forgot),
            confirmed: AtomicBool::new(!forgot || view.participants.len() <= 1),
            recovering,
            losses,
            hint_deleted,
            reaped: Mutex::default(),
            clock_trouble: Mutex::default(),
            has_clock_trouble: AtomicBool::new(false),
            clock_base,
            repairs_asked: AtomicU64::new(0),
            repair: Mutex::default(),
            reaping: Mutex::default(),
            transfer: Mutex::default(),
            drained: AtomicBool::new(false),
            clock_ahead_ms: AtomicI64::new(0),
            in_flight: AtomicUsize::new(0),
        }))
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.identity.node
    }

    /// Milliseconds since the node started.
    pub fn uptime_ms(&self) -> u64 {
        self.environment.monotonic_ms().saturating_sub(self.started_ms)
    }

    /// The name of a new write to a key of the partition, beyond everything it has seen. Called inside the engine's
    /// update of the key, so that stamps rise in the order in which writes apply.
    pub(crate) fn mint(&self, by: Tenure, newest: Stamp) -> Dot {
        let wall_ms = self.environment.wall_ms();
        let mut last = self.clock.load(Ordering::Relaxed);
        let stamp = loop {
            let clock = HybridClock { last: Stamp(last) };
            let (stamp, next) = clock.mint(newest, wall_ms, self.settings.coordinator.max_clock_skew_ms);
            match self.clock.compare_exchange_weak(last, next.last.0, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break stamp,
                Err(now) => last = now,
            }
        };
        Dot { actor: self.actor(by), stamp }
    }

    fn actor(&self, by: Tenure) -> Actor {
        if planted(Bug::ActorReusedAfterStart) {
            return Actor(self.node().0);
        }
        let slot = match by {
            Tenure::Replica(partition) => &self.actors[partition.0 as usize],
            Tenure::Fallback => &self.fallback_actor,
        };
        let drawn = slot.load(Ordering::Acquire);
        if drawn != 0 {
            return Actor(drawn);
        }
        let fresh = self.environment.random().max(1);
        match slot.compare_exchange(0, fresh, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Actor(fresh),
            Err(other) => Actor(other),
        }
    }

    /// A change that had been applied could not be committed: an event of the partition's actor is forgotten, so
    /// the actor must never speak again. Whoever calls this sees to it that `ActorRenewed` is told, outside the engine.
    pub(crate) fn renew_actor(&self, partition: PartitionId) {
        self.actors[partition.0 as usize].store(self.environment.random().max(1), Ordering::Release);
    }

    /// The layouts changed: of what this node holds by them, and did not know to hold, it may have forgotten everything, too.
    pub(crate) fn may_have_forgotten(&self, partition: PartitionId) {
        if self.forgot.load(Ordering::Acquire) {
            self.recovering[partition.0 as usize].store(true, Ordering::Release);
        }
    }

    /// All that it may have forgotten at its start was asked for.
    pub(crate) fn forgot_nothing_more(&self) {
        self.forgot.store(false, Ordering::Release);
    }

    /// False until enough others were asked about layouts, if this node may have forgotten those.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Acquire)
    }

    /// Enough others were asked about layouts.
    pub(crate) fn confirm_layouts(&self) {
        self.confirmed.store(true, Ordering::Release);
    }

    /// This node holds nothing of the partition any more, or begins to hold it again: should it coordinate a write of it, it
    /// does so under a new actor.
    pub(crate) fn forget_actor(&self, partition: PartitionId) {
        self.actors[partition.0 as usize].store(0, Ordering::Release);
    }

    /// It holds nothing of the partition any more: there is nothing to be asked for.
    pub(crate) fn forget_recovery(&self, partition: PartitionId) {
        self.recovering[partition.0 as usize].store(false, Ordering::Release);
    }

    /// A hint goes, or could not be committed: what this node coordinated as a fallback is forgotten with it.
    pub(crate) fn renew_fallback_actor(&self) {
        if self.fallback_actor.load(Ordering::Acquire) != 0 {
            self.fallback_actor.store(self.environment.random().max(1), Ordering::Release);
        }
    }

    /// When a message that is sent now, and may be applied within `timeout`, is void.
    pub(crate) fn valid_until_ms(&self, timeout: Duration) -> u64 {
        self.environment.wall_ms() + (timeout.as_millis() as u64).min(self.settings.message_life_ms())
    }

    /// True if a message's time is over, whatever the sender's clock says within the allowed skew.
    pub(crate) fn is_void(&self, valid_until_ms: u64) -> bool {
        self.environment.wall_ms()
            > valid_until_ms.saturating_add(self.settings.coordinator.max_clock_skew_ms)
    }

    /// The budget that a hint would break.
    pub(crate) fn check_budget(&self, change: HintChange) -> Result<(), u64> {
        let budget = self.settings.hints.max_mib_per_target * 1024 * 1024;
        if self.hints.fits(change, budget) { Ok(()) } else { Err(budget) }
    }

    pub(crate) fn note_hint_deleted(&self, partition: PartitionId) {
        let now = self.environment.monotonic_ms() + 1;
        self.hint_deleted[partition.0 as usize].fetch_max(now, Ordering::AcqRel);
    }

    /// True if this node deleted a hint of the partition within the last `period_ms`, or might have before it started.
    pub(crate) fn deleted_hint_within(&self, partition: PartitionId, period_ms: u64) -> bool {
        let now = self.environment.monotonic_ms();
        let deleted = self.hint_deleted[partition.0 as usize].load(Ordering::Acquire);
        let lately = deleted != 0 && now.saturating_sub(deleted - 1) <= period_ms;
        lately || now.saturating_sub(self.started_ms) <= period_ms
    }

    /// What this node copies or hands over in the change of layout under way.
    pub fn transfer_report(&self) -> TransferReport {
        let now = self.environment.monotonic_ms();
        self.transfer.lock().unwrap_or_else(PoisonError::into_inner).report(now)
    }

    /// Sends clients elsewhere from now on.
    pub(crate) fn drain(&self) {
        self.drained.store(true, Ordering::Release);
    }

    /// True if clients are sent elsewhere.
    pub fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Acquire)
    }

    /// What goes on without any client.
    pub fn upkeep(&self) -> Upkeep {
        Upkeep {
            hints_for: self.hints.status(self),
            recovering: self.recovering().len(),
            clock_trouble: self.clock_trouble(),
            clock_ahead_ms: self.clock_ahead_ms.load(Ordering::Relaxed),
            repair: crate::repair::status(self),
            reaping: crate::reaper::status(self),
            in_flight: self.in_flight.load(Ordering::Relaxed),
        }
    }

    /// True if this node may have forgotten what it held of the partition: it answers no reads of it.
    pub fn is_recovering(&self, partition: PartitionId) -> bool {
        self.recovering.get(partition.0 as usize).is_some_and(|flag| flag.load(Ordering::Acquire))
    }

    /// The partitions it may have forgotten.
    pub fn recovering(&self) -> Vec<PartitionId> {
        let numbered = self.recovering.iter().enumerate();
        numbered
            .filter(|(_, flag)| flag.load(Ordering::Acquire))
            .map(|(p, _)| PartitionId(p as u16))
            .collect()
    }

    /// A record of the partition is lost: what it said must be asked of others, and the tree that counted it is built anew.
    pub(crate) fn lost_something_of(&self, partition: PartitionId) {
        self.trees.reset(partition);
        self.losses[partition.0 as usize].fetch_add(1, Ordering::AcqRel);
        let alone = self.view().active.iter().all(|layout| layout.replicas() == 1);
        self.recovering[partition.0 as usize].store(!alone, Ordering::Release);
    }

    /// How often a record of the partition was found lost.
    pub(crate) fn losses(&self, partition: PartitionId) -> u64 {
        self.losses[partition.0 as usize].load(Ordering::Acquire)
    }

    /// Enough others were asked since this many losses.
    pub(crate) fn has_recovered(&self, partition: PartitionId, losses: u64) {
        self.recovering[partition.0 as usize].store(false, Ordering::Release);
        if self.losses(partition) != losses {
            self.recovering[partition.0 as usize].store(true, Ordering::Release);
        }
    }

    /// Notes on disk that this node has, or has not, recovered.
    pub(crate) fn mark_recovering(&self, recovering: bool) {
        if !recovering && !self.engine.capability().durable {
            return;
        }
        self.engine.update(vec![Box::new(Mark { key: recovering_fact(), recovering })]);
    }

    /// The trees of a partition whose keys go this way between two nodes: whoever takes is a replica by a layout that is kept
    /// up, whoever gives by some active one; and both are by the one that is read where keys go both ways.
    pub(crate) fn trees_shared_with(
        &self,
        view: &View,
        peer: NodeId,
        partition: PartitionId,
        way: Way,
    ) -> Vec<TreeName> {
        let both = |n: &u8| {
            let gives = |node: NodeId| {
                view.active.iter().any(|layout| layout.replicas_of(partition, *n).contains(&node))
            };
            let takes = |node: NodeId| view.keeps(node, partition, *n);
            let reads = |node: NodeId| view.read.replicas_of(partition, *n).contains(&node);
            match way {
                Way::Here => takes(self.node()) && gives(peer),
                Way::There => gives(self.node()) && takes(peer),
                // What moves is copied, and at the rate that was set for it.
                Way::Both => reads(self.node()) && reads(peer),
            }
        };
        self.sizes().into_iter().filter(both).map(|n| TreeName { partition, n }).collect()
    }

    /// The number of replicas of a bucket's keys; 255: as many as a layout has.
    pub(crate) fn n_of(&self, bucket: &str) -> u8 {
        self.buckets.load().get(bucket).n
    }

    /// The numbers of replicas that buckets have; 255: as many as the layout has.
    pub(crate) fn sizes(&self) -> Vec<u8> {
        let mut sizes: Vec<u8> = self.buckets.load().iter().map(|(_, bucket)| bucket.n).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// How many others a recovering replica must have merged with, for buckets of size `n`, in a layout with so many replicas.
    pub(crate) fn others_needed(&self, n: u8, replicas: u8) -> usize {
        let buckets = self.buckets.load();
        let of_n = buckets.iter().filter(|(_, bucket)| bucket.n == n);
        let n = n.min(replicas);
        let needed = of_n.map(|(_, bucket)| {
            let definition = &bucket.definition;
            others_needed(n, definition.w.of(n), definition.r.of(n))
        });
        needed.max().unwrap_or(usize::from(n))
    }

    /// The fewest acks that a write to a bucket of size `n` waits for, in a layout with so many replicas.
    pub(crate) fn smallest_w(&self, n: u8, replicas: u8) -> u8 {
        let buckets = self.buckets.load();
        let of_n = buckets.iter().filter(|(_, bucket)| bucket.n == n);
        of_n.map(|(_, bucket)| bucket.definition.w.of(n.min(replicas))).min().unwrap_or(1)
    }

    fn lock_reaped(&self) -> MutexGuard<'_, BTreeMap<StorageKey, (Digest, u64)>> {
        self.reaped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers that this state of a key was reaped, or is about to be, until the order is void.
    pub(crate) fn note_reaped(&self, entries: &[(StorageKey, Digest)], valid_until_ms: u64) {
        let now = self.environment.wall_ms();
        let skew = self.settings.coordinator.max_clock_skew_ms;
        // No order is good for longer than a message's life, whatever it says.
        let until = valid_until_ms.min(now.saturating_add(self.settings.message_life_ms() + skew));
        let mut reaped = self.lock_reaped();
        reaped.retain(|_, (_, until)| until.saturating_add(skew) >= now);
        reaped.extend(entries.iter().map(|(key, digest)| (key.clone(), (*digest, until))));
    }

    /// True if this state of a key was reaped lately, and must not be offered or taken.
    pub(crate) fn was_reaped(&self, key: &StorageKey, digest: Digest) -> bool {
        let reaped = self.lock_reaped();
        reaped.get(key).is_some_and(|(gone, until)| *gone == digest && !self.is_void(*until))
    }

    /// Why this node coordinates and reaps nothing, if its clock is far from most of its peers'.
    pub(crate) fn clock_trouble(&self) -> Option<String> {
        if self.has_clock_trouble.load(Ordering::Acquire) {
            return self.clock_trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        }
        let jump = self.clock_offset() - self.clock_base.load(Ordering::Acquire);
        let limit = self.settings.coordinator.max_clock_skew_ms;
        let far = jump.unsigned_abs() > limit && self.view().participants.len() > 1;
        far.then(|| {
            format!("its clock has just jumped by {jump} ms, the limit is {limit} (max_clock_skew_ms)")
        })
    }

    fn clock_offset(&self) -> i64 {
        self.environment.wall_ms() as i64 - self.environment.monotonic_ms() as i64
    }

    /// Peers agree with this node's clock as it is now.
    pub(crate) fn confirm_clock(&self) {
        self.clock_base.store(self.clock_offset(), Ordering::Release);
    }

    pub(crate) fn set_clock_trouble(&self, trouble: Option<String>) {
        self.has_clock_trouble.store(trouble.is_some(), Ordering::Release);
        *self.clock_trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// How replicas merge objects of a bucket.
    pub(crate) fn merge_rule(&self, bucket: &str) -> MergeRule {
        if planted(Bug::ResolverInMerges) {
            return MergeRule::KeepNewest;
        }
        let buckets = self.buckets.load();
        let name = &buckets.get(bucket).definition.resolver;
        self.resolvers.get(name).map_or(MergeRule::KeepAll, |resolver| resolver.merge_rule())
    }

    /// What decides which versions a client is shown.
    ///
    /// # Errors
    /// `InvalidRequest` if this node was built without it.
    pub(crate) fn resolver(&self, name: &str) -> Result<&Arc<dyn ConflictResolver>, RequestError> {
        self.resolvers.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.resolvers.keys().map(String::as_str).collect();
            let (node, known) = (&self.identity.name, known.join(", "));
            RequestError::invalid(format!(
                "resolver {name:?}: node {node} has none of this name, but {known}"
            ))
        })
    }

    pub(crate) fn emit(&self, request: Option<RequestId>, kind: EventKind) {
        self.events.emit(Event { at_ms: self.environment.wall_ms(), node: self.node(), request, kind });
    }
}
