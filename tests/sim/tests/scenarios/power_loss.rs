//! Scenarios S29 and S30: acked writes survive a loss of power.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::Bytes;
use quorate_core::Key;
use quorate_sim::world::{Durability, Options, SIBLINGS, Sim, WriteMode, WriteOptions, run};

use super::{key, run_scenario, set, strict_quorum};

#[test]
fn s29_everyone_loses_power() {
    const KEYS: usize = 1_000;
    for seed in 0..3 {
        let outcome = run(seed, Options::default(), async |sim| {
            let down = seed as usize % 5;
            sim.stop(down).await;
            let keys: Vec<Key> = (0..KEYS).map(|number| key(SIBLINGS, &format!("k{number}"))).collect();
            let acked = Rc::new(RefCell::new(Vec::new()));
            let mut writers = Vec::new();
            for client in 0..4 {
                let (sim, keys, acked) = (sim.clone(), keys.clone(), acked.clone());
                writers.push(tokio::task::spawn_local(async move {
                    write_keys(&sim, client, down, &keys, &acked).await;
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
                let values = sim.read_values(number % 5, &keys[number]).await.values;
                assert_eq!(values, set(&[&format!("v{number}")]));
            }
            for (number, key) in keys.iter().enumerate() {
                let values = sim.read_values(number % 5, key).await.values;
                assert!(values.is_empty() || values == set(&[&format!("v{number}")]), "old or new");
            }
            sim.converge().await;
            sim.check_end(&keys);
        });
        assert_eq!(outcome.violations, [], "seed {seed}");
    }
}

/// Writes every fourth key, as one of four clients, through the nodes that run.
///
/// `acked` collects the numbers of the acked keys.
async fn write_keys(sim: &Sim, client: usize, down: usize, keys: &[Key], acked: &RefCell<Vec<usize>>) {
    for number in (client..keys.len()).step_by(4) {
        let via = (down + 1 + number % 4) % 5;
        let text = format!("v{number}");
        let options = WriteOptions { client, ..WriteOptions::default() };
        let put = sim.try_put(via, &keys[number], &text, WriteMode::Overwrite(Bytes::new()), options);
        if put.await.is_some() {
            acked.borrow_mut().push(number);
        }
    }
}

#[test]
fn s30_one_loses_power_another_pauses() {
    for durability in [Durability::Fsync, Durability::Interval] {
        run_scenario(SIBLINGS, Options { durability, ..strict_quorum() }, async |s| {
            s.sim.isolate(s.c);
            s.detect_failures().await;
            s.put(s.a, "a", WriteMode::Concurrent).await;
            let before = s.sim.held(s.a, &s.k).unwrap().live()[0].dot.actor;
            s.sim.power_off(s.a);
            s.sim.start(s.a);
            s.sim.pause(s.b);
            s.sim.heal();
            s.detect_failures().await;
            if durability == Durability::Fsync {
                assert_eq!(s.read(s.a).await.values, set(&["a"]));
            }
            s.put(s.a, "b", WriteMode::Concurrent).await;
            s.sim.resume(s.b);
            s.converges_to(&["a", "b"]).await;
            let object = s.sim.held(s.a, &s.k).unwrap();
            let actors: BTreeSet<_> = object.live().iter().map(|version| version.dot.actor).collect();
            assert!(actors.len() == 2 && actors.contains(&before), "A has a new actor");
        });
    }
}
