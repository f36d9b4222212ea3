//! The `quorate-sim` command: runs many seeds, finds planted bugs, or replays one seed.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::{Parser, Subcommand};
use quorate_core::planted::Bug;
use quorate_sim::oracle::Rule;
use quorate_sim::workload::run_seed;

#[derive(Parser)]
#[command(name = "quorate-sim", about = "Deterministic simulation of whole clusters")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run seeds; name those that break a promise.
    Run {
        /// Number of seeds.
        #[arg(long, default_value_t = 200)]
        seeds: u64,
        /// First seed.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Nodes of the cluster.
        #[arg(long, default_value_t = 5)]
        nodes: usize,
    },
    /// Plant each bug, and find a seed that catches it.
    Bugs {
        /// Seeds to try for each bug.
        #[arg(long, default_value_t = 500)]
        seeds: u64,
        /// Plant only this bug.
        #[arg(long)]
        only: Option<String>,
    },
    /// Replay one seed, and print everything that happened.
    Show {
        /// Seed to replay.
        seed: u64,
        /// Nodes of the cluster.
        #[arg(long, default_value_t = 5)]
        nodes: usize,
        /// Bug to plant.
        #[arg(long)]
        bug: Option<String>,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run { seeds, from, nodes } => run(seeds, from, nodes),
        Command::Bugs { seeds, only } => bugs(seeds, only.as_deref()),
        Command::Show { seed, nodes, bug } => show(seed, nodes, bug.as_deref()),
    }
}

fn show(seed: u64, nodes: usize, bug: Option<&str>) -> ExitCode {
    let bug = bug.map(|name| find_bug(name).unwrap_or_else(|| panic!("no bug is called {name}")));
    let outcome = run_seed(seed, nodes, bug);
    outcome.log.iter().for_each(|line| println!("{line}"));
    for violation in &outcome.violations {
        println!("{:?}: {}", violation.rule, violation.text);
    }
    if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn find_bug(name: &str) -> Option<Bug> {
    Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name)
}

/// Calls `one` for the seeds from `from` to `from + seeds - 1`, on all cores. Begins no further
/// seed after a call has returned false.
fn on_all_cores(from: u64, seeds: u64, one: impl Fn(u64) -> bool + Sync) {
    let next = AtomicU64::new(from);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + seeds || !one(seed) {
                        next.store(from + seeds, Ordering::Relaxed);
                        return;
                    }
                }
            });
        }
    });
}

fn run(seeds: u64, from: u64, nodes: usize) -> ExitCode {
    let failed = Mutex::new(BTreeMap::new());
    let twice = AtomicU64::new(0);
    on_all_cores(from, seeds, |seed| {
        let outcome = run_seed(seed, nodes, None);
        twice.fetch_add(outcome.retries_seen_twice, Ordering::Relaxed);
        if let Some(first) = outcome.violations.first() {
            println!("seed {seed}: {:?}: {:.300}", first.rule, first.text);
            let rules: Vec<Rule> = outcome.violations.iter().map(|violation| violation.rule).collect();
            failed.lock().expect("no thread panics").insert(seed, rules);
        }
        true
    });
    let failed = failed.into_inner().expect("no thread panics");
    println!(
        "{seeds} seeds of {nodes} nodes: {} broke a promise; writes that a failure hid and that took effect once more: {}",
        failed.len(),
        twice.into_inner()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn bugs(seeds: u64, only: Option<&str>) -> ExitCode {
    let mut missed = 0;
    for bug in Bug::ALL {
        if only.is_some_and(|only| find_bug(only) != Some(bug)) {
            continue;
        }
        let caught: Mutex<Option<(u64, Rule)>> = Mutex::new(None);
        on_all_cores(0, seeds, |seed| {
            let outcome = run_seed(seed, 5, Some(bug));
            let mut caught = caught.lock().expect("no thread panics");
            if let Some(first) = outcome.violations.first()
                && caught.is_none_or(|(earlier, _)| seed < earlier)
            {
                *caught = Some((seed, first.rule));
            }
            caught.is_none()
        });
        match caught.into_inner().expect("no thread panics") {
            Some((seed, rule)) => println!("{:<24} caught by seed {seed:>3}: {rule:?}", format!("{bug:?}")),
            None => {
                missed += 1;
                println!("{:<24} NOT caught within {seeds} seeds", format!("{bug:?}"));
            }
        }
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
