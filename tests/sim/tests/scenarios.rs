use quorate_core::Key;
use quorate_sim::sim::{Options, Over, SIBLINGS, run};

#[test]
fn smoke() {
    let outcome = run(1, Options::default(), async |sim| {
        let key = Key::new(SIBLINGS.as_bytes(), b"k").unwrap();
        let place = sim.place(&key);
        sim.put(place[0], &key, "a", Over::Nothing).await;
        sim.put(place[1], &key, "b", Over::Nothing).await;
        sim.stop(place[2]).await;
        sim.put(place[1], &key, "c", Over::Nothing).await;
        let (shown, _) = sim.shown(place[0], &key).await.unwrap();
        assert_eq!(shown.len(), 3);
        sim.settle().await;
        assert_eq!(sim.values(place[2], &key), shown);
        sim.check_end(&[key]);
    });
    println!("{}", outcome.log.join("\n"));
    assert_eq!(outcome.violations, []);
}
