//! Damaged records: a node that finds one repairs it from other replicas, and never passes it on.

use quorate_core::RequestError;
use quorate_sim::world::{SIBLINGS, WriteMode, WriteOptions};

use super::{run_scenario, set, strict_quorum, value};

/// Returns a large value. A record stores it apart from its other data, with a checksum of its own,
/// and a write that replaces the value does not read it.
fn large_value() -> String {
    "large ".repeat(200)
}

/// A read that finds a damaged record repairs it, without a later write and without anti-entropy.
#[test]
fn a_damaged_record_is_mended_by_the_read_that_finds_it() {
    let large = large_value();
    for value in ["v", &large] {
        for on_coordinator in [true, false] {
            run_scenario(SIBLINGS, strict_quorum(), async |s| {
                s.put(s.a, value, WriteMode::Concurrent).await;
                s.sim.sleep(500).await;
                let (damaged, via) = if on_coordinator { (s.a, s.a) } else { (s.b, s.a) };
                s.sim.damage(damaged, &s.k);
                assert_eq!(s.sim.held(damaged, &s.k), None, "the record is damaged");
                assert_eq!(s.read(via).await.values, set(&[value]), "the other replicas answer");
                s.sim.sleep(2_000).await;
                assert_eq!(s.sim.values(damaged, &s.k), set(&[value]));
                assert_eq!(s.read(damaged).await.values, set(&[value]));
            });
        }
    }
}

/// A retry finds that its value was stored, and then damaged. The node must not send the damaged
/// value to other nodes.
#[test]
fn a_retry_does_not_pass_on_a_damaged_value() {
    let large = large_value();
    run_scenario(SIBLINGS, strict_quorum(), async |s| {
        let request = s.sim.new_request();
        let options = WriteOptions::default();
        let attempt = || s.sim.attempt(s.a, &s.k, value(&large), &WriteMode::Concurrent, request, options);
        assert!(matches!(attempt().await, Some(Ok(_))));
        s.sim.sleep(500).await;
        s.sim.damage(s.a, &s.k);
        let again = attempt().await;
        assert!(matches!(again, Some(Err(RequestError::StorageFailed { .. }))), "{again:?}");
        assert_eq!(s.sim.values(s.b, &s.k), set(&[&large]));
        assert_eq!(s.read(s.a).await.values, set(&[&large]));
    });
}

/// A value that was damaged while its node was down is repaired by anti-entropy, or replaced by a
/// newer write.
#[test]
fn a_value_that_was_damaged_while_its_node_was_down_is_mended() {
    let large = large_value();
    for overwritten in [true, false] {
        run_scenario(SIBLINGS, strict_quorum(), async |s| {
            let context = s.put(s.a, &large, WriteMode::Concurrent).await;
            s.sim.sleep(500).await;
            s.sim.stop(s.b).await;
            s.sim.damage(s.b, &s.k);
            s.sim.start(s.b);
            s.sim.until_ready().await;
            if overwritten {
                s.put(s.a, "new", WriteMode::Exactly(context)).await;
            }
            s.sim.repair_round(s.b).await;
            s.sim.sleep(1_000).await;
            let expected = if overwritten { "new" } else { &large };
            assert_eq!(s.sim.values(s.b, &s.k), set(&[expected]));
        });
    }
}

/// A large value is damaged, while the rest of its record is not. A write that replaces the value
/// succeeds. A write that would keep it as a sibling fails on this node, because the node cannot
/// pass the value on.
#[test]
fn a_damaged_value_is_replaced_but_never_passed_on() {
    let large = large_value();
    for via_damaged in [true, false] {
        run_scenario(SIBLINGS, strict_quorum(), async |s| {
            let context = s.put(s.a, &large, WriteMode::Concurrent).await;
            s.sim.sleep(500).await;
            s.sim.damage(s.b, &s.k);
            let via = if via_damaged { s.b } else { s.a };
            let put = s.attempt_put(via, "new", &WriteMode::Exactly(context)).await;
            assert!(matches!(put, Some(Ok(_))), "{put:?}");
            s.sim.sleep(500).await;
            assert_eq!(s.sim.values(s.b, &s.k), set(&["new"]));
        });
    }
    run_scenario(SIBLINGS, strict_quorum(), async |s| {
        s.put(s.a, &large, WriteMode::Concurrent).await;
        s.sim.sleep(500).await;
        s.sim.damage(s.b, &s.k);
        let put = s.attempt_put(s.b, "beside", &WriteMode::Concurrent).await;
        assert!(matches!(put, Some(Err(RequestError::StorageFailed { .. }))), "{put:?}");
        s.put(s.a, "beside", WriteMode::Concurrent).await;
        s.sim.sleep(2_000).await;
        for node in [s.a, s.b, s.c] {
            assert_eq!(s.read(node).await.values, set(&[&large, "beside"]));
            assert_eq!(s.sim.values(node, &s.k), set(&[&large, "beside"]));
        }
    });
}
