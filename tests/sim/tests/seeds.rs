//! Random seeds: they break no rule, replay exactly, and find the planted bugs.

use quorate_core::planted::Bug;
use quorate_sim::workload::run_seed;

/// Seeds that `make test` has time for. `make sim SEEDS=10000` runs more.
const SEEDS: u64 = 200;

/// Two threads share the seeds: no run shares state with another.
#[test]
fn random_seeds_keep_every_promise() {
    std::thread::scope(|scope| {
        for half in 0..2 {
            scope.spawn(move || {
                for seed in (half..SEEDS).step_by(2) {
                    let outcome = run_seed(seed, 5, None);
                    assert_eq!(outcome.violations, [], "seed {seed}; replay it: quorate-sim show {seed}");
                }
            });
        }
    });
}

/// Other sizes: as few nodes as replicas, and enough nodes for quorums on both sides of a cut.
#[test]
fn smaller_and_larger_clusters_keep_every_promise() {
    for (nodes, seeds) in [(3, 25), (4, 10), (7, 15)] {
        for seed in 0..seeds {
            let outcome = run_seed(seed, nodes, None);
            assert_eq!(outcome.violations, [], "seed {seed} with {nodes} nodes");
        }
    }
}

/// One seed always gives the same log, byte for byte. Another seed gives another log.
#[test]
fn a_seed_replays_exactly() {
    for seed in [1, 26, 405] {
        let (first, second) = (run_seed(seed, 5, None), run_seed(seed, 5, None));
        assert!(first.log.len() > 100, "something happens in seed {seed}");
        assert_eq!(first.log, second.log, "seed {seed}");
        assert_ne!(first.log, run_seed(seed + 1, 5, None).log);
    }
}

/// Each planted bug has a seed that finds it. Without the bug the seed finds nothing.
#[test]
fn planted_bugs_are_found() {
    let finds = |(bug, seed): &(Bug, u64)| !run_seed(*seed, 5, Some(*bug)).violations.is_empty();
    let missed: Vec<(Bug, u64)> = CAUGHT_BY.into_iter().filter(|pinned| !finds(pinned)).collect();
    assert_eq!(missed, [], "planted, and not found by these seeds");
    for (_, seed) in CAUGHT_BY {
        assert_eq!(run_seed(seed, 5, None).violations, [], "seed {seed} without a bug");
    }
    let planted: Vec<Bug> = CAUGHT_BY.iter().map(|(bug, _)| *bug).collect();
    assert_eq!(planted, Bug::ALL, "each bug has its seed");
}

/// For each planted bug, a seed whose run finds it. `make sim-bugs` searches for such seeds.
const CAUGHT_BY: [(Bug, u64); 21] = [
    (Bug::HintDeletedBeforeAck, 0),
    (Bug::ChangedHintDeleted, 33),
    (Bug::GcIgnoresHints, 297),
    (Bug::GcAsksOnce, 110),
    (Bug::GcIgnoresTheDead, 297),
    (Bug::ActorReusedAfterStart, 16),
    (Bug::BareWriteReplicated, 147),
    (Bug::PutAnswersWholeVector, 0),
    (Bug::RepairOverwrites, 8),
    (Bug::FallbackAnswersAbsent, 10),
    (Bug::AmnesiacAnswers, 46),
    (Bug::RequestIdIgnored, 1),
    (Bug::ResolverInMerges, 0),
    (Bug::AckBeforeDurable, 0),
    (Bug::ReadsMoveBeforeSynced, 225),
    (Bug::SyncBeforeAllAcked, 3),
    (Bug::SyncedFromOne, 28),
    (Bug::QuorumOverUnion, 631),
    (Bug::LeftoversDropped, 677),
    (Bug::LayoutNotStored, 2),
    (Bug::RedefinedKeysStay, 191),
];
