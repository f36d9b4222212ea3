//! Scenarios S1 to S5: a node that lost its disk, or part of it, gives no new write a dot that an
//! earlier write of the node has.

use std::collections::BTreeSet;

use quorate_core::quorum::QuorumSize;
use quorate_sim::world::{Options, ReadValues, SIBLINGS, WriteMode, WriteOptions, run};

use super::{SEEDS, key, run_scenario, set, strict_quorum};

#[test]
fn s1_lost_disk_starts_a_new_actor() {
    run_scenario(SIBLINGS, Options::default(), async |s| {
        s.put(s.a, "p", WriteMode::Concurrent).await;
        s.put(s.a, "q", WriteMode::Concurrent).await;
        s.wipe_and_start(s.a).await;
        s.put(s.a, "r", WriteMode::Concurrent).await;
        s.converges_to(&["p", "q", "r"]).await;
    });
}

/// Variant of S1: A is not wiped, but its record of k is damaged.
#[test]
fn s1_an_unreadable_record_is_not_an_absent_one() {
    run_scenario(SIBLINGS, Options::default(), async |s| {
        s.put(s.a, "p", WriteMode::Concurrent).await;
        s.put(s.a, "q", WriteMode::Concurrent).await;
        s.sim.sleep(100).await;
        s.sim.damage(s.a, &s.k);
        let reply = s.sim.try_put(s.a, &s.k, "r", WriteMode::Concurrent, WriteOptions::default()).await;
        assert!(reply.is_none(), "A coordinates no write on a record that it cannot read");
        s.put(s.b, "r2", WriteMode::Concurrent).await;
        s.converges_to(&["p", "q", "r2"]).await;
    });
}

/// A wiped node that restarts before it has recovered still has to recover.
#[test]
fn s1_recovery_outlives_a_restart() {
    run_scenario(SIBLINGS, strict_quorum(), async |s| {
        s.sim.isolate(s.c);
        s.detect_failures().await;
        s.put(s.a, "p", WriteMode::Concurrent).await;
        s.sim.kill(s.a);
        s.sim.wipe(s.a);
        s.sim.kill(s.b);
        s.sim.start(s.a);
        s.sim.sleep(500).await;
        s.sim.kill(s.a);
        s.sim.start(s.a);
        s.sim.heal();
        s.detect_failures().await;
        let status = s.sim.status(s.a).await.unwrap();
        assert!(status.recovering > 0, "A cannot recover without B, which has the write");
        for via in [s.a, s.c] {
            let read = s.sim.read(0, via, &s.k, QuorumSize::Default).await;
            assert!(
                !matches!(read, Some(Ok(_))),
                "A does not count for the quorum before it has recovered: {read:?}"
            );
        }
        s.sim.start(s.b);
        s.converges_to(&["p"]).await;
    });
}

#[test]
fn s2_old_fallbacks_repair_a_wiped_coordinator() {
    run_scenario(SIBLINGS, Options::default(), async |s| {
        s.sim.stop(s.b).await;
        s.sim.stop(s.c).await;
        let a = s.put(s.a, "a", WriteMode::Concurrent).await;
        let b = s.put(s.a, "b", WriteMode::Exactly(a)).await;
        s.sim.kill(s.d);
        s.sim.kill(s.e);
        s.sim.start(s.b);
        s.sim.start(s.c);
        s.sim.sleep(500).await;
        let c = s.put(s.a, "c", WriteMode::Exactly(b)).await;
        s.put(s.a, "d", WriteMode::Exactly(c)).await;
        s.sim.kill(s.b);
        s.sim.kill(s.c);
        s.wipe_and_start(s.a).await;
        s.sim.start(s.d);
        s.sim.start(s.e);
        s.sim.sleep(500).await;
        let ReadValues { values, context } = s.read(s.a).await;
        assert_eq!(values, set(&["b"]), "the hints alone are left");
        s.put(s.a, "e", WriteMode::Exactly(context)).await;
        s.converges_to(&["d", "e"]).await;
    });
}

#[test]
fn s3_hint_reaches_a_replica_with_a_hole() {
    let options = Options { replicas: 2, ..Options::default() };
    for seed in 0..SEEDS {
        let outcome = run(seed, options.clone(), async |sim| {
            let k = key(SIBLINGS, "k");
            let [a, b, c, d, e] = sim.preference_list(&k)[..5] else { panic!("five nodes") };
            sim.cut_off(&[b, e]);
            sim.sleep(3_000).await;
            let first = sim.put(a, &k, "a", WriteMode::Concurrent).await.context;
            sim.kill(c);
            let second = sim.put_when_ready(a, &k, "b", WriteMode::Exactly(first)).await.context;
            sim.put_when_ready(a, &k, "c", WriteMode::Exactly(second)).await;
            sim.kill(d);
            sim.put_when_ready(b, &k, "d", WriteMode::Concurrent).await;
            sim.kill(a);
            sim.wipe(a);
            sim.heal();
            sim.start(a);
            sim.start(c);
            sim.sleep(10_000).await;
            let ReadValues { values, context } = sim.read_values(a, &k).await;
            assert_eq!(values, set(&["a", "d"]));
            sim.put(a, &k, "e", WriteMode::Exactly(context)).await;
            sim.start(d);
            sim.converge().await;
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
    for while_running in [false, true] {
        run_scenario(SIBLINGS, Options::default(), async |s| {
            let a = s.put(s.a, "a", WriteMode::Concurrent).await;
            s.sim.sleep(100).await;
            let image = if while_running {
                s.sim.disk(s.a).image()
            } else {
                s.sim.stop(s.a).await;
                let image = s.sim.disk(s.a).image();
                s.sim.start(s.a);
                image
            };
            let b = s.put(s.a, "b", WriteMode::Exactly(a.clone())).await;
            s.put(s.a, "c", WriteMode::Exactly(b)).await;
            s.sim.sleep(100).await;
            s.sim.kill(s.a);
            s.sim.restore(s.a, image);
            s.sim.isolate(s.a);
            s.sim.start(s.a);
            let one = WriteOptions { w: QuorumSize::Count(1), ..WriteOptions::default() };
            s.sim.put_when_ready_with(s.a, &s.k, "d", WriteMode::Exactly(a), one).await;
            let read = s.sim.read(0, s.a, &s.k, QuorumSize::Count(1)).await.unwrap().unwrap();
            let values: Vec<&[u8]> = read.siblings.iter().map(|sibling| &sibling.value[..]).collect();
            assert_eq!(values, [b"d"]);
            s.sim.put_when_ready_with(s.a, &s.k, "e", WriteMode::Exactly(read.context), one).await;
            s.converges_to(&["c", "e"]).await;
        });
    }
}

#[test]
fn s5_no_two_tenures_share_an_actor() {
    run_scenario(SIBLINGS, Options { partitions: 64, ..Options::default() }, async |s| {
        s.put(s.a, "a", WriteMode::Concurrent).await;
        s.put(s.b, "b", WriteMode::Concurrent).await;
        s.sim.cut_off(&[s.a, s.b, s.c]);
        s.detect_failures().await;
        s.put(s.d, "c", WriteMode::Concurrent).await;
        s.put(s.e, "d", WriteMode::Concurrent).await;
        s.converges_to(&["a", "b", "c", "d"]).await;
        let object = s.sim.held(s.a, &s.k).unwrap();
        let actors: BTreeSet<_> = object.live().iter().map(|version| version.dot.actor).collect();
        assert_eq!(actors.len(), 4, "each coordinator used an actor of its own");
        for via in [s.a, s.b, s.c] {
            let read = s.sim.read(0, via, &s.k, QuorumSize::All).await.unwrap().unwrap();
            assert_eq!(read.receipt.repaired, [], "no read repairs identical replicas");
        }
    });
}
