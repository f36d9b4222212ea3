//! Random histories of replicas, writers, retries, lost disks and late messages, compared with a
//! reference model that keeps explicit sets of events. At every step the version vectors must
//! contain exactly the events of the sets.

use std::collections::{BTreeMap, BTreeSet};

use quorate_core::clock::HybridClock;
use quorate_core::object::RequestId;
use quorate_core::object::{MergeRule, Write, WriteLimits, WriteMode, WriteRefusal};
use quorate_core::{Actor, CausalContext, Dot, Object, Payload, Stamp, Version};

const HISTORIES: u64 = 12_000;
const STEPS: usize = 60;
const REPLICAS: usize = 3;
const CLIENTS: usize = 4;

/// The random number generator splitmix64: small, seeded, and the same on all machines.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Reference model of a replica: keeps every event instead of a version vector.
#[derive(Clone, Default, PartialEq, Debug)]
struct Events {
    seen: BTreeSet<Dot>,
    replaced: BTreeSet<Dot>,
}

impl Events {
    fn live(&self) -> BTreeSet<Dot> {
        self.seen.difference(&self.replaced).copied().collect()
    }

    fn merge(&mut self, other: &Events) {
        self.seen.extend(&other.seen);
        self.replaced.extend(&other.replaced);
    }
}

#[derive(Clone)]
struct Replica {
    object: Object,
    events: Events,
    actor: Actor,
    clock: HybridClock,
    skew_ms: u64,
}

/// A context, with the set of events that it must contain.
#[derive(Clone, Default)]
struct Seen {
    context: CausalContext,
    events: BTreeSet<Dot>,
}

struct World {
    random: Random,
    replicas: Vec<Replica>,
    clients: Vec<Seen>,
    /// Messages under way: the receiver, and the object as it was when it was sent.
    late: Vec<(usize, Object, Events)>,
    minted: BTreeMap<Dot, RequestId>,
    lost_writes: Vec<(Write, BTreeSet<Dot>)>,
    now_ms: u64,
}

const LIMITS: WriteLimits = WriteLimits { max_siblings: 1_000, remember_requests_ms: 1_000_000 };

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed);
        let replicas = (0..REPLICAS)
            .map(|_| Replica {
                object: Object::default(),
                events: Events::default(),
                actor: Actor(random.next()),
                clock: HybridClock::default(),
                skew_ms: random.next() % 1_000,
            })
            .collect();
        let clients = vec![Seen::default(); CLIENTS];
        World {
            random,
            replicas,
            clients,
            late: Vec::new(),
            minted: BTreeMap::new(),
            lost_writes: Vec::new(),
            now_ms: 1,
        }
    }

    fn step(&mut self) {
        self.now_ms += self.random.next() % 3;
        let at = self.random.below(REPLICAS);
        let client = self.random.below(CLIENTS);
        match self.random.below(14) {
            0..=4 => self.write(at, client),
            5 | 6 => self.read(at, client),
            7 | 8 => self.send(at),
            9 | 10 => self.deliver(),
            11 => self.retry(at, client),
            12 => self.restart(at, false),
            _ => self.restart(at, true),
        }
        for replica in &self.replicas {
            let live: BTreeSet<Dot> = replica.object.live().iter().map(|version| version.dot).collect();
            assert_eq!(live, replica.events.live(), "a version is live if and only if nothing replaced it");
        }
    }

    fn write(&mut self, at: usize, client: usize) {
        let seen = self.clients[client].clone();
        let payload = match self.random.below(5) {
            0 => Payload::Tombstone,
            _ => Payload::Value(self.random.next().to_le_bytes().to_vec().into()),
        };
        let request = RequestId(self.random.next());
        let (mode, own) = match self.random.below(6) {
            0 => (WriteMode::Exactly(CausalContext::EMPTY), BTreeSet::new()),
            1 | 2 => (WriteMode::Overwrite { seen: seen.context }, seen.events),
            _ => (WriteMode::Exactly(seen.context), seen.events),
        };
        let write = Write { request, payload, mode };
        let answered = self.random.below(4) > 0;
        if let Some(learnt) = self.apply(at, &write, &own)
            && answered
        {
            self.clients[client] = learnt;
        } else if !answered {
            self.lost_writes.push((write, own));
        }
    }

    /// Retries a write whose answer was lost: sends it with the same request id to any replica.
    fn retry(&mut self, at: usize, client: usize) {
        if self.lost_writes.is_empty() {
            return;
        }
        let which = self.random.below(self.lost_writes.len());
        let (write, own) = self.lost_writes[which].clone();
        let before = self.replicas[at].object.live().to_vec();
        let known = self.replicas[at].object.knows(write.request);
        if let Some(learnt) = self.apply(at, &write, &own) {
            self.clients[client] = learnt;
        }
        if known {
            assert_eq!(self.replicas[at].object.live(), before, "a retry that is recognised changes nothing");
        }
    }

    fn apply(&mut self, at: usize, write: &Write, own: &BTreeSet<Dot>) -> Option<Seen> {
        let replica = &mut self.replicas[at];
        let now_ms = self.now_ms + replica.skew_ms;
        let (actor, clock) = (replica.actor, &mut replica.clock);
        let mut minted = None;
        let mint = |newest: Stamp| {
            let (stamp, next) = clock.mint(newest, now_ms, 60_000);
            *clock = next;
            minted = Some(Dot { actor, stamp });
            Dot { actor, stamp }
        };
        let written = match replica.object.write(write, MergeRule::KeepAll, LIMITS, now_ms, mint) {
            Ok(written) => written,
            Err(_) => return None,
        };
        let events = match minted {
            None => {
                assert!(!written.fresh);
                let mut events = own.clone();
                let twins = replica.object.live().iter().filter(|version| version.request == write.request);
                events.extend(twins.map(|version| version.dot));
                events
            }
            Some(dot) => {
                assert!(written.fresh);
                assert_eq!(self.minted.insert(dot, write.request), None, "no dot ever names two values");
                assert!(
                    own.iter().all(|seen| seen.stamp < dot.stamp),
                    "a stamp is beyond all that its write has seen"
                );
                let mut replaced = own.clone();
                if matches!(write.mode, WriteMode::Overwrite { .. }) {
                    replaced.extend(&replica.events.seen);
                }
                replica.events.seen.extend(&replaced);
                replica.events.replaced.extend(&replaced);
                replica.events.seen.insert(dot);
                let beside = replica.object.live().iter().filter(|version| version.dot != dot);
                assert_eq!(
                    written.conflict,
                    beside.into_iter().any(|version| version.payload != Payload::Tombstone)
                );
                if replica.events.live().len() > 1 {
                    replaced.insert(dot);
                    replaced
                } else {
                    replica.events.seen.clone()
                }
            }
        };
        self.check_context(&written.context, &events);
        Some(Seen { context: written.context, events })
    }

    fn read(&mut self, at: usize, client: usize) {
        let replica = &self.replicas[at];
        let seen = Seen { context: replica.object.context(), events: replica.events.seen.clone() };
        self.check_context(&seen.context, &seen.events);
        let shown = replica.object.shown();
        assert!(shown.is_sorted_by_key(|version| version.dot.stamp));
        self.clients[client] = seen;
    }

    /// Checks that a context contains exactly the events that its holder has seen. With more
    /// events, writes would vanish. With fewer, writes would not replace versions that their writer
    /// has seen.
    fn check_context(&self, context: &CausalContext, events: &BTreeSet<Dot>) {
        for dot in self.minted.keys() {
            assert_eq!(context.contains(*dot), events.contains(dot), "{dot:?} in {context:?}");
        }
    }

    fn send(&mut self, from: usize) {
        let to = self.random.below(REPLICAS);
        let Replica { object, events, .. } = self.replicas[from].clone();
        self.late.push((to, object, events));
    }

    fn deliver(&mut self) {
        if self.late.is_empty() {
            return;
        }
        let which = self.random.below(self.late.len());
        // Sometimes a message arrives twice.
        let (to, object, events) =
            if self.random.below(4) == 0 { self.late[which].clone() } else { self.late.swap_remove(which) };
        let replica = &mut self.replicas[to];
        replica.object.merge(&object, MergeRule::KeepAll);
        replica.events.merge(&events);
    }

    /// Restarts a replica, with its disk or without, always under a new actor.
    fn restart(&mut self, at: usize, wiped: bool) {
        let replica = &mut self.replicas[at];
        replica.actor = Actor(self.random.next());
        replica.clock = HybridClock::default();
        if wiped && self.random.below(3) == 0 {
            replica.object = Object::default();
            replica.events = Events::default();
        }
    }

    /// Sends every replica's object to every replica. All must then hold the same object, which
    /// matches the reference.
    fn settle(&mut self) {
        let all: Vec<(Object, Events)> =
            self.replicas.iter().map(|replica| (replica.object.clone(), replica.events.clone())).collect();
        for replica in &mut self.replicas {
            for (object, events) in &all {
                replica.object.merge(object, MergeRule::KeepAll);
                replica.events.merge(events);
            }
        }
        let digest = self.replicas[0].object.digest();
        for replica in &self.replicas {
            assert_eq!(replica.object.digest(), digest, "replicas that merged each other's objects agree");
            assert_eq!(replica.events, self.replicas[0].events);
            let live: BTreeSet<Dot> = replica.object.live().iter().map(|version| version.dot).collect();
            assert_eq!(live, replica.events.live());
        }
    }
}

/// Replicas, retries, lost disks, late messages and merges interleave at random. No history loses a
/// value that nothing replaced, or keeps one that was replaced. Every context contains exactly the
/// events that its holder saw.
#[test]
fn version_vectors_contain_exactly_the_events_of_explicit_sets() {
    for seed in 0..HISTORIES {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.settle();
    }
}

/// The merge is commutative, associative and idempotent under both rules, for objects from random
/// histories.
#[test]
fn merge_is_commutative_associative_and_idempotent() {
    for seed in 0..2_000 {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        let [a, b, c] = [0, 1, 2].map(|at: usize| world.replicas[at].object.clone());
        for rule in [MergeRule::KeepAll, MergeRule::KeepNewest] {
            let join = |x: &Object, y: &Object| {
                let mut joined = x.clone();
                let learnt = joined.merge(y, rule);
                // A replica merges its stored object into the received one. If that returns false,
                // it stores the received bytes as they are.
                assert!(learnt || joined == *x);
                assert!(learnt == (joined != *x) || rule == MergeRule::KeepNewest);
                joined
            };
            // The objects are merged under the rule first, so that they keep it.
            let [a, b, c] = [&a, &b, &c].map(|object| join(&Object::default(), object));
            // The state is the replaced and the live versions. The remembered request ids are
            // outside of it: under `KeepNewest` they depend on the order of merges.
            let state =
                |object: &Object| (object.replaced().clone(), object.live().to_vec(), object.digest());
            assert_eq!(state(&join(&a, &b)), state(&join(&b, &a)));
            assert_eq!(state(&join(&join(&a, &b), &c)), state(&join(&a, &join(&b, &c))));
            assert_eq!(join(&a, &a), a);
            assert_eq!(state(&join(&join(&a, &b), &b)), state(&join(&a, &b)));
            if rule == MergeRule::KeepAll {
                assert_eq!(join(&a, &b), join(&b, &a));
                assert_eq!(join(&join(&a, &b), &c), join(&a, &join(&b, &c)));
            }
        }
    }
}

/// Many writers that read before they write leave at most as many siblings as there are writers,
/// however many writes they make.
#[test]
fn siblings_stay_bounded_under_read_then_write() {
    const WRITERS: usize = 8;
    let mut random = Random(7);
    let mut object = Object::default();
    let mut clock = HybridClock::default();
    let mut contexts = vec![CausalContext::EMPTY; WRITERS];
    for round in 0..5_000u64 {
        let writer = random.below(WRITERS);
        if random.below(2) == 0 {
            contexts[writer] = object.context();
            continue;
        }
        let write = Write {
            request: RequestId(round),
            payload: Payload::Value(round.to_le_bytes().to_vec().into()),
            mode: WriteMode::Exactly(contexts[writer].clone()),
        };
        let mint = |newest| {
            let (stamp, next) = clock.mint(newest, round, 60_000);
            clock = next;
            Dot { actor: Actor(1), stamp }
        };
        match object.write(&write, MergeRule::KeepAll, LIMITS, round, mint) {
            Ok(written) => contexts[writer] = written.context,
            // The extra dots of a writer that never reads accumulate. The refusal makes it read.
            Err(_) => contexts[writer] = object.context(),
        }
        assert!(object.live().len() <= WRITERS, "{} siblings", object.live().len());
    }
}

/// A writer that uses the context of its own last put replaces only that put, and keeps the
/// siblings that it has not seen. Once it has too many extra dots, it has to read.
#[test]
fn unseen_siblings_survive_a_writer_that_never_reads() {
    let mut object = Object::default();
    let mut clock = HybridClock::default();
    let mut write = |object: &mut Object, number: u64, context: CausalContext| {
        let write = Write {
            request: RequestId(number),
            payload: Payload::Value(number.to_le_bytes().to_vec().into()),
            mode: WriteMode::Exactly(context),
        };
        object.write(&write, MergeRule::KeepAll, LIMITS, number, |newest| {
            let (stamp, next) = clock.mint(newest, number, 60_000);
            clock = next;
            Dot { actor: Actor(1), stamp }
        })
    };
    write(&mut object, 0, CausalContext::EMPTY).unwrap();
    let mut context = CausalContext::EMPTY;
    let mut accepted = 0;
    for number in 1..200 {
        match write(&mut object, number, context.clone()) {
            Ok(written) => {
                accepted += 1;
                context = written.context;
                assert_eq!(object.live().len(), 2);
            }
            Err(refusal) => {
                assert!(matches!(refusal, WriteRefusal::TooManyDots { .. }));
                break;
            }
        }
    }
    assert!(accepted >= 50, "{accepted}");
    let read = object.context();
    write(&mut object, 999, read).unwrap();
    assert_eq!(object.live().len(), 1);
}

/// In a last-write-wins bucket all replicas end with the same single version. A write never loses
/// to a version that it has seen, whatever the clocks show.
#[test]
fn last_write_wins_converges_and_respects_causality() {
    let rule = MergeRule::KeepNewest;
    for seed in 0..2_000 {
        let mut random = Random(seed);
        let mut replicas: Vec<(Object, Actor, HybridClock, u64)> = (0..REPLICAS)
            .map(|_| {
                (Object::default(), Actor(random.next()), HybridClock::default(), random.next() % 100_000)
            })
            .collect();
        for number in 0..30 {
            let at = random.below(REPLICAS);
            let (object, actor, clock, skew) = &mut replicas[at];
            let newest_before = object.live().first().map(|version| version.dot);
            let write = Write {
                request: RequestId(number),
                payload: Payload::Value(number.to_le_bytes().to_vec().into()),
                mode: WriteMode::Overwrite { seen: CausalContext::EMPTY },
            };
            let mint = |newest| {
                let (stamp, next) = clock.mint(newest, number + *skew, 60_000);
                *clock = next;
                Dot { actor: *actor, stamp }
            };
            object.write(&write, rule, LIMITS, number, mint).unwrap();
            let [Version { dot, request, .. }] = object.live() else { panic!("one version") };
            assert_eq!(*request, RequestId(number), "a write that saw another never loses to it");
            assert!(newest_before.is_none_or(|before| before.stamp < dot.stamp));
            if random.below(2) == 0 {
                let (from, to) = (random.below(REPLICAS), random.below(REPLICAS));
                let sent = replicas[from].0.clone();
                replicas[to].0.merge(&sent, rule);
            }
        }
        let all: Vec<Object> = replicas.iter().map(|replica| replica.0.clone()).collect();
        for (object, ..) in &mut replicas {
            all.iter().for_each(|other| {
                object.merge(other, rule);
            });
            assert_eq!(object.live().len(), 1);
        }
        assert!(replicas.windows(2).all(|w| w[0].0.digest() == w[1].0.digest()));
    }
}
