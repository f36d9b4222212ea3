//! What all workers of a node share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quorate_core::admission::Identity;
use quorate_core::clock::{HybridClock, Stamp};
use quorate_core::environment::Environment;
use quorate_core::event::{Event, EventKind, EventSink};
use quorate_core::object::{MergeRule, RequestId};
use quorate_core::resolver::ConflictResolver;
use quorate_core::storage::StorageEngine;
use quorate_core::{Actor, Buckets, Dot, Layout, NodeId, PartitionId};
use serde::Deserialize;

/// `[coordinator]`: how requests are served.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CoordinatorConfig {
    /// Deadline of a request that names none, milliseconds. Default 1000.
    pub request_timeout_ms: u64,
    /// Longest deadline a request may have, milliseconds. Default 30,000.
    pub max_request_timeout_ms: u64,
    /// Most requests under way on one worker; beyond it, `Overloaded`. Default 16,384.
    pub max_in_flight: usize,
    /// How far a clock may be ahead of this node's before it is not followed, milliseconds. Default 60,000.
    pub max_clock_skew_ms: u64,
}

impl Default for CoordinatorConfig {
    fn default() -> Self {
        CoordinatorConfig {
            request_timeout_ms: 1_000,
            max_request_timeout_ms: 30_000,
            max_in_flight: 16_384,
            max_clock_skew_ms: 60_000,
        }
    }
}

/// A node's state that all of its workers share: who it is, its layout, its engine, its clock and its actors.
pub struct Shared {
    /// Who this node is.
    pub identity: Identity,
    /// The layout it acts on.
    pub layout: Layout,
    /// The rules of all buckets.
    pub buckets: Buckets,
    /// The buckets' conflict resolvers by name.
    pub resolvers: BTreeMap<String, Arc<dyn ConflictResolver>>,
    /// Where its records are.
    pub engine: Arc<dyn StorageEngine>,
    /// For people: the engine's name and durability.
    pub storage_name: String,
    /// Wall clock and randomness.
    pub environment: Arc<dyn Environment>,
    /// Where events go.
    pub events: Arc<dyn EventSink>,
    /// How requests are served.
    pub config: CoordinatorConfig,
    /// When this node acks a write: once it is durable, or once it is applied.
    pub(crate) ack_when_durable: bool,
    started_ms: u64,
    clock: AtomicU64,
    /// One a partition. Zero: none drawn yet in this run of the process.
    actors: Vec<AtomicU64>,
}

/// What a node is made of.
pub struct Parts {
    /// Who this node is.
    pub identity: Identity,
    /// The layout it acts on.
    pub layout: Layout,
    /// The rules of all buckets.
    pub buckets: Buckets,
    /// The buckets' conflict resolvers by name.
    pub resolvers: BTreeMap<String, Arc<dyn ConflictResolver>>,
    /// Where its records are.
    pub engine: Arc<dyn StorageEngine>,
    /// For people: the engine's name and durability.
    pub storage_name: String,
    /// Wall clock and randomness.
    pub environment: Arc<dyn Environment>,
    /// Where events go.
    pub events: Arc<dyn EventSink>,
    /// How requests are served.
    pub config: CoordinatorConfig,
}

impl Shared {
    /// A node that begins now: with new actors, whatever its engine holds.
    pub fn new(parts: Parts) -> Arc<Shared> {
        let Parts { identity, layout, buckets, resolvers, engine, storage_name, environment, events, config } =
            parts;
        let actors = (0..layout.partitions()).map(|_| AtomicU64::new(0)).collect();
        let started_ms = environment.monotonic_ms();
        let clock = AtomicU64::new(0);
        let ack_when_durable = engine.capability().ack_when_durable;
        Arc::new(Shared {
            ack_when_durable,
            identity,
            layout,
            buckets,
            resolvers,
            engine,
            storage_name,
            environment,
            events,
            config,
            started_ms,
            clock,
            actors,
        })
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
    pub(crate) fn mint(&self, partition: PartitionId, newest: Stamp) -> Dot {
        let wall_ms = self.environment.wall_ms();
        let mut last = self.clock.load(Ordering::Relaxed);
        let stamp = loop {
            let clock = HybridClock { last: Stamp(last) };
            let (stamp, next) = clock.mint(newest, wall_ms, self.config.max_clock_skew_ms);
            match self.clock.compare_exchange_weak(last, next.last.0, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break stamp,
                Err(now) => last = now,
            }
        };
        Dot { actor: self.actor(partition), stamp }
    }

    fn actor(&self, partition: PartitionId) -> Actor {
        let slot = &self.actors[partition.0 as usize];
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

    /// How replicas merge objects of a bucket.
    pub(crate) fn merge_rule(&self, bucket: &str) -> MergeRule {
        let name = &self.buckets.get(bucket).definition.resolver;
        self.resolvers.get(name).map_or(MergeRule::KeepAll, |resolver| resolver.merge_rule())
    }

    pub(crate) fn emit(&self, request: Option<RequestId>, kind: EventKind) {
        self.events.emit(Event { at_ms: self.environment.wall_ms(), node: self.node(), request, kind });
    }
}
