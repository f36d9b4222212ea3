//! Scenarios S13 to S17: no deleted value returns, and tombstones are collected in the end.

use bytes::Bytes;
use quorate_core::change::LayoutChange;
use quorate_core::planted::Bug;
use quorate_core::quorum::QuorumSize;
use quorate_sim::world::{Options, SIBLINGS, WriteMode};

use super::{F, run_scenario, set, strict_quorum, with_spare, with_tombstone_gc};

#[test]
fn s13_hint_older_than_a_delete() {
    run_scenario(SIBLINGS, with_tombstone_gc(), async |s| {
        s.sim.stop(s.c).await;
        s.put(s.a, "a", WriteMode::Concurrent).await;
        s.sim.sleep(500).await;
        s.sim.stop(s.d).await;
        s.sim.start(s.c);
        s.sim.sleep(1_000).await;
        s.delete(s.a).await;
        for _ in 0..10 {
            s.sim.sleep(s.grace_ms()).await;
            assert_eq!(s.read(s.b).await.values, set(&[]));
        }
        for replica in [s.a, s.b, s.c] {
            assert!(s.sim.held(replica, &s.k).is_some_and(|held| held.is_tombstone()), "the tombstone stays");
        }
        let blocked = s.sim.status(s.a).await.unwrap().tombstone_gc.blocked_by.unwrap_or_default();
        assert!(blocked.contains(&format!("n{}", s.d)), "the status names D: {blocked:?}");
        s.sim.start(s.d);
        for _ in 0..5 {
            s.sim.sleep(s.grace_ms()).await;
            assert_eq!(s.read(s.c).await.values, set(&[]));
        }
        s.converges_to(&[]).await;
        assert_eq!(s.sim.held(s.a, &s.k), None, "k is collected in the end");
    });
}

/// The second run plants a bug: the collector does not wait for nodes that are down. The tombstone in
/// the hint must not cover the new write even then, because A writes with a new actor.
#[test]
fn s14_tombstone_waits_in_a_hint() {
    for bug in [None, Some(Bug::GcIgnoresTheDead)] {
        run_scenario(SIBLINGS, Options { bug, ..with_tombstone_gc() }, async |s| {
            for value in ["o1", "o2", "p"] {
                s.put(s.a, value, WriteMode::Overwrite(Bytes::new())).await;
            }
            s.sim.stop(s.a).await;
            s.delete(s.b).await;
            s.sim.sleep(500).await;
            s.sim.kill(s.d);
            s.sim.skew(s.a, -900);
            s.sim.start(s.a);
            s.sim.sleep(1_000).await;
            assert_eq!(s.read(s.a).await.values, set(&[]));
            s.sim.sleep(3 * s.grace_ms()).await;
            s.put(s.a, "j", WriteMode::Overwrite(Bytes::new())).await;
            s.sim.start(s.d);
            s.sim.sleep(5_000).await;
            assert_eq!(s.read(s.b).await.values, set(&["j"]));
            s.converges_to(&["j"]).await;
        });
    }
}

#[test]
fn s15_tombstone_lingers_on_one_replica() {
    run_scenario(SIBLINGS, with_tombstone_gc(), async |s| {
        s.put(s.a, "p", WriteMode::Concurrent).await;
        s.delete(s.a).await;
        s.sim.sleep(200).await;
        s.sim.kill(s.c);
        s.sim.sleep(3 * s.grace_ms()).await;
        s.put(s.a, "j", WriteMode::Overwrite(Bytes::new())).await;
        assert_eq!(s.read(s.b).await.values, set(&["j"]));
        s.sim.start(s.c);
        for via in [s.c, s.a, s.b] {
            s.sim.sleep(500).await;
            assert_eq!(s.read(via).await.values, set(&["j"]));
        }
        s.converges_to(&["j"]).await;
    });
}

/// Variant of S15: the request to collect the tombstone reaches B and C late. Before it arrives, A
/// coordinates a put.
#[test]
fn s15_a_late_order_finds_another_state() {
    run_scenario(SIBLINGS, with_tombstone_gc(), async |s| {
        s.put(s.a, "p", WriteMode::Concurrent).await;
        s.delete(s.a).await;
        while s.sim.held(s.a, &s.k).is_some() {
            s.sim.sleep(1).await;
        }
        s.sim.net.hold(s.a, s.b);
        s.sim.net.hold(s.a, s.c);
        let sim = s.sim.clone();
        let (via, key) = (s.a, s.k.clone());
        let put = tokio::task::spawn_local(async move {
            sim.put_when_ready(via, &key, "j", WriteMode::Overwrite(Bytes::new())).await;
        });
        s.sim.sleep(400).await;
        s.sim.net.release();
        put.await.unwrap();
        assert_eq!(s.read(s.b).await.values, set(&["j"]));
        s.converges_to(&["j"]).await;
    });
}

#[test]
fn s16_replica_misses_the_delete() {
    run_scenario(SIBLINGS, Options { bucket: strict_quorum().bucket, ..with_tombstone_gc() }, async |s| {
        s.put(s.a, "a", WriteMode::Concurrent).await;
        s.sim.sleep(200).await;
        s.sim.stop(s.c).await;
        s.delete(s.a).await;
        s.sim.sleep(10 * s.grace_ms()).await;
        s.sim.start(s.c);
        s.sim.sleep(100).await;
        let mut repaired = 0;
        for round in 0..100 {
            let via = [s.a, s.b, s.c][round % 3];
            if let Some(Ok(read)) = s.sim.read(0, via, &s.k, QuorumSize::Default).await {
                assert_eq!(read.siblings, [], "k stays absent");
                repaired += read.receipt.repaired.len();
            }
        }
        assert!(repaired <= 1, "at most one read repairs C: {repaired}");
        s.sim.sleep(3 * s.grace_ms()).await;
        s.converges_to(&[]).await;
        assert_eq!(s.sim.held(s.c, &s.k), None, "k is collected on C too");
    });
}

/// Variant of S16: C is declared lost and replaced while it is down, and the tombstone of k is
/// collected. The cluster refuses C when it starts again with its old disk.
#[test]
fn s16_who_was_replaced_brings_nothing_back() {
    let options = Options { bucket: strict_quorum().bucket, ..with_tombstone_gc() };
    run_scenario(SIBLINGS, with_spare(options), async |s| {
        s.put(s.a, "a", WriteMode::Concurrent).await;
        s.sim.sleep(200).await;
        s.sim.stop(s.c).await;
        s.delete(s.a).await;
        let remove = LayoutChange::Remove { name: s.sim.name(s.c) };
        s.sim.declare_lost(s.c);
        assert!(s.sim.change(s.a, vec![remove, s.sim.join_change(F)]).await);
        s.sim.until_layout_change_ends().await;
        s.sim.sleep(4 * s.grace_ms()).await;
        assert_eq!(s.sim.held(s.a, &s.k), None, "k is collected without C");
        s.sim.start(s.c);
        s.detect_failures().await;
        assert!(s.sim.status(s.c).await.unwrap().removed, "C learns that it was removed");
        let read = s.sim.read(0, s.c, &s.k, QuorumSize::Default).await;
        assert!(!matches!(read, Some(Ok(_))), "C serves no request: {read:?}");
        for via in [s.a, s.b, F] {
            assert_eq!(s.read(via).await.values, set(&[]), "k stays absent");
        }
        // C joins again, and still serves nothing: a removed node must return with an empty disk.
        assert!(s.sim.change(s.a, vec![s.sim.join_change(s.c)]).await);
        s.sim.sleep(5_000).await;
        assert!(s.sim.status(s.c).await.unwrap().removed, "C is still refused");
        for via in [s.a, s.b, F] {
            assert_eq!(s.read(via).await.values, set(&[]), "k stays absent");
        }
        s.wipe_and_start(s.c).await;
        s.sim.converge().await;
        for node in 0..6 {
            assert_eq!(s.sim.held(node, &s.k), None, "no node holds k");
        }
    });
}

/// The delete reaches C only after the first attempt to collect the tombstone. Then each replica
/// loses power, one after another. The deleted value must not return, and in the end the tombstone
/// is collected.
#[test]
fn s17_tombstone_gc_waits_and_then_ends() {
    run_scenario(SIBLINGS, with_tombstone_gc(), async |s| {
        s.put(s.a, "a", WriteMode::Concurrent).await;
        s.sim.sleep(200).await;
        s.sim.net.hold(s.a, s.c);
        s.delete(s.a).await;
        s.sim.sleep(2_500).await;
        s.sim.net.release();
        for node in [s.a, s.b, s.c] {
            s.sim.sleep(s.grace_ms() / 2).await;
            s.sim.power_off(node);
            s.sim.sleep(300).await;
            s.sim.start(node);
            s.sim.sleep(1_000).await;
            assert_eq!(s.read(node).await.values, set(&[]), "a does not return after a restart");
        }
        s.sim.sleep(4 * s.grace_ms()).await;
        s.converges_to(&[]).await;
        for node in [s.a, s.b, s.c] {
            assert_eq!(s.sim.held(node, &s.k), None, "k is collected without any client request");
        }
    });
}

/// Variant of S17: the delete reaches C while the key moves from C to F, and nodes lose power at
/// each step.
#[test]
fn s17_tombstone_gc_ends_although_the_key_moves() {
    run_scenario(SIBLINGS, with_spare(with_tombstone_gc()), async |s| {
        s.put(s.a, "a", WriteMode::Concurrent).await;
        s.sim.sleep(200).await;
        s.sim.net.hold(s.a, s.c);
        s.delete(s.a).await;
        s.sim.sleep(2_500).await;
        s.replace_by_f(s.b, s.c).await;
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
                blocked |= status.is_some_and(|status| status.tombstone_gc.blocked_by.is_some());
            }
            assert_eq!(s.read(s.b).await.values, set(&[]), "a does not return after a restart");
        }
        assert!(blocked, "the status names the cause");
        s.sim.until_layout_change_ends().await;
        s.sim.sleep(4 * s.grace_ms()).await;
        s.converges_on(&[s.a, s.b, F], &[]).await;
        for node in [s.a, s.b, s.c, F] {
            assert_eq!(s.sim.held(node, &s.k), None, "k is collected without any client request");
        }
    });
}
