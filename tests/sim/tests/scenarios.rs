//! Faults that real systems had, retold: S1 to S30 of docs/reliability.md, each with the exact sets that must come out. Key k
//! has the replicas A, B, C; D and E are fallbacks; F is a node that waits to become a member. Each runs with several
//! seeds: other latencies, other interleavings.

use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::Bytes;
use quorate_core::change::Change;
use quorate_core::planted::Bug;
use quorate_core::request::{ClusterRequest, QuorumSize};
use quorate_core::{BucketDefinition, Key, Payload, RequestError};
use quorate_sim::disk::Durability;
use quorate_sim::sim::{How, LAST_WINS, Options, Over, REDEFINED, SIBLINGS, Sim, run};

const SEEDS: u64 = 10;

/// A scenario's cast.
struct Cast {
    sim: Rc<Sim>,
    k: Key,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
}

fn set(values: &[&str]) -> BTreeSet<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn value(text: &str) -> Payload {
    Payload::Value(Bytes::copy_from_slice(text.as_bytes()))
}

/// Runs a scenario with several seeds; afterwards every promise must have been kept.
fn play(bucket: &str, options: Options, scenario: impl AsyncFn(&Cast)) {
    for seed in 0..SEEDS {
        let outcome = run(seed, options.clone(), async |sim| {
            let k = Key::new(bucket.as_bytes(), b"k").unwrap();
            let place = sim.place(&k);
            let [a, b, c, d, e] = place[..5] else { panic!("five nodes") };
            let cast = Cast { sim: sim.clone(), k, a, b, c, d, e };
            scenario(&cast).await;
            sim.check_end(std::slice::from_ref(&cast.k));
        });
        assert_eq!(outcome.violations, [], "seed {seed}:\n{}", outcome.log.join("\n"));
    }
}

impl Cast {
    /// Settles, then every replica holds exactly this, and no dot named two values (the oracle watches).
    async fn ends(&self, values: &[&str]) {
        self.sim.settle().await;
        for replica in [self.a, self.b, self.c] {
            assert_eq!(self.sim.values(replica, &self.k), set(values), "on n{replica}");
        }
    }

    /// Long enough for everybody to notice who is gone.
    async fn notice(&self) {
        self.sim.sleep(3_000).await;
    }

    async fn put(&self, via: usize, value: &str, over: Over) -> Bytes {
        self.sim.put_soon(via, &self.k, value, over).await.context
    }

    async fn see(&self, via: usize) -> (BTreeSet<String>, Bytes) {
        self.sim.see(via, &self.k).await
    }

    /// `delete ⟨read⟩`.
    async fn delete(&self, via: usize) {
        let (_, context) = self.see(via).await;
        self.sim.delete(via, &self.k, Over::Exactly(context)).await;
    }

    async fn wipe_and_start(&self, node: usize) {
        self.sim.kill(node);
        self.sim.wipe(node);
        self.sim.start(node);
    }
}

fn strict() -> Options {
    Options {
        bucket: BucketDefinition { sloppy: false, ..BucketDefinition::default() },
        ..Options::default()
    }
}

fn reaping() -> Options {
    Options { reaping: true, anti_entropy: true, ..Options::default() }
}

fn grace(sim: &Sim) -> u64 {
    sim.options.settings().reaping.grace_ms
}

// 1. Clocks and lost memory

#[test]
fn s1_lost_disk_starts_a_new_actor() {
    play(SIBLINGS, Options::default(), async |s| {
        s.put(s.a, "p", Over::Nothing).await;
        s.put(s.a, "q", Over::Nothing).await;
        s.wipe_and_start(s.a).await;
        s.put(s.a, "r", Over::Nothing).await;
        s.ends(&["p", "q", "r"]).await;
    });
}

/// The variant: no wipe, but A's record can't be read.
#[test]
fn s1_an_unreadable_record_is_not_an_absent_one() {
    play(SIBLINGS, Options::default(), async |s| {
        s.put(s.a, "p", Over::Nothing).await;
        s.put(s.a, "q", Over::Nothing).await;
        s.sim.sleep(100).await;
        s.sim.damage(s.a, &s.k);
        let heard = s.sim.put_as(0, s.a, &s.k, "r", Over::Nothing, How::default()).await;
        assert!(heard.is_none(), "A coordinates nothing on a record that it can't read");
        s.put(s.b, "r2", Over::Nothing).await;
        s.ends(&["p", "q", "r2"]).await;
    });
}

/// A wiped node that is started twice before it could ask the others is still one that forgot.
#[test]
fn s1_recovery_outlives_a_restart() {
    play(SIBLINGS, strict(), async |s| {
        s.sim.isolate(s.c);
        s.notice().await;
        s.put(s.a, "p", Over::Nothing).await;
        s.sim.kill(s.a);
        s.sim.wipe(s.a);
        s.sim.kill(s.b);
        s.sim.start(s.a);
        s.sim.sleep(500).await;
        s.sim.kill(s.a);
        s.sim.start(s.a);
        s.sim.heal();
        s.notice().await;
        assert!(s.sim.status(s.a).await.unwrap().recovering > 0, "B, which remembers, was not asked");
        for via in [s.a, s.c] {
            let read = s.sim.read(0, via, &s.k, QuorumSize::Default).await;
            assert!(
                !matches!(read, Some(Ok(_))),
                "a quorum with the one that forgot knows nothing: {read:?}"
            );
        }
        s.sim.start(s.b);
        s.ends(&["p"]).await;
    });
}

#[test]
fn s2_old_fallbacks_repair_a_wiped_coordinator() {
    play(SIBLINGS, Options::default(), async |s| {
        s.sim.stop(s.b).await;
        s.sim.stop(s.c).await;
        let a = s.put(s.a, "a", Over::Nothing).await;
        let b = s.put(s.a, "b", Over::Exactly(a)).await;
        s.sim.kill(s.d);
        s.sim.kill(s.e);
        s.sim.start(s.b);
        s.sim.start(s.c);
        s.sim.sleep(500).await;
        let c = s.put(s.a, "c", Over::Exactly(b)).await;
        s.put(s.a, "d", Over::Exactly(c)).await;
        s.sim.kill(s.b);
        s.sim.kill(s.c);
        s.wipe_and_start(s.a).await;
        s.sim.start(s.d);
        s.sim.start(s.e);
        s.sim.sleep(500).await;
        let (shown, context) = s.see(s.a).await;
        assert_eq!(shown, set(&["b"]), "only the hints are left");
        s.put(s.a, "e", Over::Exactly(context)).await;
        s.ends(&["d", "e"]).await;
    });
}

#[test]
fn s3_hint_reaches_a_replica_with_a_hole() {
    let options = Options { replicas: 2, ..Options::default() };
    for seed in 0..SEEDS {
        let outcome = run(seed, options.clone(), async |sim| {
            let k = Key::new(SIBLINGS.as_bytes(), b"k").unwrap();
            let [a, b, c, d, e] = sim.place(&k)[..5] else { panic!("five nodes") };
            sim.cut_off(&[b, e]);
            sim.sleep(3_000).await;
            let first = sim.put(a, &k, "a", Over::Nothing).await.context;
            sim.kill(c);
            let second = sim.put_soon(a, &k, "b", Over::Exactly(first)).await.context;
            sim.put_soon(a, &k, "c", Over::Exactly(second)).await;
            sim.kill(d);
            sim.put_soon(b, &k, "d", Over::Nothing).await;
            sim.kill(a);
            sim.wipe(a);
            sim.heal();
            sim.start(a);
            sim.start(c);
            sim.sleep(10_000).await;
            let (shown, context) = sim.see(a, &k).await;
            assert_eq!(shown, set(&["a", "d"]));
            sim.put(a, &k, "e", Over::Exactly(context)).await;
            sim.start(d);
            sim.settle().await;
            for replica in [a, b] {
                assert_eq!(sim.values(replica, &k), set(&["c", "e"]));
            }
            sim.check_end(&[k]);
        });
        assert_eq!(outcome.violations, [], "seed {seed}:\n{}", outcome.log.join("\n"));
    }
}

#[test]
fn s4_restored_image_reissues_no_dot() {
    for while_it_ran in [false, true] {
        play(SIBLINGS, Options::default(), async |s| {
            let a = s.put(s.a, "a", Over::Nothing).await;
            s.sim.sleep(100).await;
            let image = if while_it_ran {
                s.sim.disk(s.a).image()
            } else {
                s.sim.stop(s.a).await;
                let image = s.sim.disk(s.a).image();
                s.sim.start(s.a);
                image
            };
            let b = s.put(s.a, "b", Over::Exactly(a.clone())).await;
            s.put(s.a, "c", Over::Exactly(b)).await;
            s.sim.sleep(100).await;
            s.sim.kill(s.a);
            s.sim.restore(s.a, image);
            s.sim.isolate(s.a);
            s.sim.start(s.a);
            let one = How { w: QuorumSize::Count(1), ..How::default() };
            s.sim.put_soon_as(s.a, &s.k, "d", Over::Exactly(a), one).await;
            let read = s.sim.read(0, s.a, &s.k, QuorumSize::Count(1)).await.unwrap().unwrap();
            let shown: Vec<&[u8]> = read.siblings.iter().map(|sibling| &sibling.value[..]).collect();
            assert_eq!(shown, [b"d"]);
            s.sim.put_soon_as(s.a, &s.k, "e", Over::Exactly(read.context), one).await;
            s.ends(&["c", "e"]).await;
        });
    }
}

#[test]
fn s5_no_two_tenures_share_an_actor() {
    play(SIBLINGS, Options { partitions: 64, ..Options::default() }, async |s| {
        s.put(s.a, "a", Over::Nothing).await;
        s.put(s.b, "b", Over::Nothing).await;
        s.sim.cut_off(&[s.a, s.b, s.c]);
        s.notice().await;
        s.put(s.d, "c", Over::Nothing).await;
        s.put(s.e, "d", Over::Nothing).await;
        s.ends(&["a", "b", "c", "d"]).await;
        let object = s.sim.held(s.a, &s.k).unwrap();
        let actors: BTreeSet<_> = object.live().iter().map(|version| version.dot.actor).collect();
        assert_eq!(actors.len(), 4, "each write is by an actor of its own");
        for via in [s.a, s.b, s.c] {
            let read = s.sim.read(0, via, &s.k, QuorumSize::All).await.unwrap().unwrap();
            assert_eq!(read.receipt.repaired, [], "once settled, no read writes");
        }
    });
}

// 2. Siblings

#[test]
fn s6_interleaved_writers_keep_two_siblings() {
    play(SIBLINGS, Options::default(), async |s| {
        s.put(s.a, "x0", Over::Nothing).await;
        s.put(s.a, "y0", Over::Nothing).await;
        let (_, mut seen_by_y) = s.see(s.a).await;
        for round in 1..=50 {
            let (_, seen_by_x) = s.see(s.a).await;
            s.put(s.a, &format!("y{round}"), Over::Exactly(seen_by_y)).await;
            seen_by_y = s.see(s.a).await.1;
            s.put(s.a, &format!("x{round}"), Over::Exactly(seen_by_x)).await;
            assert!(s.see(s.a).await.0.len() <= 2, "round {round}");
        }
        s.ends(&["x50", "y50"]).await;
    });
}

/// The variant: X never reads, and goes on from what its puts answer; what Y wrote lies unseen beside.
#[test]
fn s6_a_writer_that_never_reads_keeps_the_other() {
    play(SIBLINGS, Options::default(), async |s| {
        let mut context = s.put(s.a, "x1", Over::Nothing).await;
        s.put(s.a, "a", Over::Nothing).await;
        for round in 2..=50 {
            context = s.put(s.a, &format!("x{round}"), Over::Exactly(context)).await;
        }
        s.ends(&["a", "x50"]).await;
    });
}

/// A put whose answer is lost, and which is retried elsewhere, is one write.
#[test]
fn s7_one_put_is_one_write() {
    for copies_late in [false, true] {
        play(SIBLINGS, Options::default(), async |s| {
            let mut both = 0;
            for round in 1..=10 {
                if round == 8 {
                    s.sim.net.release();
                }
                let via = if (5..8).contains(&round) && copies_late { s.b } else { s.a };
                let (shown, context) = s.see(via).await;
                both = both.max(shown.len());
                let text = format!("v{round}");
                let over = Over::Exactly(context);
                if round == 5 {
                    s.sim.hold_answers(s.a);
                    if copies_late {
                        s.sim.net.hold(s.a, s.b);
                        s.sim.net.hold(s.a, s.c);
                    }
                    let request = s.sim.new_request();
                    let (sim, k) = (&s.sim, &s.k);
                    let heard = sim.attempt(s.a, k, value(&text), &over, request, How::default()).await;
                    assert!(heard.is_none(), "the answer is held back");
                    let again = How { attempt: 1, ..How::default() };
                    let retried = sim.attempt(s.b, k, value(&text), &over, request, again).await;
                    retried.expect("an answer").expect("the retry succeeds");
                    if !copies_late {
                        s.sim.net.release();
                    }
                } else {
                    s.put(via, &text, over).await;
                }
            }
            if !copies_late {
                assert_eq!(both, 1, "a correct sequential client breeds no siblings");
            }
            s.sim.settle().await;
            let end = s.sim.values(s.a, &s.k);
            assert!(end == set(&["v10"]) || (copies_late && end == set(&["v5", "v10"])), "{end:?}");
        });
    }
}

#[test]
fn s8_late_retry_undoes_nothing() {
    for bucket in [SIBLINGS, LAST_WINS] {
        for missed in [false, true] {
            play(bucket, Options::default(), async |s| {
                s.put(s.a, "a", Over::Nothing).await;
                let (_, seen) = s.see(s.a).await;
                if missed {
                    s.sim.isolate(s.b);
                    s.notice().await;
                }
                s.sim.hold_answers(s.a);
                let (request, over) = (s.sim.new_request(), Over::Exactly(seen));
                let lost = s.sim.attempt(s.a, &s.k, value("b"), &over, request, How::default()).await;
                assert!(lost.is_none());
                s.sim.net.release();
                let (shown, context) = s.see(s.a).await;
                assert_eq!(shown, set(&["b"]));
                s.put(s.a, "c", Over::Exactly(context)).await;
                s.sim.net.heal();
                let again = How { attempt: 1, ..How::default() };
                let mut retried = None;
                while !matches!(retried, Some(Ok(_))) {
                    retried = s.sim.attempt(s.b, &s.k, value("b"), &over, request, again).await;
                }
                s.sim.settle().await;
                let end = s.sim.values(s.a, &s.k);
                let both = missed && bucket == SIBLINGS && end == set(&["b", "c"]);
                assert!(end == set(&["c"]) || both, "{end:?}");
            });
        }
    }
}

#[test]
fn s9_sibling_limit_does_not_stop_convergence() {
    let bucket =
        BucketDefinition { max_siblings: 100, w: QuorumSize::Count(1), ..BucketDefinition::default() };
    play(SIBLINGS, Options { bucket, ..Options::default() }, async |s| {
        // From D and E, too: they would pass on what A writes.
        s.sim.isolate(s.a);
        s.notice().await;
        for number in 0..80 {
            s.put(s.a, &format!("a{number}"), Over::Nothing).await;
            s.put(s.b, &format!("b{number}"), Over::Nothing).await;
        }
        s.sim.settle().await;
        for replica in [s.a, s.b, s.c] {
            assert_eq!(s.sim.values(replica, &s.k).len(), 160, "limits bind clients, not merges");
        }
        let request = s.sim.new_request();
        let refused =
            s.sim.attempt(s.a, &s.k, value("one more"), &Over::Nothing, request, How::default()).await;
        assert!(matches!(refused, Some(Err(RequestError::TooManySiblings { siblings: 160, limit: 100 }))));
        let (_, context) = s.see(s.a).await;
        s.put(s.a, "z", Over::Exactly(context)).await;
        s.ends(&["z"]).await;
    });
}

// 3. Hints and sloppy quorum

#[test]
fn s10_hint_survives_its_fallbacks_crash() {
    play(SIBLINGS, Options::default(), async |s| {
        s.sim.stop(s.b).await;
        s.sim.stop(s.c).await;
        s.put(s.a, "a", Over::Nothing).await;
        s.sim.sleep(100).await;
        let further = Key::new(SIBLINGS.as_bytes(), b"another").unwrap();
        let sim = s.sim.clone();
        let (a, _) = (s.a, s.b);
        let put = tokio::task::spawn_local(async move {
            sim.put_as(1, a, &further, "x", Over::Nothing, How::default()).await;
        });
        s.sim.sleep(3).await;
        s.sim.kill(s.d);
        s.sim.kill(s.e);
        put.await.unwrap();
        s.wipe_and_start(s.a).await;
        s.sim.start(s.b);
        s.sim.start(s.c);
        s.sim.sleep(1_000).await;
        s.sim.start(s.d);
        s.sim.start(s.e);
        // No client request: restarted fallbacks find their hints by themselves.
        s.sim.sleep(10_000).await;
        for replica in [s.b, s.c] {
            assert_eq!(s.sim.values(replica, &s.k), set(&["a"]));
        }
        s.ends(&["a"]).await;
    });
}

#[test]
fn s11_empty_fallback_is_not_absence() {
    play(SIBLINGS, Options::default(), async |s| {
        s.put(s.a, "a", Over::Nothing).await;
        s.sim.stop(s.c).await;
        for via in [s.d, s.e, s.a] {
            let read = s.sim.read(0, via, &s.k, QuorumSize::Count(1)).await.unwrap().unwrap();
            assert_eq!(read.siblings.len(), 1, "via n{via}");
        }
        s.sim.cut_off(&[s.a, s.b]);
        s.notice().await;
        for r in [QuorumSize::Count(1), QuorumSize::Default] {
            let read = s.sim.read(0, s.d, &s.k, r).await;
            assert!(!matches!(read, Some(Ok(_))), "never absent: {read:?}");
        }
        s.ends(&["a"]).await;
    });
}

// 4. Deletes and reaping

#[test]
fn s13_hint_older_than_a_delete() {
    play(SIBLINGS, reaping(), async |s| {
        s.sim.stop(s.c).await;
        s.put(s.a, "a", Over::Nothing).await;
        s.sim.sleep(500).await;
        s.sim.stop(s.d).await;
        s.sim.start(s.c);
        s.sim.sleep(1_000).await;
        s.delete(s.a).await;
        for _ in 0..10 {
            s.sim.sleep(grace(&s.sim)).await;
            assert_eq!(s.see(s.b).await.0, set(&[]));
        }
        for replica in [s.a, s.b, s.c] {
            assert!(s.sim.held(replica, &s.k).is_some_and(|held| held.is_tombstone()), "the tombstone stays");
        }
        let blocked = s.sim.status(s.a).await.unwrap().reaping.blocked_by.unwrap_or_default();
        assert!(blocked.contains(&format!("n{}", s.d)), "named: {blocked:?}");
        s.sim.start(s.d);
        for _ in 0..5 {
            s.sim.sleep(grace(&s.sim)).await;
            assert_eq!(s.see(s.c).await.0, set(&[]));
        }
        s.ends(&[]).await;
        assert_eq!(s.sim.held(s.a, &s.k), None, "at the end k is reaped");
    });
}

/// Also where the reaper does not wait for the dead (a planted bug): the new actor's write is not covered all the same.
#[test]
fn s14_tombstone_waits_in_a_hint() {
    for bug in [None, Some(Bug::ReapingIgnoresTheDead)] {
        play(SIBLINGS, Options { bug, ..reaping() }, async |s| {
            for value in ["o1", "o2", "p"] {
                s.put(s.a, value, Over::WhatIsThere(Bytes::new())).await;
            }
            s.sim.stop(s.a).await;
            s.delete(s.b).await;
            s.sim.sleep(500).await;
            s.sim.kill(s.d);
            s.sim.skew(s.a, -900);
            s.sim.start(s.a);
            s.sim.sleep(1_000).await;
            assert_eq!(s.see(s.a).await.0, set(&[]));
            s.sim.sleep(3 * grace(&s.sim)).await;
            s.put(s.a, "j", Over::WhatIsThere(Bytes::new())).await;
            s.sim.start(s.d);
            s.sim.sleep(5_000).await;
            assert_eq!(s.see(s.b).await.0, set(&["j"]));
            s.ends(&["j"]).await;
        });
    }
}

#[test]
fn s15_tombstone_lingers_on_one_replica() {
    play(SIBLINGS, reaping(), async |s| {
        s.put(s.a, "p", Over::Nothing).await;
        s.delete(s.a).await;
        s.sim.sleep(200).await;
        s.sim.kill(s.c);
        s.sim.sleep(3 * grace(&s.sim)).await;
        s.put(s.a, "j", Over::WhatIsThere(Bytes::new())).await;
        assert_eq!(s.see(s.b).await.0, set(&["j"]));
        s.sim.start(s.c);
        for via in [s.c, s.a, s.b] {
            s.sim.sleep(500).await;
            assert_eq!(s.see(via).await.0, set(&["j"]));
        }
        s.ends(&["j"]).await;
    });
}

/// The variant: the order reaches A but is late for B and C, and A coordinates a put meanwhile.
#[test]
fn s15_a_late_order_finds_another_state() {
    play(SIBLINGS, reaping(), async |s| {
        s.put(s.a, "p", Over::Nothing).await;
        s.delete(s.a).await;
        while s.sim.held(s.a, &s.k).is_some() {
            s.sim.sleep(1).await;
        }
        s.sim.net.hold(s.a, s.b);
        s.sim.net.hold(s.a, s.c);
        let sim = s.sim.clone();
        let (via, key) = (s.a, s.k.clone());
        let put = tokio::task::spawn_local(async move {
            sim.put_soon(via, &key, "j", Over::WhatIsThere(Bytes::new())).await;
        });
        s.sim.sleep(400).await;
        s.sim.net.release();
        put.await.unwrap();
        assert_eq!(s.see(s.b).await.0, set(&["j"]));
        s.ends(&["j"]).await;
    });
}

#[test]
fn s16_replica_misses_the_delete() {
    play(SIBLINGS, Options { bucket: strict().bucket, ..reaping() }, async |s| {
        s.put(s.a, "a", Over::Nothing).await;
        s.sim.sleep(200).await;
        s.sim.stop(s.c).await;
        s.delete(s.a).await;
        s.sim.sleep(10 * grace(&s.sim)).await;
        s.sim.start(s.c);
        s.sim.sleep(100).await;
        let mut repaired = 0;
        for round in 0..100 {
            let via = [s.a, s.b, s.c][round % 3];
            if let Some(Ok(read)) = s.sim.read(0, via, &s.k, QuorumSize::Default).await {
                assert_eq!(read.siblings, [], "always absent");
                repaired += read.receipt.repaired.len();
            }
        }
        assert!(repaired <= 1, "at most one repair of C: {repaired}");
        s.sim.sleep(3 * grace(&s.sim)).await;
        s.ends(&[]).await;
        assert_eq!(s.sim.held(s.c, &s.k), None, "then it is reaped");
    });
}

/// C's copy of the delete is late for the first attempt to reap; nodes lose power all the while.
#[test]
fn s17_reaping_waits_and_then_ends() {
    play(SIBLINGS, reaping(), async |s| {
        s.put(s.a, "a", Over::Nothing).await;
        s.sim.sleep(200).await;
        s.sim.net.hold(s.a, s.c);
        s.delete(s.a).await;
        s.sim.sleep(2_500).await;
        s.sim.net.release();
        for node in [s.a, s.b, s.c] {
            s.sim.sleep(grace(&s.sim) / 2).await;
            s.sim.power_off(node);
            s.sim.sleep(300).await;
            s.sim.start(node);
            s.sim.sleep(1_000).await;
            assert_eq!(s.see(node).await.0, set(&[]), "no restart shows a");
        }
        s.sim.sleep(4 * grace(&s.sim)).await;
        s.ends(&[]).await;
        for node in [s.a, s.b, s.c] {
            assert_eq!(s.sim.held(node, &s.k), None, "gone without any client's request");
        }
    });
}

// 5. Read repair and anti-entropy

#[test]
fn s18_quorum_reads_never_go_back() {
    play(SIBLINGS, strict(), async |s| {
        s.sim.isolate(s.c);
        let request = s.sim.new_request();
        let heard = s.sim.attempt(s.c, &s.k, value("a"), &Over::Nothing, request, How::default()).await;
        assert!(!matches!(heard, Some(Ok(_))), "not acked");
        assert_eq!(s.see(s.a).await.0, set(&[]));
        s.sim.heal();
        s.notice().await;
        let (shown, _) = s.see(s.c).await;
        assert_eq!(shown, set(&["a"]));
        let holders = [s.a, s.b, s.c].iter().filter(|&&node| s.sim.values(node, &s.k) == set(&["a"])).count();
        assert!(holders >= 2, "R replicas hold it before the answer");
        s.sim.kill(s.c);
        assert_eq!(s.see(s.a).await.0, set(&["a"]));
        s.ends(&["a"]).await;
    });
}

#[test]
fn s19_agreeing_replicas_stay_quiet() {
    play(SIBLINGS, Options::default(), async |s| {
        let mut last = s.put(s.b, "first", Over::Nothing).await;
        for round in 0..60 {
            s.sim.kill(s.a);
            s.sim.start(s.a);
            s.sim.sleep(200).await;
            let (_, context) = s.see(s.a).await;
            last = s.put(s.a, &format!("v{round}"), Over::Exactly(context)).await;
        }
        let (sim, key, via, over) = (s.sim.clone(), s.k.clone(), s.b, Over::Exactly(last.clone()));
        let other = tokio::task::spawn_local(async move {
            sim.put_as(1, via, &key, "q", over, How::default()).await.expect("acked");
        });
        s.put(s.a, "p", Over::Exactly(last)).await;
        other.await.unwrap();
        s.sim.kill(s.c);
        s.sim.start(s.c);
        s.ends(&["p", "q"]).await;
        let before: Vec<_> = (0..5).map(|node| s.sim.disk(node).records()).collect();
        for round in 0..100 {
            let read = s.sim.read(0, round % 5, &s.k, QuorumSize::All).await.unwrap().unwrap();
            assert_eq!(read.receipt.repaired, []);
        }
        for _ in 0..3 {
            for node in 0..5 {
                assert_eq!(s.sim.whole_round(node).await, 0);
            }
        }
        let after: Vec<_> = (0..5).map(|node| s.sim.disk(node).records()).collect();
        assert!(before == after, "no write at all");
    });
}

// 7. Clock skew and last-write-wins

#[test]
fn s26_slow_clock_overwrites_and_deletes() {
    play(LAST_WINS, Options { max_skew_ms: 60_000, ..Options::default() }, async |s| {
        s.sim.skew(s.a, 25_000);
        s.sim.skew(s.b, -25_000);
        s.put(s.a, "a", Over::WhatIsThere(Bytes::new())).await;
        s.sim.sleep(200).await;
        s.put(s.b, "b", Over::WhatIsThere(Bytes::new())).await;
        assert_eq!(s.see(s.a).await.0, set(&["b"]));
        s.delete(s.b).await;
        assert_eq!(s.see(s.a).await.0, set(&[]));
        s.put(s.b, "c", Over::WhatIsThere(Bytes::new())).await;
        assert_eq!(s.see(s.a).await.0, set(&["c"]));
        s.ends(&["c"]).await;
    });
}

/// The variant: B missed a.
#[test]
fn s26_what_the_slow_clock_missed() {
    for bucket in [SIBLINGS, LAST_WINS] {
        play(bucket, Options { max_skew_ms: 60_000, ..Options::default() }, async |s| {
            s.sim.skew(s.a, 25_000);
            s.sim.skew(s.b, -25_000);
            s.sim.isolate(s.b);
            s.notice().await;
            s.put(s.a, "a", Over::WhatIsThere(Bytes::new())).await;
            let one = How { w: QuorumSize::Count(1), ..How::default() };
            s.sim
                .put_as(0, s.b, &s.k, "b", Over::WhatIsThere(Bytes::new()), one)
                .await
                .expect("W=1 at B itself");
            if bucket == SIBLINGS {
                s.ends(&["a", "b"]).await;
            } else {
                s.ends(&["a"]).await;
            }
        });
    }
}

#[test]
fn s27_clock_far_ahead() {
    play(SIBLINGS, Options::default(), async |s| {
        s.put(s.b, "0", Over::Nothing).await;
        s.sim.skew(s.a, 365 * 24 * 3_600_000);
        for w in [1, 2] {
            let (request, how) = (s.sim.new_request(), How { w: QuorumSize::Count(w), ..How::default() });
            let over = Over::WhatIsThere(Bytes::new());
            let heard = s.sim.attempt(s.a, &s.k, value("a"), &over, request, how).await;
            assert!(matches!(heard, Some(Err(RequestError::NotAttempted { .. }))), "{heard:?}");
        }
        s.notice().await;
        let trouble = s.sim.status(s.a).await.unwrap().clock_trouble;
        assert!(trouble.is_some_and(|why| why.contains("ahead of")), "it says why");
        for other in [s.b, s.c] {
            assert_eq!(s.sim.status(other).await.unwrap().clock_trouble, None, "nobody is dragged along");
        }
        s.sim.skew(s.a, 0);
        let (_, context) = s.see(s.b).await;
        s.put(s.b, "b", Over::Exactly(context)).await;
        assert_eq!(s.see(s.c).await.0, set(&["b"]));
        s.delete(s.b).await;
        assert_eq!(s.see(s.c).await.0, set(&[]));
        s.notice().await;
        s.put(s.a, "back", Over::WhatIsThere(Bytes::new())).await;
        s.ends(&["back"]).await;
    });
}

#[test]
fn s28_failed_minority_write() {
    for bucket in [SIBLINGS, LAST_WINS] {
        for noticed in [false, true] {
            play(bucket, strict(), async |s| {
                s.put(s.a, "a", Over::Nothing).await;
                let (_, seen) = s.see(s.a).await;
                s.sim.isolate(s.a);
                if noticed {
                    s.notice().await;
                }
                let (request, over) = (s.sim.new_request(), Over::Exactly(seen));
                let failed = s.sim.attempt(s.a, &s.k, value("x"), &over, request, How::default()).await;
                assert!(!matches!(failed, Some(Ok(_))));
                s.put(s.b, "y", over).await;
                let not_attempted = matches!(failed, Some(Err(RequestError::NotAttempted { .. })));
                assert_eq!(not_attempted, noticed);
                s.sim.settle().await;
                let end = s.sim.values(s.c, &s.k);
                if not_attempted || bucket == LAST_WINS {
                    // The later stamp is y's: it was put when x had failed.
                    assert_eq!(end, set(&["y"]));
                } else {
                    assert_eq!(end, set(&["x", "y"]));
                }
            });
        }
    }
}

// 8. Durability

#[test]
fn s29_everyone_loses_power() {
    const KEYS: usize = 1_000;
    for seed in 0..3 {
        let outcome = run(seed, Options::default(), async |sim| {
            let down = seed as usize % 5;
            sim.stop(down).await;
            let keys: Vec<Key> = (0..KEYS)
                .map(|number| Key::new(SIBLINGS.as_bytes(), format!("k{number}").as_bytes()).unwrap())
                .collect();
            let acked = Rc::new(std::cell::RefCell::new(Vec::new()));
            let mut writers = Vec::new();
            for writer in 0..4 {
                let (sim, keys, acked) = (sim.clone(), keys.clone(), acked.clone());
                writers.push(tokio::task::spawn_local(async move {
                    for number in (writer..KEYS).step_by(4) {
                        let via = (down + 1 + number % 4) % 5;
                        let over = Over::WhatIsThere(Bytes::new());
                        let text = format!("v{number}");
                        let put = sim.put_as(writer, via, &keys[number], &text, over, How::default());
                        if put.await.is_some() {
                            acked.borrow_mut().push(number);
                        }
                    }
                }));
            }
            while acked.borrow().len() < KEYS / 2 {
                sim.sleep(1).await;
            }
            (0..5).for_each(|node| sim.power_off(node));
            writers.iter().for_each(|writer| writer.abort());
            (0..5).for_each(|node| sim.start(node));
            sim.until_ready().await;
            let acked = acked.borrow().clone();
            assert!(acked.len() >= KEYS / 2 && acked.len() < KEYS);
            for &number in &acked {
                let (shown, _) = sim.see(number % 5, &keys[number]).await;
                assert_eq!(shown, set(&[&format!("v{number}")]));
            }
            for (number, key) in keys.iter().enumerate() {
                let (shown, _) = sim.see(number % 5, key).await;
                assert!(shown.is_empty() || shown == set(&[&format!("v{number}")]), "old or new");
            }
            sim.settle().await;
            sim.check_end(&keys);
        });
        assert_eq!(outcome.violations, [], "seed {seed}");
    }
}

#[test]
fn s30_one_loses_power_another_pauses() {
    for durability in [Durability::Fsync, Durability::Interval] {
        play(SIBLINGS, Options { durability, ..strict() }, async |s| {
            s.sim.isolate(s.c);
            s.notice().await;
            s.put(s.a, "a", Over::Nothing).await;
            let before = s.sim.held(s.a, &s.k).unwrap().live()[0].dot.actor;
            s.sim.power_off(s.a);
            s.sim.start(s.a);
            s.sim.pause(s.b);
            s.sim.heal();
            s.notice().await;
            if durability == Durability::Fsync {
                assert_eq!(s.see(s.a).await.0, set(&["a"]));
            }
            s.put(s.a, "b", Over::Nothing).await;
            s.sim.resume(s.b);
            s.ends(&["a", "b"]).await;
            let object = s.sim.held(s.a, &s.k).unwrap();
            let actors: BTreeSet<_> = object.live().iter().map(|version| version.dot.actor).collect();
            assert!(actors.len() == 2 && actors.contains(&before), "A has a new actor");
        });
    }
}

// 6. Topology changes

/// A cluster of five with a node F that waits.
fn with_f(options: Options) -> Options {
    Options { spares: 1, ..options }
}

const F: usize = 5;

impl Cast {
    fn leave(&self, node: usize) -> Change {
        Change::Leave { name: self.sim.name(node) }
    }

    /// C's place is taken by F: which is exactly C's partitions.
    async fn replace(&self, via: usize, goes: usize) {
        let comes = self.sim.joining(F);
        // A node that has just started may not be heard at once.
        for _ in 0..20 {
            if self.sim.change(via, vec![self.leave(goes), comes.clone()]).await {
                return;
            }
            self.sim.sleep(200).await;
        }
        panic!("the change is not committed: {:?}", self.sim.cluster(via, ClusterRequest::Show).await);
    }

    /// Waits until the change is done everywhere, or at least this far for these nodes, as one of them sees it.
    async fn until(&self, via: usize, phase: &str, nodes: &[usize]) {
        const PHASES: [&str; 7] = ["unaware", "known", "acked", "synced", "reading", "released", "cleared"];
        let at = |name: &str| PHASES.iter().position(|phase| *phase == name);
        for _ in 0..2_000 {
            let change = self.sim.status(via).await.and_then(|status| status.change);
            let reached = change.is_some_and(|change| {
                nodes.iter().all(|&node| {
                    let phase_of = change.phases.get(&self.sim.name(node));
                    phase_of.is_some_and(|theirs| at(theirs) >= at(phase))
                })
            });
            if reached {
                return;
            }
            self.sim.sleep(5).await;
        }
        panic!("n{via} does not see {nodes:?} be {phase}: {:?}", self.sim.status(via).await);
    }

    async fn ends_on(&self, replicas: &[usize], values: &[&str]) {
        self.sim.settle().await;
        let place: BTreeSet<usize> = self.sim.place(&self.k)[..replicas.len()].iter().copied().collect();
        assert_eq!(place, replicas.iter().copied().collect(), "the replicas at the end");
        for &replica in replicas {
            assert_eq!(self.sim.values(replica, &self.k), set(values), "on n{replica}");
        }
    }
}

#[test]
fn s7_one_put_is_one_write_while_the_key_moves() {
    play(SIBLINGS, with_f(Options::default()), async |s| {
        let mut both = 0;
        for round in 1..=10 {
            if round == 3 {
                s.replace(s.b, s.a).await;
            }
            let via = s.sim.place(&s.k)[0];
            let (shown, context) = s.see(via).await;
            both = both.max(shown.len());
            let text = format!("v{round}");
            let over = Over::Exactly(context);
            if round == 5 {
                s.sim.hold_answers(s.a);
                let request = s.sim.new_request();
                let heard = s.sim.attempt(s.a, &s.k, value(&text), &over, request, How::default()).await;
                assert!(heard.is_none(), "the answer is held back");
                let again = How { attempt: 1, ..How::default() };
                let retried = s.sim.attempt(s.b, &s.k, value(&text), &over, request, again).await;
                retried.expect("an answer").expect("the retry succeeds");
                s.sim.net.release();
            } else {
                s.put(via, &text, over).await;
            }
            s.sim.sleep(30).await;
        }
        assert_eq!(both, 1, "a correct sequential client breeds no siblings");
        s.ends_on(&[s.b, s.c, F], &["v10"]).await;
    });
}

#[test]
fn s12_hint_meets_a_leaving_replica() {
    play(SIBLINGS, with_f(Options::default()), async |s| {
        s.sim.stop(s.c).await;
        s.sim.stop(s.e).await;
        s.sim.cut_off(&[s.b]);
        s.notice().await;
        let put = s.sim.put_soon(s.a, &s.k, "a", Over::Nothing).await;
        assert_eq!((put.receipt.acked.len(), put.hinted), (2, 1), "A, and D for one of the others");
        s.sim.heal();
        s.sim.cut_off(&[s.d]);
        s.sim.start(s.c);
        s.sim.start(s.e);
        s.notice().await;
        s.wipe_and_start(s.a).await;
        s.sim.sleep(500).await;
        s.replace(s.b, s.c).await;
        s.notice().await;
        s.sim.heal();
        s.ends_on(&[s.a, s.b, F], &["a"]).await;
    });
}

/// The variant: C was declared lost and replaced while it was down, and k reaped; its old process, started again, is refused.
#[test]
fn s16_who_was_replaced_brings_nothing_back() {
    play(SIBLINGS, with_f(Options { bucket: strict().bucket, ..reaping() }), async |s| {
        s.put(s.a, "a", Over::Nothing).await;
        s.sim.sleep(200).await;
        s.sim.stop(s.c).await;
        s.delete(s.a).await;
        let remove = Change::Remove { name: s.sim.name(s.c) };
        s.sim.declare_lost(s.c);
        assert!(s.sim.change(s.a, vec![remove, s.sim.joining(F)]).await);
        s.sim.until_settled().await;
        s.sim.sleep(4 * grace(&s.sim)).await;
        assert_eq!(s.sim.held(s.a, &s.k), None, "reaped without C");
        s.sim.start(s.c);
        s.notice().await;
        assert!(s.sim.status(s.c).await.unwrap().removed, "it knows that it was taken out");
        let read = s.sim.read(0, s.c, &s.k, QuorumSize::Default).await;
        assert!(!matches!(read, Some(Ok(_))), "it serves nothing: {read:?}");
        for via in [s.a, s.b, F] {
            assert_eq!(s.see(via).await.0, set(&[]), "always absent");
        }
        // Made a member again, it still brings nothing back: that takes an empty disk.
        assert!(s.sim.change(s.a, vec![s.sim.joining(s.c)]).await);
        s.sim.sleep(5_000).await;
        assert!(s.sim.status(s.c).await.unwrap().removed, "still");
        for via in [s.a, s.b, F] {
            assert_eq!(s.see(via).await.0, set(&[]), "always absent");
        }
        s.wipe_and_start(s.c).await;
        s.sim.settle().await;
        for node in 0..6 {
            assert_eq!(s.sim.held(node, &s.k), None, "nothing of it anywhere");
        }
    });
}

/// The variant: C's copy of the delete arrives as the key moves from C to F, with power lost at each step.
#[test]
fn s17_reaping_ends_although_the_key_moves() {
    play(SIBLINGS, with_f(reaping()), async |s| {
        s.put(s.a, "a", Over::Nothing).await;
        s.sim.sleep(200).await;
        s.sim.net.hold(s.a, s.c);
        s.delete(s.a).await;
        s.sim.sleep(2_500).await;
        s.replace(s.b, s.c).await;
        let mut blocked = false;
        for node in [s.a, s.b, s.c, F] {
            s.sim.net.release();
            s.sim.sleep(300).await;
            s.sim.power_off(node);
            s.sim.sleep(500).await;
            s.sim.start(node);
            s.sim.sleep(1_000).await;
            for via in [s.a, s.b, F] {
                let status = s.sim.status(via).await;
                blocked |= status.is_some_and(|status| status.reaping.blocked_by.is_some());
            }
            assert_eq!(s.see(s.b).await.0, set(&[]), "no restart shows a");
        }
        assert!(blocked, "the cause was named");
        s.sim.until_settled().await;
        s.sim.sleep(4 * grace(&s.sim)).await;
        s.ends_on(&[s.a, s.b, F], &[]).await;
        for node in [s.a, s.b, s.c, F] {
            assert_eq!(s.sim.held(node, &s.k), None, "gone without any client's request");
        }
    });
}

#[test]
fn s20_weakest_write_during_a_join() {
    for arrives in [None, Some("b"), Some("c"), Some("f")] {
        let bucket = BucketDefinition { w: QuorumSize::Count(1), r: QuorumSize::All, ..strict().bucket };
        play(SIBLINGS, with_f(Options { bucket, ..Options::default() }), async |s| {
            // E, which has no part in k, holds the change up while the old replicas are still read.
            s.replace(s.b, s.a).await;
            s.until(s.a, "acked", &[s.a, s.b, s.c, s.d, s.e, F]).await;
            s.sim.pause(s.e);
            let copies = [(s.b, "b"), (s.c, "c"), (F, "f")];
            for (to, name) in copies {
                if arrives != Some(name) {
                    s.sim.net.cut(s.a, to);
                }
            }
            let how = How { w: QuorumSize::Count(1), timeout_ms: 1_500, ..How::default() };
            let acked = s.sim.put_as(0, s.a, &s.k, "a", Over::Nothing, how).await;
            assert_eq!(acked.is_some(), arrives.is_some(), "A alone is no ack of the new layout");
            s.sim.heal();
            s.sim.resume(s.e);
            s.sim.until_settled().await;
            s.wipe_and_start(s.a).await;
            s.sim.settle().await;
            if arrives.is_some() {
                s.ends_on(&[s.b, s.c, F], &["a"]).await;
            }
        });
    }
}

#[test]
fn s21_reads_never_go_back_across_a_transition() {
    for reachable in [true, false] {
        play(SIBLINGS, with_f(strict()), async |s| {
            s.put(s.a, "0", Over::Nothing).await;
            s.sim.sleep(200).await;
            s.replace(s.b, s.c).await;
            s.until(s.a, "acked", &[s.a, s.b, s.c, s.d, s.e, F]).await;
            s.sim.pause(s.e);
            s.until(s.a, "synced", &[F]).await;
            // X's put reaches A and C only.
            let (_, context) = s.see(s.a).await;
            s.sim.net.cut(s.a, s.b);
            s.sim.net.cut(s.a, F);
            let how = How { timeout_ms: 800, ..How::default() };
            let put = s.sim.put_as(0, s.a, &s.k, "a", Over::Exactly(context), how).await;
            assert!(put.is_none(), "two of the new replicas do not have it");
            s.sim.net.heal();
            s.sim.power_off(s.b);
            if !reachable {
                s.sim.isolate(F);
            }
            s.notice().await;
            let read = s.sim.read(1, s.a, &s.k, QuorumSize::Default).await;
            if reachable {
                let read = read.expect("an answer").expect("the read succeeds");
                assert_eq!(read.siblings.len(), 1);
                assert_eq!(s.sim.values(F, &s.k), set(&["a"]), "F holds it before it is shown");
            } else {
                assert!(
                    !matches!(read, Some(Ok(_))),
                    "nothing is shown that a later read could miss: {read:?}"
                );
            }
            s.sim.heal();
            s.sim.start(s.b);
            s.sim.resume(s.e);
            s.sim.until_settled().await;
            if reachable {
                s.sim.power_off(s.a);
                s.notice().await;
                assert_eq!(s.see(s.b).await.0, set(&["a"]), "Z sees what Y saw");
            }
            s.ends_on(&[s.a, s.b, F], &["a"]).await;
        });
    }
}

#[test]
fn s22_aborted_leave_is_not_remembered() {
    let bucket = BucketDefinition { w: QuorumSize::Count(1), ..strict().bucket };
    play(SIBLINGS, with_f(Options { bucket, ..Options::default() }), async |s| {
        s.put(s.a, "0", Over::Nothing).await;
        s.replace(s.b, s.c).await;
        s.until(s.a, "acked", &[s.a, s.b, s.c, s.d, s.e, F]).await;
        s.sim.pause(s.e);
        // Nearly all is transferred: with W = 1 what E holds is needed, too.
        s.sim.sleep(500).await;
        // It is reverted.
        let leave = Change::Leave { name: s.sim.name(F) };
        assert!(s.sim.change(s.b, vec![leave, s.sim.joining(s.c)]).await);
        s.sim.sleep(300).await;
        s.sim.power_off(s.a);
        s.sim.power_off(s.b);
        s.notice().await;
        let how = How { w: QuorumSize::Count(1), ..How::default() };
        s.sim.put_soon_as(s.c, &s.k, "a", Over::Nothing, how).await;
        s.sim.start(s.a);
        s.sim.start(s.b);
        s.sim.resume(s.e);
        s.sim.until_ready().await;
        s.replace(s.b, s.c).await;
        s.sim.until_settled().await;
        s.wipe_and_start(s.c).await;
        s.ends_on(&[s.a, s.b, F], &["0", "a"]).await;
    });
}

#[test]
fn s23_read_after_write_through_ten_layouts() {
    let options = Options { spares: 2, bucket: strict().bucket, partitions: 8, ..Options::default() };
    for seed in 0..3 {
        let outcome = run(seed, options.clone(), async |sim| {
            let k = Key::new(SIBLINGS.as_bytes(), b"k").unwrap();
            let ends = Rc::new(std::cell::Cell::new(false));
            let acked = Rc::new(std::cell::RefCell::new(BTreeSet::new()));
            let mut clients = Vec::new();
            for client in 0..3 {
                let (sim, k, ends, acked) = (sim.clone(), k.clone(), ends.clone(), acked.clone());
                clients.push(tokio::task::spawn_local(async move {
                    let mut number = 0;
                    while !ends.get() {
                        sim.sleep(150).await;
                        let via = (client + number) % 5;
                        let Some(Ok(read)) = sim.read(client, via, &k, QuorumSize::Default).await else {
                            number += 1;
                            continue;
                        };
                        let mut all: BTreeSet<String> = BTreeSet::new();
                        for sibling in &read.siblings {
                            let text = String::from_utf8_lossy(&sibling.value).into_owned();
                            all.extend(text.split(',').map(str::to_owned));
                        }
                        number += 1;
                        let own = format!("{client}-{number}");
                        all.insert(own.clone());
                        let text = all.into_iter().collect::<Vec<_>>().join(",");
                        let over = Over::Exactly(read.context);
                        if sim.put_as(client, via, &k, &text, over, How::default()).await.is_some() {
                            acked.borrow_mut().insert(own);
                        }
                    }
                }));
            }
            let mut random = sim.random();
            for change in 0..10 {
                sim.sleep(300 + random.below(700)).await;
                let members = sim.members();
                let waiting: Vec<usize> = (0..7).filter(|node| !members.contains(node)).collect();
                let some = *random.pick(&members);
                let leave = Change::Leave { name: sim.name(some) };
                let via = *members.iter().find(|node| sim.is_running(**node)).unwrap();
                let changes = match (random.below(4), waiting.first()) {
                    (0, Some(&node)) => vec![sim.joining(node)],
                    (1, _) if members.len() > 4 => vec![leave],
                    (2, Some(&node)) => vec![leave, sim.joining(node)],
                    _ => vec![Change::Weight { name: sim.name(some), weight: 50 + random.below(200) as u16 }],
                };
                sim.change(via, changes).await;
                if change >= 5 {
                    let node = random.below(7) as usize;
                    match random.below(2) {
                        0 => {
                            sim.power_off(node);
                            sim.sleep(random.below(1_500)).await;
                            sim.start(node);
                        }
                        _ => {
                            sim.isolate(node);
                            sim.sleep(random.below(1_500)).await;
                            sim.heal();
                        }
                    }
                }
            }
            ends.set(true);
            for client in clients {
                client.await.unwrap();
            }
            sim.settle().await;
            let holder = sim.place(&k)[0];
            let end: BTreeSet<String> = sim
                .values(holder, &k)
                .iter()
                .flat_map(|text| text.split(',').map(str::to_owned).collect::<Vec<_>>())
                .collect();
            let missing: Vec<_> = acked.borrow().difference(&end).cloned().collect();
            assert_eq!(missing, Vec::<String>::new(), "every acked element is in the set");
            assert!(acked.borrow().len() > 30 && sim.layout().number() > 5);
            sim.check_end(&[k]);
        });
        assert_eq!(outcome.violations, [], "seed {seed}:\n{}", outcome.log.join("\n"));
    }
}

#[test]
fn s24_two_layouts_one_number() {
    let bucket = BucketDefinition { w: QuorumSize::Count(1), ..strict().bucket };
    play(SIBLINGS, Options { bucket, ..Options::default() }, async |s| {
        s.sim.cut_off(&[s.a, s.d]);
        s.notice().await;
        let weight = |node: usize| Change::Weight { name: s.sim.name(node), weight: 200 };
        assert!(s.sim.change(s.a, vec![weight(s.d)]).await && s.sim.change(s.b, vec![weight(s.e)]).await);
        s.put(s.a, "a", Over::Nothing).await;
        s.put(s.b, "b", Over::Nothing).await;
        s.sim.heal();
        s.notice().await;
        s.sim.until_settled().await;
        for node in 0..5 {
            let report = s.sim.cluster(node, ClusterRequest::Show).await.unwrap().unwrap();
            assert_eq!(report.layout, 2, "one of the two");
            assert_eq!(report.staged.len(), 1, "what the other one changed is staged: {report:?}");
        }
        s.sim.settle().await;
        for replica in s.sim.place(&s.k)[..3].iter().copied() {
            assert_eq!(s.sim.values(replica, &s.k), set(&["a", "b"]), "on n{replica}");
        }
    });
}

#[test]
fn s25_partition_leaves_and_returns() {
    play(SIBLINGS, with_f(reaping()), async |s| {
        // Another key of the same partition.
        let partition = s.sim.storage_key(&s.k).partition();
        let numbered = |number: u32| Key::new(SIBLINGS.as_bytes(), format!("o{number}").as_bytes()).unwrap();
        let k2 = (0..).map(numbered).find(|key| s.sim.storage_key(key).partition() == partition).unwrap();
        let mut context = s.put(s.a, "1", Over::Nothing).await;
        for text in ["2", "3", "4", "v"] {
            context = s.put(s.a, text, Over::Exactly(context)).await;
        }
        s.sim.put_soon(s.a, &k2, "a", Over::Nothing).await;
        s.sim.sleep(200).await;
        let actor = s.sim.held(s.a, &s.k).unwrap().live()[0].dot.actor;
        s.replace(s.b, s.a).await;
        s.until(s.b, "reading", &[s.a, s.b, s.c, s.d, s.e, F]).await;
        s.sim.pause(s.e);
        assert!(s.sim.held(s.a, &s.k).is_some(), "A's copy is not dropped yet");
        s.put(F, "w", Over::Exactly(context)).await;
        let (_, seen) = s.sim.see(F, &k2).await;
        s.sim.delete(F, &k2, Over::Exactly(seen)).await;
        s.sim.sleep(2 * grace(&s.sim)).await;
        s.sim.resume(s.e);
        let back = vec![Change::Leave { name: s.sim.name(F) }, s.sim.joining(s.a)];
        assert!(s.sim.change(s.b, back).await);
        s.put(s.a, "z", Over::Nothing).await;
        assert_eq!(s.sim.see(s.a, &k2).await.0, set(&[]), "k2 is absent throughout");
        s.sim.until_settled().await;
        assert_eq!(s.sim.see(s.a, &k2).await.0, set(&[]), "k2 is absent throughout");
        s.ends_on(&[s.a, s.b, s.c], &["w", "z"]).await;
        let object = s.sim.held(s.a, &s.k).unwrap();
        assert!(
            object.live().iter().all(|version| version.dot.actor != actor),
            "a second tenure, a new actor"
        );
        assert_eq!(s.sim.see(s.c, &k2).await.0, set(&[]), "k2 is absent throughout");
    });
}

/// A record that can't be read is mended by the read that finds it, with nothing else about: no later write, no anti-entropy.
#[test]
fn a_damaged_record_is_mended_by_the_read_that_finds_it() {
    let large = large_value();
    for value in ["v", &large] {
        for found_by_itself in [true, false] {
            play(SIBLINGS, strict(), async |s| {
                s.put(s.a, value, Over::Nothing).await;
                s.sim.sleep(500).await;
                let (damaged, via) = if found_by_itself { (s.a, s.a) } else { (s.b, s.a) };
                s.sim.damage(damaged, &s.k);
                assert_eq!(s.sim.held(damaged, &s.k), None, "it can't be read");
                assert_eq!(s.see(via).await.0, set(&[value]), "the others answer");
                s.sim.sleep(2_000).await;
                assert_eq!(s.sim.values(damaged, &s.k), set(&[value]));
                assert_eq!(s.see(damaged).await.0, set(&[value]));
            });
        }
    }
}

/// A value that lies behind the rest of its record, where it is not read by who replaces it.
fn large_value() -> String {
    "large ".repeat(200)
}

/// A retry finds that its value was stored, and damaged since: it is no source for others.
#[test]
fn a_retry_does_not_pass_on_a_damaged_value() {
    let large = large_value();
    play(SIBLINGS, strict(), async |s| {
        let request = s.sim.new_request();
        let attempt = || s.sim.attempt(s.a, &s.k, value(&large), &Over::Nothing, request, How::default());
        assert!(matches!(attempt().await, Some(Ok(_))));
        s.sim.sleep(500).await;
        s.sim.damage(s.a, &s.k);
        let again = attempt().await;
        assert!(matches!(again, Some(Err(RequestError::StorageFailed { .. }))), "{again:?}");
        assert_eq!(s.sim.values(s.b, &s.k), set(&[&large]));
        assert_eq!(s.see(s.a).await.0, set(&[&large]));
    });
}

/// What rots while a node is down is mended by anti-entropy, or replaced.
#[test]
fn a_value_that_was_damaged_while_its_node_was_down_is_mended() {
    let large = large_value();
    for overwritten in [true, false] {
        play(SIBLINGS, strict(), async |s| {
            let context = s.put(s.a, &large, Over::Nothing).await;
            s.sim.sleep(500).await;
            s.sim.stop(s.b).await;
            s.sim.damage(s.b, &s.k);
            s.sim.start(s.b);
            s.sim.until_ready().await;
            if overwritten {
                s.put(s.a, "new", Over::Exactly(context)).await;
            }
            s.sim.whole_round(s.b).await;
            s.sim.sleep(1_000).await;
            let expected = if overwritten { "new" } else { &large };
            assert_eq!(s.sim.values(s.b, &s.k), set(&[expected]));
        });
    }
}

/// A large value that is damaged, with all that is known of it whole: who replaces it need not know, and nobody else learns
/// of it; who would keep it beside another one does not pass on what can't be read.
#[test]
fn a_damaged_value_is_replaced_but_never_passed_on() {
    let large = large_value();
    for via_damaged in [true, false] {
        play(SIBLINGS, strict(), async |s| {
            let context = s.put(s.a, &large, Over::Nothing).await;
            s.sim.sleep(500).await;
            s.sim.damage(s.b, &s.k);
            let via = if via_damaged { s.b } else { s.a };
            let request = s.sim.new_request();
            let over = Over::Exactly(context);
            let put = s.sim.attempt(via, &s.k, value("new"), &over, request, How::default()).await;
            assert!(matches!(put, Some(Ok(_))), "{put:?}");
            s.sim.sleep(500).await;
            assert_eq!(s.sim.values(s.b, &s.k), set(&["new"]));
        });
    }
    play(SIBLINGS, strict(), async |s| {
        s.put(s.a, &large, Over::Nothing).await;
        s.sim.sleep(500).await;
        s.sim.damage(s.b, &s.k);
        let request = s.sim.new_request();
        let put = s.sim.attempt(s.b, &s.k, value("beside"), &Over::Nothing, request, How::default()).await;
        assert!(matches!(put, Some(Err(RequestError::StorageFailed { .. }))), "{put:?}");
        s.put(s.a, "beside", Over::Nothing).await;
        s.sim.sleep(2_000).await;
        for node in [s.a, s.b, s.c] {
            assert_eq!(s.see(node).await.0, set(&[&large, "beside"]));
            assert_eq!(s.sim.values(node, &s.k), set(&[&large, "beside"]));
        }
    });
}

// 7. Buckets

/// A bucket that is in use gets one replica instead of three while a node is cut off: from when the others hear of it until
/// all have, its keys are neither read nor written, since that node would look for them elsewhere. Then they are where they
/// belong, and only there.
#[test]
fn a_bucket_with_another_n_waits_for_all_nodes() {
    play(REDEFINED, strict(), async |s| {
        let context = s.put(s.a, "1", Over::Nothing).await;
        let other = Key::new(SIBLINGS.as_bytes(), b"other").unwrap();
        s.sim.isolate(s.e);
        s.notice().await;
        // Only those two get it: after the change neither is a replica.
        s.sim.isolate(s.a);
        s.notice().await;
        s.put(s.b, "2", Over::Exactly(context)).await;
        s.sim.heal();
        s.sim.isolate(s.e);
        s.notice().await;
        let definition = BucketDefinition { n: Some(1), ..BucketDefinition::default() };
        let change = Change::Bucket { name: REDEFINED.to_owned(), definition };
        assert!(s.sim.change(s.a, vec![change]).await);
        s.sim.sleep(1_000).await;
        for via in [s.a, s.b, s.c, s.d] {
            let request = s.sim.new_request();
            let over = Over::Nothing;
            let put = s.sim.attempt(via, &s.k, value("never"), &over, request, How::default()).await;
            assert!(matches!(put, Some(Err(RequestError::Overloaded { .. }))), "{put:?}");
            let get = s.sim.read(0, via, &s.k, QuorumSize::Default).await;
            assert!(matches!(get, Some(Err(RequestError::Overloaded { .. }))), "{get:?}");
            s.sim.put_soon(via, &other, "goes on", Over::WhatIsThere(Bytes::new())).await;
        }
        s.sim.heal();
        s.sim.until_settled().await;
        assert_eq!(s.see(s.e).await.0, set(&["2"]));
        s.put(s.d, "3", Over::WhatIsThere(Bytes::new())).await;
        assert_eq!(s.see(s.a).await.0, set(&["3"]));
        s.sim.settle().await;
        assert_eq!(s.sim.values(s.a, &s.k), set(&["3"]));
        for elsewhere in [s.b, s.c, s.d, s.e] {
            assert_eq!(s.sim.held(elsewhere, &s.k), None, "on n{elsewhere}");
        }
    });
}
