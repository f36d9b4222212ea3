//! The state of a node that all of its workers share.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use quorate_core::admission::Identity;
use quorate_core::environment::Environment;
use quorate_core::event::{Event, EventKind, EventSink};
use quorate_core::layout_change::{Layouts, View};
use quorate_core::membership::Membership;
use quorate_core::object::{MergeRule, RequestId};
use quorate_core::planted::{Bug, planted};
use quorate_core::recovery::others_needed;
use quorate_core::report::TransferReport;
use quorate_core::resolver::ConflictResolver;
use quorate_core::storage::{StorageEngine, StorageError};
use quorate_core::{Buckets, Digest, NodeId, PartitionId, RequestError, StorageKey};

use super::actors::Actors;
use super::clock_guard::ClockGuard;
use super::gc_guard::GcGuard;
use super::hash_trees::HashTrees;
use super::hint_ledger::{HintChange, HintLedger};
use super::layout_book::LayoutBook;
use super::node_metadata::{mark_recovering, recovering_key, unmark_recovering};
use super::progress::Progress;
use super::recovery_state::{Amnesia, Confirmation, Copies, RecoveryState};
use super::settings::Settings;

/// The state that all workers of a node share.
pub struct Shared {
    /// This node's cluster, id and name.
    pub identity: Identity,
    /// The layouts that this node knows.
    pub(crate) layouts: LayoutBook,
    /// Q, the ring's number of partitions.
    partitions: u32,
    /// The definitions of buckets in the newest layout.
    pub(crate) buckets: Arc<ArcSwap<Buckets>>,
    /// All conflict resolvers by name.
    resolvers: BTreeMap<String, Arc<dyn ConflictResolver>>,
    /// The storage engine.
    pub engine: Arc<dyn StorageEngine>,
    /// The engine's name and durability, as reports show them.
    pub storage_name: String,
    /// The source of time and of random numbers.
    pub environment: Arc<dyn Environment>,
    /// The sink of all events.
    pub events: Arc<dyn EventSink>,
    /// The membership plugin.
    pub membership: Arc<Mutex<Box<dyn Membership>>>,
    /// The operator's settings.
    pub settings: Settings,
    /// True if this node acks a write once it is durable, false if once it is applied.
    pub(crate) ack_when_durable: bool,
    started_ms: u64,
    pub(crate) actors: Actors,
    pub(crate) trees: HashTrees,
    pub(crate) hints: HintLedger,
    pub(crate) recovery: RecoveryState,
    pub(crate) gc_guard: GcGuard,
    pub(crate) clock_guard: ClockGuard,
    pub(crate) progress: Progress,
}

/// The parts that a node is made of.
pub struct Parts {
    /// This node's cluster, id and name.
    pub identity: Identity,
    /// The layouts that this node knows.
    pub layouts: Layouts,
    /// All conflict resolvers by name.
    pub resolvers: BTreeMap<String, Arc<dyn ConflictResolver>>,
    /// The storage engine.
    pub engine: Arc<dyn StorageEngine>,
    /// The engine's name and durability, as reports show them.
    pub storage_name: String,
    /// The source of time and of random numbers.
    pub environment: Arc<dyn Environment>,
    /// The sink of all events.
    pub events: Arc<dyn EventSink>,
    /// The membership plugin. The task that searches for seeds shares it.
    pub membership: Arc<Mutex<Box<dyn Membership>>>,
    /// The operator's settings.
    pub settings: Settings,
    /// True if the engine was empty at the start: the node is new, or its disk was wiped.
    pub is_empty: bool,
}

impl Shared {
    /// Creates the state of a node that starts now. The node's actors are new, whatever its engine
    /// holds.
    ///
    /// # Errors
    /// If the engine cannot be read.
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
        let hints = HintLedger::load(&*engine, environment.wall_ms())?;
        let marked = engine.get(&recovering_key())?.is_some();
        let may_have_lost_data = is_empty || marked || !engine.capability().durable;
        if may_have_lost_data && !marked {
            // The mark is stored before anything else, so that a node that stops before it has
            // recovered still recovers at its next start. If the engine is not durable, the mark is
            // never removed. A node that is killed and then started with a durable engine may have
            // only some of its records.
            mark_recovering(&*engine);
        }
        let may_forget = |p: u32| {
            let partition = PartitionId(p as u16);
            let holds = view.active.iter().filter(|layout| layout.holds(identity.node, partition));
            holds.into_iter().any(|layout| layout.replicas() > 1)
        };
        let recovery = RecoveryState::new(
            if may_have_lost_data { Amnesia::Possible } else { Amnesia::None },
            if !may_have_lost_data || view.participants.len() <= 1 {
                Confirmation::Given
            } else {
                Confirmation::Missing
            },
            (0..partitions as usize).map(|p| may_have_lost_data && may_forget(p as u32)),
        );
        let max_skew_ms = settings.coordinator.max_clock_skew_ms;
        Ok(Arc::new(Shared {
            ack_when_durable: engine.capability().ack_when_durable,
            started_ms: environment.monotonic_ms(),
            actors: Actors::new(environment.clone(), identity.node, partitions, max_skew_ms),
            trees: HashTrees::new(partitions, buckets.clone()),
            hints,
            recovery,
            gc_guard: GcGuard::new(partitions),
            clock_guard: ClockGuard::new(environment.clone(), max_skew_ms),
            progress: Progress::default(),
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
        }))
    }

    /// Returns this node's id.
    pub fn node(&self) -> NodeId {
        self.identity.node
    }

    /// Returns the milliseconds since the node started.
    pub fn uptime_ms(&self) -> u64 {
        self.environment.monotonic_ms().saturating_sub(self.started_ms)
    }

    /// Returns the layouts as a request that begins now sees them. The request keeps this view
    /// until it ends.
    pub fn view(&self) -> Arc<View> {
        self.layouts.view()
    }

    /// Returns Q, the ring's number of partitions. It is the same in all layouts.
    pub fn partitions(&self) -> u32 {
        self.partitions
    }

    /// Returns all partitions of the ring.
    pub(crate) fn all_partitions(&self) -> impl Iterator<Item = PartitionId> + use<> {
        (0..self.partitions).map(|partition| PartitionId(partition as u16))
    }

    /// True if the ring has this partition. A peer's request may name a partition that does not
    /// exist.
    pub(crate) fn has_partition(&self, partition: PartitionId) -> bool {
        u32::from(partition.0) < self.partitions
    }

    /// Returns the time after which a message that is sent now is void, in milliseconds since 1970.
    /// The receiver may apply the message within `timeout`, or within the longest life of a message
    /// if that is shorter.
    pub(crate) fn valid_until_ms(&self, timeout: Duration) -> u64 {
        self.environment.wall_ms() + (timeout.as_millis() as u64).min(self.settings.message_life_ms())
    }

    /// True if a message is void, even if this node's clock is ahead of the sender's by the largest
    /// allowed skew.
    pub(crate) fn is_void(&self, valid_until_ms: u64) -> bool {
        self.environment.wall_ms()
            > valid_until_ms.saturating_add(self.settings.coordinator.max_clock_skew_ms)
    }

    /// Checks that a change of a hint keeps its target's hints within the budget
    /// `max_mib_per_target`.
    ///
    /// # Errors
    /// The budget, in bytes, if the hints would exceed it.
    pub(crate) fn check_hint_budget(&self, change: HintChange) -> Result<(), u64> {
        let budget = self.settings.hints.max_mib_per_target * 1024 * 1024;
        if self.hints.fits(change, budget) { Ok(()) } else { Err(budget) }
    }

    pub(crate) fn note_hint_deleted(&self, partition: PartitionId) {
        self.gc_guard.note_hint_deleted(partition, self.environment.monotonic_ms());
    }

    /// True if this node deleted a hint of the partition within the last `period_ms`. Also true if
    /// it started within that time, because it does not remember deletions before its start.
    pub(crate) fn deleted_hint_within(&self, partition: PartitionId, period_ms: u64) -> bool {
        let now = self.environment.monotonic_ms();
        self.gc_guard.deleted_hint_within(partition, now, period_ms)
            || now.saturating_sub(self.started_ms) <= period_ms
    }

    /// Remembers the tombstones that an order collects, given as (key, digest), until the order is
    /// void.
    pub(crate) fn note_collected(&self, entries: &[(StorageKey, Digest)], valid_until_ms: u64) {
        let now = self.environment.wall_ms();
        let skew = self.settings.coordinator.max_clock_skew_ms;
        // An order is valid no longer than a message lives, whatever the order says.
        let until = valid_until_ms.min(now.saturating_add(self.settings.message_life_ms() + skew));
        self.gc_guard.note_collected(entries, until, now.saturating_sub(skew));
    }

    /// True if the key's tombstone with this digest was collected recently. It must neither be
    /// offered to a peer nor be accepted from one, because that would bring it back.
    pub(crate) fn was_collected(&self, key: &StorageKey, digest: Digest) -> bool {
        self.gc_guard.collected_until(key, digest).is_some_and(|until| !self.is_void(until))
    }

    /// Reports the progress of the transfer, or of the range handoff, of the current layout change.
    pub fn transfer_report(&self) -> TransferReport {
        self.progress.transfer().report(self.environment.monotonic_ms())
    }

    /// Refuses clients' requests from now on, so that clients use other nodes.
    pub(crate) fn drain(&self) {
        self.progress.drained.store(true, Ordering::Release);
    }

    /// True if clients' requests are refused, so that clients use other nodes.
    pub fn is_drained(&self) -> bool {
        self.progress.drained.load(Ordering::Acquire)
    }

    /// True if this node may have forgotten records of the partition. It then refuses reads of it.
    pub fn is_recovering(&self, partition: PartitionId) -> bool {
        self.recovery.is_recovering(partition)
    }

    /// Returns the partitions of which this node may have forgotten records.
    pub fn recovering(&self) -> Vec<PartitionId> {
        self.recovery.partitions()
    }

    /// Counts a lost record. Its partition recovers from the other replicas, and the partition's
    /// hash trees are built again.
    pub(crate) fn lost_record_of(&self, partition: PartitionId) {
        self.trees.reset(partition);
        let alone = self.view().active.iter().all(|layout| layout.replicas() == 1);
        self.recovery.lost_record(partition, if alone { Copies::One } else { Copies::Several });
    }

    /// Stores the mark that this node has to recover.
    pub(crate) fn mark_recovering(&self) {
        mark_recovering(&*self.engine);
    }

    /// Removes the mark that this node has to recover. If the engine is not durable, the mark
    /// stays: the node has to recover at every start.
    pub(crate) fn unmark_recovering(&self) {
        if self.engine.capability().durable {
            unmark_recovering(&*self.engine);
        }
    }

    /// Returns the reason why this node stamps no writes and collects no tombstones, if its clock
    /// is far from those of most of its peers.
    pub(crate) fn clock_problem(&self) -> Option<String> {
        self.clock_guard.problem(|| self.view().participants.len())
    }

    /// Returns the number of replicas of a bucket's keys. 255: as many as the layout has.
    pub(crate) fn n_of(&self, bucket: &str) -> u8 {
        self.buckets.load().get(bucket).n
    }

    /// Returns the values of n that buckets have, each once, in ascending order. 255: as many
    /// replicas as the layout has.
    pub(crate) fn sizes(&self) -> Vec<u8> {
        let mut sizes: Vec<u8> = self.buckets.load().iter().map(|(_, bucket)| bucket.n).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// Returns the number of other replicas with which a recovering replica must have merged. The
    /// number is for the buckets with this n, in a layout whose N is `replicas`.
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

    /// Returns the smallest W of all buckets with this n, in a layout whose N is `replicas`.
    pub(crate) fn smallest_w(&self, n: u8, replicas: u8) -> u8 {
        let buckets = self.buckets.load();
        let of_n = buckets.iter().filter(|(_, bucket)| bucket.n == n);
        of_n.map(|(_, bucket)| bucket.definition.w.of(n.min(replicas))).min().unwrap_or(1)
    }

    /// Returns the rule by which replicas merge objects of a bucket. The bucket's conflict resolver
    /// names it.
    pub(crate) fn merge_rule(&self, bucket: &str) -> MergeRule {
        if planted(Bug::ResolverInMerges) {
            return MergeRule::KeepNewest;
        }
        let buckets = self.buckets.load();
        let name = &buckets.get(bucket).definition.resolver;
        self.resolvers.get(name).map_or(MergeRule::KeepAll, |resolver| resolver.merge_rule())
    }

    /// Returns the conflict resolver with this name. A resolver decides which versions a client is
    /// shown.
    ///
    /// # Errors
    /// `InvalidRequest` if this node was built without that resolver.
    pub(crate) fn resolver(&self, name: &str) -> Result<&Arc<dyn ConflictResolver>, RequestError> {
        self.resolvers.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.resolvers.keys().map(String::as_str).collect();
            let (node, known) = (&self.identity.name, known.join(", "));
            RequestError::invalid(format!(
                "resolver {name:?}: node {node} does not have it; use one of {known}"
            ))
        })
    }

    pub(crate) fn emit(&self, request: Option<RequestId>, kind: EventKind) {
        self.events.emit(Event { at_ms: self.environment.wall_ms(), node: self.node(), request, kind });
    }
}
