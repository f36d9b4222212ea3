//! Scenarios S18 and S19: quorum reads never go back, and reads of equal replicas write nothing.

use quorate_core::quorum::QuorumSize;
use quorate_sim::world::{Options, SIBLINGS, WriteMode, WriteOptions};

use super::{run_scenario, set, strict_quorum};

#[test]
fn s18_quorum_reads_never_go_back() {
    run_scenario(SIBLINGS, strict_quorum(), async |s| {
        s.sim.isolate(s.c);
        let reply = s.attempt_put(s.c, "a", &WriteMode::Concurrent).await;
        assert!(!matches!(reply, Some(Ok(_))), "the write is not acked");
        assert_eq!(s.read(s.a).await.values, set(&[]));
        s.sim.heal();
        s.detect_failures().await;
        assert_eq!(s.read(s.c).await.values, set(&["a"]));
        let holders = [s.a, s.b, s.c].iter().filter(|&&node| s.sim.values(node, &s.k) == set(&["a"])).count();
        assert!(holders >= 2, "R replicas hold the value before the reply");
        s.sim.kill(s.c);
        assert_eq!(s.read(s.a).await.values, set(&["a"]));
        s.converges_to(&["a"]).await;
    });
}

#[test]
fn s19_agreeing_replicas_stay_quiet() {
    run_scenario(SIBLINGS, Options::default(), async |s| {
        let mut last = s.put(s.b, "first", WriteMode::Concurrent).await;
        for round in 0..60 {
            s.sim.kill(s.a);
            s.sim.start(s.a);
            s.sim.sleep(200).await;
            let context = s.read(s.a).await.context;
            last = s.put(s.a, &format!("v{round}"), WriteMode::Exactly(context)).await;
        }
        let (sim, key, via, mode) = (s.sim.clone(), s.k.clone(), s.b, WriteMode::Exactly(last.clone()));
        let other = tokio::task::spawn_local(async move {
            let options = WriteOptions { client: 1, ..WriteOptions::default() };
            sim.try_put(via, &key, "q", mode, options).await.expect("the put is acked");
        });
        s.put(s.a, "p", WriteMode::Exactly(last)).await;
        other.await.unwrap();
        s.sim.kill(s.c);
        s.sim.start(s.c);
        s.converges_to(&["p", "q"]).await;
        let before: Vec<_> = (0..5).map(|node| s.sim.disk(node).records()).collect();
        for round in 0..100 {
            let read = s.sim.read(0, round % 5, &s.k, QuorumSize::All).await.unwrap().unwrap();
            assert_eq!(read.receipt.repaired, []);
        }
        for _ in 0..3 {
            for node in 0..5 {
                assert_eq!(s.sim.repair_round(node).await, 0);
            }
        }
        let after: Vec<_> = (0..5).map(|node| s.sim.disk(node).records()).collect();
        assert!(before == after, "no node writes");
    });
}
