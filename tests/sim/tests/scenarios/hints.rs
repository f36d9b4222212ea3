//! Scenarios S10 to S12: hints reach their replicas, and a fallback without a hint never answers
//! that a key is absent.

use quorate_core::quorum::QuorumSize;
use quorate_sim::world::{Options, SIBLINGS, WriteMode, WriteOptions};

use super::{F, key, run_scenario, set, with_spare};

#[test]
fn s10_hint_survives_its_fallbacks_crash() {
    run_scenario(SIBLINGS, Options::default(), async |s| {
        s.sim.stop(s.b).await;
        s.sim.stop(s.c).await;
        s.put(s.a, "a", WriteMode::Concurrent).await;
        s.sim.sleep(100).await;
        let further = key(SIBLINGS, "another");
        let (sim, a) = (s.sim.clone(), s.a);
        let put = tokio::task::spawn_local(async move {
            let options = WriteOptions { client: 1, ..WriteOptions::default() };
            sim.try_put(a, &further, "x", WriteMode::Concurrent, options).await;
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
        // Restarted fallbacks find their hints without any client request.
        s.sim.sleep(10_000).await;
        for replica in [s.b, s.c] {
            assert_eq!(s.sim.values(replica, &s.k), set(&["a"]));
        }
        s.converges_to(&["a"]).await;
    });
}

#[test]
fn s11_empty_fallback_is_not_absence() {
    run_scenario(SIBLINGS, Options::default(), async |s| {
        s.put(s.a, "a", WriteMode::Concurrent).await;
        s.sim.stop(s.c).await;
        for via in [s.d, s.e, s.a] {
            let read = s.sim.read(0, via, &s.k, QuorumSize::Count(1)).await.unwrap().unwrap();
            assert_eq!(read.siblings.len(), 1, "via n{via}");
        }
        s.sim.cut_off(&[s.a, s.b]);
        s.detect_failures().await;
        for r in [QuorumSize::Count(1), QuorumSize::Default] {
            let read = s.sim.read(0, s.d, &s.k, r).await;
            assert!(!matches!(read, Some(Ok(_))), "never absent: {read:?}");
        }
        s.converges_to(&["a"]).await;
    });
}

#[test]
fn s12_hint_meets_a_leaving_replica() {
    run_scenario(SIBLINGS, with_spare(Options::default()), async |s| {
        s.sim.stop(s.c).await;
        s.sim.stop(s.e).await;
        s.sim.cut_off(&[s.b]);
        s.detect_failures().await;
        let put = s.sim.put_when_ready(s.a, &s.k, "a", WriteMode::Concurrent).await;
        assert_eq!((put.receipt.acked.len(), put.hinted), (2, 1), "A acks, and D acks with a hint");
        s.sim.heal();
        s.sim.cut_off(&[s.d]);
        s.sim.start(s.c);
        s.sim.start(s.e);
        s.detect_failures().await;
        s.wipe_and_start(s.a).await;
        s.sim.sleep(500).await;
        s.replace_by_f(s.b, s.c).await;
        s.detect_failures().await;
        s.sim.heal();
        s.converges_on(&[s.a, s.b, F], &["a"]).await;
    });
}
