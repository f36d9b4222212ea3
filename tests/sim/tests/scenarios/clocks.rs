//! Scenarios S26 to S28: writes survive wrong clocks, with siblings and with last-write-wins.

use bytes::Bytes;
use quorate_core::RequestError;
use quorate_core::quorum::QuorumSize;
use quorate_sim::world::{LAST_WINS, Options, SIBLINGS, WriteMode, WriteOptions};

use super::{run_scenario, set, strict_quorum, value};

#[test]
fn s26_slow_clock_overwrites_and_deletes() {
    run_scenario(LAST_WINS, Options { max_skew_ms: 60_000, ..Options::default() }, async |s| {
        s.sim.skew(s.a, 25_000);
        s.sim.skew(s.b, -25_000);
        s.put(s.a, "a", WriteMode::Overwrite(Bytes::new())).await;
        s.sim.sleep(200).await;
        s.put(s.b, "b", WriteMode::Overwrite(Bytes::new())).await;
        assert_eq!(s.read(s.a).await.values, set(&["b"]));
        s.delete(s.b).await;
        assert_eq!(s.read(s.a).await.values, set(&[]));
        s.put(s.b, "c", WriteMode::Overwrite(Bytes::new())).await;
        assert_eq!(s.read(s.a).await.values, set(&["c"]));
        s.converges_to(&["c"]).await;
    });
}

/// Variant of S26: B is cut off, and misses the write of value `a`.
#[test]
fn s26_what_the_slow_clock_missed() {
    for bucket in [SIBLINGS, LAST_WINS] {
        run_scenario(bucket, Options { max_skew_ms: 60_000, ..Options::default() }, async |s| {
            s.sim.skew(s.a, 25_000);
            s.sim.skew(s.b, -25_000);
            s.sim.isolate(s.b);
            s.detect_failures().await;
            s.put(s.a, "a", WriteMode::Overwrite(Bytes::new())).await;
            let one = WriteOptions { w: QuorumSize::Count(1), ..WriteOptions::default() };
            s.sim
                .try_put(s.b, &s.k, "b", WriteMode::Overwrite(Bytes::new()), one)
                .await
                .expect("B alone acks with W=1");
            if bucket == SIBLINGS {
                s.converges_to(&["a", "b"]).await;
            } else {
                s.converges_to(&["a"]).await;
            }
        });
    }
}

#[test]
fn s27_clock_far_ahead() {
    run_scenario(SIBLINGS, Options::default(), async |s| {
        s.put(s.b, "0", WriteMode::Concurrent).await;
        s.sim.skew(s.a, 365 * 24 * 3_600_000);
        for w in [1, 2] {
            let request = s.sim.new_request();
            let options = WriteOptions { w: QuorumSize::Count(w), ..WriteOptions::default() };
            let mode = WriteMode::Overwrite(Bytes::new());
            let reply = s.sim.attempt(s.a, &s.k, value("a"), &mode, request, options).await;
            assert!(matches!(reply, Some(Err(RequestError::Unavailable { .. }))), "{reply:?}");
        }
        s.detect_failures().await;
        let reason = s.sim.status(s.a).await.unwrap().clock_problem;
        assert!(reason.is_some_and(|text| text.contains("ahead of")), "A names the reason");
        for other in [s.b, s.c] {
            assert_eq!(s.sim.status(other).await.unwrap().clock_problem, None, "no other clock changes");
        }
        s.sim.skew(s.a, 0);
        let context = s.read(s.b).await.context;
        s.put(s.b, "b", WriteMode::Exactly(context)).await;
        assert_eq!(s.read(s.c).await.values, set(&["b"]));
        s.delete(s.b).await;
        assert_eq!(s.read(s.c).await.values, set(&[]));
        s.detect_failures().await;
        s.put(s.a, "back", WriteMode::Overwrite(Bytes::new())).await;
        s.converges_to(&["back"]).await;
    });
}

#[test]
fn s28_failed_minority_write() {
    for bucket in [SIBLINGS, LAST_WINS] {
        for a_detects_the_cut in [false, true] {
            run_scenario(bucket, strict_quorum(), async |s| {
                s.put(s.a, "a", WriteMode::Concurrent).await;
                let seen = s.read(s.a).await.context;
                s.sim.isolate(s.a);
                if a_detects_the_cut {
                    s.detect_failures().await;
                }
                let mode = WriteMode::Exactly(seen);
                let failed = s.attempt_put(s.a, "x", &mode).await;
                assert!(!matches!(failed, Some(Ok(_))));
                s.put(s.b, "y", mode).await;
                let not_attempted = matches!(failed, Some(Err(RequestError::Unavailable { .. })));
                assert_eq!(not_attempted, a_detects_the_cut);
                s.sim.converge().await;
                let end = s.sim.values(s.c, &s.k);
                if not_attempted || bucket == LAST_WINS {
                    // y has the later stamp: it was written after x had failed.
                    assert_eq!(end, set(&["y"]));
                } else {
                    assert_eq!(end, set(&["x", "y"]));
                }
            });
        }
    }
}
