//! A run: one scenario on a new cluster. All of its random numbers follow from one seed.

use std::cell::RefCell;
use std::rc::Rc;

use quorate_core::planted::plant;
use tokio::task::LocalSet;

use super::options::Options;
use super::sim::Sim;
use crate::oracle::{Rule, Violation};

/// Runs a scenario on a new cluster. All nodes are started and ready when the scenario begins.
pub fn run<F: AsyncFnOnce(&Rc<Sim>)>(seed: u64, options: Options, scenario: F) -> Outcome {
    watch_panics();
    PANICS.with_borrow_mut(Vec::clear);
    plant(options.bug);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be built");
    let tasks = LocalSet::new();
    let mut outcome = runtime.block_on(tasks.run_until(async move {
        let sim = Sim::new(seed, options);
        for node in 0..sim.count() {
            sim.start(node);
        }
        sim.until_ready().await;
        scenario(&sim).await;
        let outcome = Outcome {
            violations: sim.oracle.violations(),
            log: sim.log.take(),
            retries_seen_twice: sim.oracle.retries_seen_twice(),
        };
        for node in 0..sim.count() {
            sim.kill(node);
        }
        outcome
    }));
    drop(tasks);
    plant(None);
    for text in PANICS.take() {
        outcome.violations.push(Violation { rule: Rule::Crash, text });
    }
    outcome
}

/// The outcome of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Violations of the rules.
    pub violations: Vec<Violation>,
    /// All events, in order.
    pub log: Vec<String>,
    /// Number of versions of retried writes that are live in the end although an acked write had
    /// replaced them. This breaks no rule: a retry may write its value once more.
    pub retries_seen_twice: u64,
}

thread_local! {
    /// Panics of the run on this thread.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Records each panic in the `PANICS` of its thread. The runtime catches the panic of a task, so
/// that no other code would see it.
fn watch_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
            report(panic);
        }));
    });
}
