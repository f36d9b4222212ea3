//! Scenarios S20 to S25: no layout change loses a write or makes a read go back.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::Bytes;
use quorate_core::change::LayoutChange;
use quorate_core::quorum::QuorumSize;
use quorate_core::request::ClusterRequest;
use quorate_core::{BucketDefinition, Key, RequestError};
use quorate_sim::random::Random;
use quorate_sim::world::{Options, REDEFINED, SIBLINGS, Sim, WriteMode, WriteOptions, run};

use super::{F, key, run_scenario, set, strict_quorum, with_spare, with_tombstone_gc};

#[test]
fn s20_weakest_write_during_a_join() {
    for arrives in [None, Some("b"), Some("c"), Some("f")] {
        let (w, r) = (QuorumSize::Count(1), QuorumSize::All);
        let bucket = BucketDefinition { w, r, ..strict_quorum().bucket };
        run_scenario(SIBLINGS, with_spare(Options { bucket, ..Options::default() }), async |s| {
            // E is no replica of k. While E is paused the change cannot proceed: reads still use
            // the old replicas.
            s.replace_by_f(s.b, s.a).await;
            s.until_phase(s.a, "acked", &[s.a, s.b, s.c, s.d, s.e, F]).await;
            s.sim.pause(s.e);
            let copies = [(s.b, "b"), (s.c, "c"), (F, "f")];
            for (to, name) in copies {
                if arrives != Some(name) {
                    s.sim.net.cut(s.a, to);
                }
            }
            let options = WriteOptions { w, timeout_ms: 1_500, ..WriteOptions::default() };
            let acked = s.sim.try_put(s.a, &s.k, "a", WriteMode::Concurrent, options).await;
            assert_eq!(acked.is_some(), arrives.is_some(), "an ack of A does not count in the new layout");
            s.sim.heal();
            s.sim.resume(s.e);
            s.sim.until_layout_change_ends().await;
            s.wipe_and_start(s.a).await;
            s.sim.converge().await;
            if arrives.is_some() {
                s.converges_on(&[s.b, s.c, F], &["a"]).await;
            }
        });
    }
}

#[test]
fn s21_reads_never_go_back_across_a_transition() {
    for reachable in [true, false] {
        run_scenario(SIBLINGS, with_spare(strict_quorum()), async |s| {
            s.put(s.a, "0", WriteMode::Concurrent).await;
            s.sim.sleep(200).await;
            s.replace_by_f(s.b, s.c).await;
            s.until_phase(s.a, "acked", &[s.a, s.b, s.c, s.d, s.e, F]).await;
            s.sim.pause(s.e);
            s.until_phase(s.a, "synced", &[F]).await;
            // The put of client X reaches A and C only.
            let context = s.read(s.a).await.context;
            s.sim.net.cut(s.a, s.b);
            s.sim.net.cut(s.a, F);
            let options = WriteOptions { timeout_ms: 800, ..WriteOptions::default() };
            let put = s.sim.try_put(s.a, &s.k, "a", WriteMode::Exactly(context), options).await;
            assert!(put.is_none(), "two of the new replicas do not have the write");
            s.sim.net.heal();
            s.sim.power_off(s.b);
            if !reachable {
                s.sim.isolate(F);
            }
            s.detect_failures().await;
            let read = s.sim.read(1, s.a, &s.k, QuorumSize::Default).await;
            if reachable {
                let read = read.expect("a reply").expect("the read succeeds");
                assert_eq!(read.siblings.len(), 1);
                assert_eq!(s.sim.values(F, &s.k), set(&["a"]), "F holds the value before a read shows it");
            } else {
                assert!(
                    !matches!(read, Some(Ok(_))),
                    "no read shows a value that a later read could miss: {read:?}"
                );
            }
            s.sim.heal();
            s.sim.start(s.b);
            s.sim.resume(s.e);
            s.sim.until_layout_change_ends().await;
            if reachable {
                s.sim.power_off(s.a);
                s.detect_failures().await;
                assert_eq!(s.read(s.b).await.values, set(&["a"]), "client Z reads what client Y read");
            }
            s.converges_on(&[s.a, s.b, F], &["a"]).await;
        });
    }
}

#[test]
fn s22_aborted_leave_is_not_remembered() {
    let bucket = BucketDefinition { w: QuorumSize::Count(1), ..strict_quorum().bucket };
    run_scenario(SIBLINGS, with_spare(Options { bucket, ..Options::default() }), async |s| {
        s.put(s.a, "0", WriteMode::Concurrent).await;
        s.replace_by_f(s.b, s.c).await;
        s.until_phase(s.a, "acked", &[s.a, s.b, s.c, s.d, s.e, F]).await;
        s.sim.pause(s.e);
        // Nearly all data is copied. With W = 1, F must merge each partition with all N old
        // replicas. For some partitions E is one of them. E is paused, so the copy cannot complete.
        s.sim.sleep(500).await;
        // The operator reverts the change.
        let leave = s.sim.leave_change(F);
        assert!(s.sim.change(s.b, vec![leave, s.sim.join_change(s.c)]).await);
        s.sim.sleep(300).await;
        s.sim.power_off(s.a);
        s.sim.power_off(s.b);
        s.detect_failures().await;
        let options = WriteOptions { w: QuorumSize::Count(1), ..WriteOptions::default() };
        s.sim.put_when_ready_with(s.c, &s.k, "a", WriteMode::Concurrent, options).await;
        s.sim.start(s.a);
        s.sim.start(s.b);
        s.sim.resume(s.e);
        s.sim.until_ready().await;
        s.replace_by_f(s.b, s.c).await;
        s.sim.until_layout_change_ends().await;
        s.wipe_and_start(s.c).await;
        s.converges_on(&[s.a, s.b, F], &["0", "a"]).await;
    });
}

/// Clients grow a set under one key while the layout changes ten times. The set is a value with
/// comma-separated elements: each client writes all elements that it read, and one more.
#[test]
fn s23_read_after_write_through_ten_layouts() {
    let options = Options { spares: 2, bucket: strict_quorum().bucket, partitions: 8, ..Options::default() };
    for seed in 0..3 {
        let outcome = run(seed, options.clone(), async |sim| {
            let k = key(SIBLINGS, "k");
            let ended = Rc::new(Cell::new(false));
            let acked = Rc::new(RefCell::new(BTreeSet::new()));
            let mut clients = Vec::new();
            for client in 0..3 {
                let (sim, k, ended, acked) = (sim.clone(), k.clone(), ended.clone(), acked.clone());
                clients.push(tokio::task::spawn_local(async move {
                    grow_set(&sim, client, &k, &ended, &acked).await;
                }));
            }
            let mut random = sim.random();
            for round in 0..10 {
                sim.sleep(300 + random.below(700)).await;
                change_layout(sim, &mut random).await;
                if round >= 5 {
                    inject_fault(sim, &mut random).await;
                }
            }
            ended.set(true);
            for client in clients {
                client.await.unwrap();
            }
            sim.converge().await;
            let holder = sim.preference_list(&k)[0];
            let values = sim.values(holder, &k);
            let end: BTreeSet<String> = values.iter().flat_map(|text| elements(text)).collect();
            let missing: Vec<_> = acked.borrow().difference(&end).cloned().collect();
            assert_eq!(missing, Vec::<String>::new(), "every acked element is in the set");
            assert!(acked.borrow().len() > 30 && sim.layout().number() > 5);
            sim.check_end(&[k]);
        });
        assert_eq!(outcome.violations, [], "seed {seed}:\n{}", outcome.log.join("\n"));
    }
}

/// Adds elements of one client to the set, until the run ends. `acked` collects the acked elements.
async fn grow_set(sim: &Sim, client: usize, k: &Key, ended: &Cell<bool>, acked: &RefCell<BTreeSet<String>>) {
    let mut number = 0;
    while !ended.get() {
        sim.sleep(150).await;
        let via = (client + number) % 5;
        number += 1;
        let Some(Ok(read)) = sim.read(client, via, k, QuorumSize::Default).await else { continue };
        let mut all = BTreeSet::new();
        for sibling in &read.siblings {
            all.extend(elements(&String::from_utf8_lossy(&sibling.value)));
        }
        let own = format!("{client}-{number}");
        all.insert(own.clone());
        let text = all.into_iter().collect::<Vec<_>>().join(",");
        let options = WriteOptions { client, ..WriteOptions::default() };
        if sim.try_put(via, k, &text, WriteMode::Exactly(read.context), options).await.is_some() {
            acked.borrow_mut().insert(own);
        }
    }
}

fn elements(set: &str) -> Vec<String> {
    set.split(',').map(str::to_owned).collect()
}

async fn change_layout(sim: &Sim, random: &mut Random) {
    let members = sim.members();
    let waiting: Vec<usize> = (0..7).filter(|node| !members.contains(node)).collect();
    let member = *random.pick(&members);
    let leave = sim.leave_change(member);
    let via = *members.iter().find(|node| sim.is_running(**node)).unwrap();
    let changes = match (random.below(4), waiting.first()) {
        (0, Some(&node)) => vec![sim.join_change(node)],
        (1, _) if members.len() > 4 => vec![leave],
        (2, Some(&node)) => vec![leave, sim.join_change(node)],
        _ => vec![LayoutChange::Weight { name: sim.name(member), weight: 50 + random.below(200) as u16 }],
    };
    sim.change(via, changes).await;
}

/// Powers a node off or isolates it, and repairs the fault after some time.
async fn inject_fault(sim: &Sim, random: &mut Random) {
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

#[test]
fn s24_two_layouts_one_number() {
    let bucket = BucketDefinition { w: QuorumSize::Count(1), ..strict_quorum().bucket };
    run_scenario(SIBLINGS, Options { bucket, ..Options::default() }, async |s| {
        s.sim.cut_off(&[s.a, s.d]);
        s.detect_failures().await;
        let weight = |node: usize| LayoutChange::Weight { name: s.sim.name(node), weight: 200 };
        assert!(s.sim.change(s.a, vec![weight(s.d)]).await && s.sim.change(s.b, vec![weight(s.e)]).await);
        s.put(s.a, "a", WriteMode::Concurrent).await;
        s.put(s.b, "b", WriteMode::Concurrent).await;
        s.sim.heal();
        s.detect_failures().await;
        s.sim.until_layout_change_ends().await;
        for node in 0..5 {
            let report = s.sim.cluster(node, ClusterRequest::Show).await.unwrap().unwrap();
            assert_eq!(report.layout, 2, "all nodes choose one of the two layouts");
            assert_eq!(report.staged.len(), 1, "the changes of the other layout are staged: {report:?}");
        }
        s.sim.converge().await;
        for replica in s.sim.preference_list(&s.k)[..3].iter().copied() {
            assert_eq!(s.sim.values(replica, &s.k), set(&["a", "b"]), "on n{replica}");
        }
    });
}

#[test]
fn s25_partition_leaves_and_returns() {
    run_scenario(SIBLINGS, with_spare(with_tombstone_gc()), async |s| {
        // k2 is another key of the same partition.
        let partition = s.sim.storage_key(&s.k).partition();
        let numbered = |number: u32| key(SIBLINGS, &format!("o{number}"));
        let k2 = (0..).map(numbered).find(|key| s.sim.storage_key(key).partition() == partition).unwrap();
        let mut context = s.put(s.a, "1", WriteMode::Concurrent).await;
        for text in ["2", "3", "4", "v"] {
            context = s.put(s.a, text, WriteMode::Exactly(context)).await;
        }
        s.sim.put_when_ready(s.a, &k2, "a", WriteMode::Concurrent).await;
        s.sim.sleep(200).await;
        let actor = s.sim.held(s.a, &s.k).unwrap().live()[0].dot.actor;
        s.replace_by_f(s.b, s.a).await;
        s.until_phase(s.b, "reading", &[s.a, s.b, s.c, s.d, s.e, F]).await;
        s.sim.pause(s.e);
        assert!(s.sim.held(s.a, &s.k).is_some(), "A has not dropped its copy yet");
        s.put(F, "w", WriteMode::Exactly(context)).await;
        let seen = s.sim.read_values(F, &k2).await.context;
        s.sim.delete(F, &k2, WriteMode::Exactly(seen)).await;
        s.sim.sleep(2 * s.grace_ms()).await;
        s.sim.resume(s.e);
        let back = vec![s.sim.leave_change(F), s.sim.join_change(s.a)];
        assert!(s.sim.change(s.b, back).await);
        s.put(s.a, "z", WriteMode::Concurrent).await;
        assert_eq!(s.sim.read_values(s.a, &k2).await.values, set(&[]), "k2 is absent throughout");
        s.sim.until_layout_change_ends().await;
        assert_eq!(s.sim.read_values(s.a, &k2).await.values, set(&[]), "k2 is absent throughout");
        s.converges_on(&[s.a, s.b, s.c], &["w", "z"]).await;
        let object = s.sim.held(s.a, &s.k).unwrap();
        assert!(
            object.live().iter().all(|version| version.dot.actor != actor),
            "A has a new actor as a replica again"
        );
        assert_eq!(s.sim.read_values(s.c, &k2).await.values, set(&[]), "k2 is absent throughout");
    });
}

/// A bucket that is in use gets one replica instead of three while a node is cut off.
///
/// Until all nodes know the change, the nodes that know it refuse requests for the bucket's keys:
/// the node that is cut off would use other replicas. Afterwards only the one replica that is left
/// holds the bucket's keys.
#[test]
fn a_bucket_with_another_n_waits_for_all_nodes() {
    run_scenario(REDEFINED, strict_quorum(), async |s| {
        let context = s.put(s.a, "1", WriteMode::Concurrent).await;
        let other = key(SIBLINGS, "other");
        s.sim.isolate(s.e);
        s.detect_failures().await;
        // Only B and C get the next write. Neither is a replica after the change.
        s.sim.isolate(s.a);
        s.detect_failures().await;
        s.put(s.b, "2", WriteMode::Exactly(context)).await;
        s.sim.heal();
        s.sim.isolate(s.e);
        s.detect_failures().await;
        let definition = BucketDefinition { n: Some(1), ..BucketDefinition::default() };
        let change = LayoutChange::Bucket { name: REDEFINED.to_owned(), definition };
        assert!(s.sim.change(s.a, vec![change]).await);
        s.sim.sleep(1_000).await;
        for via in [s.a, s.b, s.c, s.d] {
            let put = s.attempt_put(via, "never", &WriteMode::Concurrent).await;
            assert!(matches!(put, Some(Err(RequestError::Overloaded { .. }))), "{put:?}");
            let get = s.sim.read(0, via, &s.k, QuorumSize::Default).await;
            assert!(matches!(get, Some(Err(RequestError::Overloaded { .. }))), "{get:?}");
            s.sim.put_when_ready(via, &other, "goes on", WriteMode::Overwrite(Bytes::new())).await;
        }
        s.sim.heal();
        s.sim.until_layout_change_ends().await;
        assert_eq!(s.read(s.e).await.values, set(&["2"]));
        s.put(s.d, "3", WriteMode::Overwrite(Bytes::new())).await;
        assert_eq!(s.read(s.a).await.values, set(&["3"]));
        s.sim.converge().await;
        assert_eq!(s.sim.values(s.a, &s.k), set(&["3"]));
        for elsewhere in [s.b, s.c, s.d, s.e] {
            assert_eq!(s.sim.held(elsewhere, &s.k), None, "on n{elsewhere}");
        }
    });
}
