//! Scenarios S6 to S9: concurrent writes stay as siblings, a retried write remains a single write,
//! and the limit on siblings does not stop convergence.

use quorate_core::quorum::QuorumSize;
use quorate_core::{BucketDefinition, RequestError};
use quorate_sim::world::{LAST_WINS, Options, ReadValues, SIBLINGS, WriteMode, WriteOptions};

use super::{F, run_scenario, set, value, with_spare};

#[test]
fn s6_interleaved_writers_keep_two_siblings() {
    run_scenario(SIBLINGS, Options::default(), async |s| {
        s.put(s.a, "x0", WriteMode::Concurrent).await;
        s.put(s.a, "y0", WriteMode::Concurrent).await;
        let mut seen_by_y = s.read(s.a).await.context;
        for round in 1..=50 {
            let seen_by_x = s.read(s.a).await.context;
            s.put(s.a, &format!("y{round}"), WriteMode::Exactly(seen_by_y)).await;
            seen_by_y = s.read(s.a).await.context;
            s.put(s.a, &format!("x{round}"), WriteMode::Exactly(seen_by_x)).await;
            assert!(s.read(s.a).await.values.len() <= 2, "round {round}");
        }
        s.converges_to(&["x50", "y50"]).await;
    });
}

/// Variant of S6: client X never reads. It writes with the context of its previous put, which does
/// not contain the value of client Y.
#[test]
fn s6_a_writer_that_never_reads_keeps_the_other() {
    run_scenario(SIBLINGS, Options::default(), async |s| {
        let mut context = s.put(s.a, "x1", WriteMode::Concurrent).await;
        s.put(s.a, "a", WriteMode::Concurrent).await;
        for round in 2..=50 {
            context = s.put(s.a, &format!("x{round}"), WriteMode::Exactly(context)).await;
        }
        s.converges_to(&["a", "x50"]).await;
    });
}

/// A put whose reply is lost is retried through another node: both attempts are one write. In the
/// second run the copies to B and C are late too. So B does not know the first attempt, and mints a
/// second dot for the write.
#[test]
fn s7_one_put_is_one_write() {
    for copies_late in [false, true] {
        run_scenario(SIBLINGS, Options::default(), async |s| {
            let mut most_siblings = 0;
            for round in 1..=10 {
                if round == 8 {
                    s.sim.net.release();
                }
                let via = if (5..8).contains(&round) && copies_late { s.b } else { s.a };
                let ReadValues { values, context } = s.read(via).await;
                most_siblings = most_siblings.max(values.len());
                let text = format!("v{round}");
                let mode = WriteMode::Exactly(context);
                if round == 5 {
                    s.sim.hold_replies(s.a);
                    if copies_late {
                        s.sim.net.hold(s.a, s.b);
                        s.sim.net.hold(s.a, s.c);
                    }
                    let request = s.sim.new_request();
                    let (sim, k, first) = (&s.sim, &s.k, WriteOptions::default());
                    let reply = sim.attempt(s.a, k, value(&text), &mode, request, first).await;
                    assert!(reply.is_none(), "the reply is held back");
                    let again = WriteOptions { attempt: 1, ..WriteOptions::default() };
                    let retried = sim.attempt(s.b, k, value(&text), &mode, request, again).await;
                    retried.expect("a reply").expect("the retry succeeds");
                    if !copies_late {
                        s.sim.net.release();
                    }
                } else {
                    s.put(via, &text, mode).await;
                }
            }
            if !copies_late {
                assert_eq!(most_siblings, 1, "a sequential client creates no siblings");
            }
            s.sim.converge().await;
            let end = s.sim.values(s.a, &s.k);
            assert!(end == set(&["v10"]) || (copies_late && end == set(&["v5", "v10"])), "{end:?}");
        });
    }
}

#[test]
fn s7_one_put_is_one_write_while_the_key_moves() {
    run_scenario(SIBLINGS, with_spare(Options::default()), async |s| {
        let mut most_siblings = 0;
        for round in 1..=10 {
            if round == 3 {
                s.replace_by_f(s.b, s.a).await;
            }
            let via = s.sim.preference_list(&s.k)[0];
            let ReadValues { values, context } = s.read(via).await;
            most_siblings = most_siblings.max(values.len());
            let text = format!("v{round}");
            let mode = WriteMode::Exactly(context);
            if round == 5 {
                s.sim.hold_replies(s.a);
                let (request, first) = (s.sim.new_request(), WriteOptions::default());
                let reply = s.sim.attempt(s.a, &s.k, value(&text), &mode, request, first).await;
                assert!(reply.is_none(), "the reply is held back");
                let again = WriteOptions { attempt: 1, ..WriteOptions::default() };
                let retried = s.sim.attempt(s.b, &s.k, value(&text), &mode, request, again).await;
                retried.expect("a reply").expect("the retry succeeds");
                s.sim.net.release();
            } else {
                s.put(via, &text, mode).await;
            }
            s.sim.sleep(30).await;
        }
        assert_eq!(most_siblings, 1, "a sequential client creates no siblings");
        s.converges_on(&[s.b, s.c, F], &["v10"]).await;
    });
}

#[test]
fn s8_late_retry_undoes_nothing() {
    for bucket in [SIBLINGS, LAST_WINS] {
        for b_misses_the_write in [false, true] {
            run_scenario(bucket, Options::default(), async |s| {
                s.put(s.a, "a", WriteMode::Concurrent).await;
                let seen = s.read(s.a).await.context;
                if b_misses_the_write {
                    s.sim.isolate(s.b);
                    s.detect_failures().await;
                }
                s.sim.hold_replies(s.a);
                let (request, mode) = (s.sim.new_request(), WriteMode::Exactly(seen));
                let first = WriteOptions::default();
                let lost = s.sim.attempt(s.a, &s.k, value("b"), &mode, request, first).await;
                assert!(lost.is_none(), "the reply is held back");
                s.sim.net.release();
                let ReadValues { values, context } = s.read(s.a).await;
                assert_eq!(values, set(&["b"]));
                s.put(s.a, "c", WriteMode::Exactly(context)).await;
                s.sim.net.heal();
                let again = WriteOptions { attempt: 1, ..WriteOptions::default() };
                let mut retried = None;
                while !matches!(retried, Some(Ok(_))) {
                    retried = s.sim.attempt(s.b, &s.k, value("b"), &mode, request, again).await;
                }
                s.sim.converge().await;
                let end = s.sim.values(s.a, &s.k);
                let both = b_misses_the_write && bucket == SIBLINGS && end == set(&["b", "c"]);
                assert!(end == set(&["c"]) || both, "{end:?}");
            });
        }
    }
}

#[test]
fn s9_sibling_limit_does_not_stop_convergence() {
    let bucket =
        BucketDefinition { max_siblings: 100, w: QuorumSize::Count(1), ..BucketDefinition::default() };
    run_scenario(SIBLINGS, Options { bucket, ..Options::default() }, async |s| {
        // A is cut off from D and E too, which would pass on A's writes to B and C.
        s.sim.isolate(s.a);
        s.detect_failures().await;
        for number in 0..80 {
            s.put(s.a, &format!("a{number}"), WriteMode::Concurrent).await;
            s.put(s.b, &format!("b{number}"), WriteMode::Concurrent).await;
        }
        s.sim.converge().await;
        for replica in [s.a, s.b, s.c] {
            assert_eq!(s.sim.values(replica, &s.k).len(), 160, "the limit binds clients, not merges");
        }
        let refused = s.attempt_put(s.a, "one more", &WriteMode::Concurrent).await;
        assert!(matches!(refused, Some(Err(RequestError::TooManySiblings { siblings: 160, limit: 100 }))));
        let context = s.read(s.a).await.context;
        s.put(s.a, "z", WriteMode::Exactly(context)).await;
        s.converges_to(&["z"]).await;
    });
}
