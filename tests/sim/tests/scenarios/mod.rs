//! Scenarios S1 to S30 of `docs/reliability.md`: faults that real systems had, each with the exact
//! values that must result.
//!
//! Key k has the replicas A, B and C. D and E are its fallbacks. F is a node that can join. Each
//! scenario runs with several seeds, which differ in latencies and in the order of events.
//!
//! One file holds one theme. The helpers here are shared by all of them.

mod clocks;
mod damage;
mod hints;
mod layout_change;
mod lost_memory;
mod power_loss;
mod reads;
mod siblings;
mod tombstones;

use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::Bytes;
use quorate_core::request::{ClusterRequest, PutReply};
use quorate_core::{BucketDefinition, Key, Payload, RequestError};
use quorate_sim::world::{Options, ReadValues, Sim, WriteMode, WriteOptions, run};

/// Seeds that each scenario runs with.
const SEEDS: u64 = 10;

/// The number of node F in a cluster [`with_spare`].
const F: usize = 5;

/// Phases of a layout change, in order, as a node's status names them.
const PHASES: [&str; 7] = ["unaware", "known", "acked", "synced", "reading", "released", "cleared"];

/// A cluster, a key, and the preference list of the key: replicas A, B, C, then fallbacks D, E.
struct Scenario {
    sim: Rc<Sim>,
    k: Key,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
}

/// Runs a scenario with several seeds. The oracle must find no violation.
fn run_scenario(bucket: &str, options: Options, steps: impl AsyncFn(&Scenario)) {
    for seed in 0..SEEDS {
        let outcome = run(seed, options.clone(), async |sim| {
            let k = key(bucket, "k");
            let [a, b, c, d, e] = sim.preference_list(&k)[..5] else { panic!("five nodes") };
            let scenario = Scenario { sim: sim.clone(), k, a, b, c, d, e };
            steps(&scenario).await;
            sim.check_end(std::slice::from_ref(&scenario.k));
        });
        assert_eq!(outcome.violations, [], "seed {seed}:\n{}", outcome.log.join("\n"));
    }
}

fn key(bucket: &str, name: &str) -> Key {
    Key::new(bucket.as_bytes(), name.as_bytes()).expect("a valid key")
}

fn set(values: &[&str]) -> BTreeSet<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn value(text: &str) -> Payload {
    Payload::Value(Bytes::copy_from_slice(text.as_bytes()))
}

/// Options in which a write needs acks of W replicas: the ack of a fallback does not count.
fn strict_quorum() -> Options {
    Options {
        bucket: BucketDefinition { sloppy: false, ..BucketDefinition::default() },
        ..Options::default()
    }
}

/// Options in which nodes collect tombstones, with anti-entropy.
fn with_tombstone_gc() -> Options {
    Options { tombstone_gc: true, anti_entropy: true, ..Options::default() }
}

/// Adds node F to the cluster. F is no member at first.
fn with_spare(options: Options) -> Options {
    Options { spares: 1, ..options }
}

/// Requests.
impl Scenario {
    /// Writes `k`, and returns the context of the reply.
    async fn put(&self, via: usize, value: &str, mode: WriteMode) -> Bytes {
        self.sim.put_when_ready(via, &self.k, value, mode).await.context
    }

    /// Sends one attempt to write `k`, as client 0 with the default options.
    async fn attempt_put(
        &self,
        via: usize,
        text: &str,
        mode: &WriteMode,
    ) -> Option<Result<PutReply, RequestError>> {
        let request = self.sim.new_request();
        self.sim.attempt(via, &self.k, value(text), mode, request, WriteOptions::default()).await
    }

    async fn read(&self, via: usize) -> ReadValues {
        self.sim.read_values(via, &self.k).await
    }

    /// Reads `k`, and deletes the versions that the read showed.
    async fn delete(&self, via: usize) {
        let context = self.read(via).await.context;
        self.sim.delete(via, &self.k, WriteMode::Exactly(context)).await;
    }
}

/// Faults and time.
impl Scenario {
    async fn wipe_and_start(&self, node: usize) {
        self.sim.kill(node);
        self.sim.wipe(node);
        self.sim.start(node);
    }

    /// Waits for long enough that all nodes detect which peers they cannot reach.
    async fn detect_failures(&self) {
        self.sim.sleep(3_000).await;
    }

    /// Returns the grace period of tombstones.
    fn grace_ms(&self) -> u64 {
        self.sim.options.settings().tombstone_gc.grace_ms
    }
}

/// Layout changes.
impl Scenario {
    /// Replaces a member by F, which gets exactly the partitions of that member.
    async fn replace_by_f(&self, via: usize, leaving: usize) {
        let join = self.sim.join_change(F);
        // A node that has just started may not be connected yet. The change then fails.
        for _ in 0..20 {
            if self.sim.change(via, vec![self.sim.leave_change(leaving), join.clone()]).await {
                return;
            }
            self.sim.sleep(200).await;
        }
        panic!("the change is not committed: {:?}", self.sim.cluster(via, ClusterRequest::Show).await);
    }

    /// Waits until these nodes have reached this phase of the layout change, as node `via` knows.
    async fn until_phase(&self, via: usize, phase: &str, nodes: &[usize]) {
        let position = |name: &str| PHASES.iter().position(|phase| *phase == name);
        for _ in 0..2_000 {
            let change = self.sim.status(via).await.and_then(|status| status.change);
            let reached = change.is_some_and(|change| {
                nodes.iter().all(|&node| {
                    let known = change.phases.get(&self.sim.name(node));
                    known.is_some_and(|known| position(known) >= position(phase))
                })
            });
            if reached {
                return;
            }
            self.sim.sleep(5).await;
        }
        panic!("n{via} does not see {nodes:?} be {phase}: {:?}", self.sim.status(via).await);
    }
}

/// Results.
impl Scenario {
    /// Checks that A, B and C hold exactly these values after the cluster has converged.
    async fn converges_to(&self, values: &[&str]) {
        self.sim.converge().await;
        for replica in [self.a, self.b, self.c] {
            assert_eq!(self.sim.values(replica, &self.k), set(values), "on n{replica}");
        }
    }

    /// Checks that `k` has these replicas after the cluster has converged, and that they hold
    /// exactly these values.
    async fn converges_on(&self, replicas: &[usize], values: &[&str]) {
        self.sim.converge().await;
        let list = self.sim.preference_list(&self.k);
        let found: BTreeSet<usize> = list[..replicas.len()].iter().copied().collect();
        assert_eq!(found, replicas.iter().copied().collect(), "the replicas in the end");
        for &replica in replicas {
            assert_eq!(self.sim.values(replica, &self.k), set(values), "on n{replica}");
        }
    }
}
