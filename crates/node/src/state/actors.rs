//! The actors under which this node mints writes.
//!
//! An actor is a random number that this process drew for one partition. The node draws a new actor
//! when it may have forgotten a write of the old one. So no dot ever names two values, and no
//! version vector covers a forgotten write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quorate_core::clock::{HybridClock, Stamp};
use quorate_core::environment::Environment;
use quorate_core::planted::{Bug, planted};
use quorate_core::{Actor, Dot, NodeId, PartitionId};

/// The role in which a write is minted. Each role has an actor of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MintRole {
    /// As a replica of this partition.
    Replica(PartitionId),
    /// As a fallback, while no replica can be reached.
    Fallback,
}

/// This node's actors, and the clock that stamps their writes.
pub(crate) struct Actors {
    environment: Arc<dyn Environment>,
    this: NodeId,
    max_skew_ms: u64,
    clock: AtomicU64,
    /// One actor per partition. Zero: none was drawn yet in this run of the process.
    of_partitions: Vec<AtomicU64>,
    /// The actor for writes to partitions that other nodes hold. Zero: none was drawn yet.
    of_fallback: AtomicU64,
}

impl Actors {
    pub(crate) fn new(
        environment: Arc<dyn Environment>,
        this: NodeId,
        partitions: u32,
        max_skew_ms: u64,
    ) -> Actors {
        Actors {
            environment,
            this,
            max_skew_ms,
            clock: AtomicU64::new(0),
            of_partitions: (0..partitions).map(|_| AtomicU64::new(0)).collect(),
            of_fallback: AtomicU64::new(0),
        }
    }

    /// Mints the dot of a new write. Its stamp is later than the node's hybrid clock, and later
    /// than `newest`. Call it inside the engine's update of the key, so that stamps rise in the
    /// order of the writes.
    pub(crate) fn mint(&self, role: MintRole, newest: Stamp) -> Dot {
        let wall_ms = self.environment.wall_ms();
        let mut last = self.clock.load(Ordering::Relaxed);
        let stamp = loop {
            let clock = HybridClock { last: Stamp(last) };
            let (stamp, next) = clock.mint(newest, wall_ms, self.max_skew_ms);
            match self.clock.compare_exchange_weak(last, next.last.0, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break stamp,
                Err(now) => last = now,
            }
        };
        Dot { actor: self.actor(role), stamp }
    }

    fn actor(&self, role: MintRole) -> Actor {
        if planted(Bug::ActorReusedAfterStart) {
            return Actor(self.this.0);
        }
        let slot = match role {
            MintRole::Replica(partition) => &self.of_partitions[partition.0 as usize],
            MintRole::Fallback => &self.of_fallback,
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

    /// Draws a new actor for the partition, because a write of the old actor may be lost: its
    /// commit failed, or a record is damaged. The old actor must never mint again. The caller must
    /// see to it that the event `ActorRenewed` is emitted, but not inside the engine's update.
    pub(crate) fn renew(&self, partition: PartitionId) {
        self.of_partitions[partition.0 as usize].store(self.environment.random().max(1), Ordering::Release);
    }

    /// Drops the partition's actor, because this node drops records of the partition or begins to
    /// hold it. The next write that it coordinates there draws a new actor.
    pub(crate) fn forget(&self, partition: PartitionId) {
        self.of_partitions[partition.0 as usize].store(0, Ordering::Release);
    }

    /// Draws a new fallback actor, because a hint is deleted or could not be committed: the writes
    /// that this node coordinated as a fallback are forgotten with it.
    pub(crate) fn renew_fallback(&self) {
        if self.of_fallback.load(Ordering::Acquire) != 0 {
            self.of_fallback.store(self.environment.random().max(1), Ordering::Release);
        }
    }
}
