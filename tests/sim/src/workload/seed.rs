//! One seed's run: draws the cluster, the faults and the workload from the seed, runs them, and
//! checks the end state.

use std::rc::Rc;

use quorate_core::planted::Bug;
use quorate_core::{BucketDefinition, Key};
use tokio::task::JoinHandle;

use super::clients::{Activity, CLIENTS, Client, RequestMix};
use super::nemesis::{FaultMix, Nemesis};
use super::operator::redefine_bucket;
use super::scripted_faults::keep_hints;
use crate::oracle::Rule;
use crate::random::Random;
use crate::world::{Durability, LAST_WINS, Options, Outcome, REDEFINED, SIBLINGS, Sim, run};

/// Numbers of keys in a run: few keys that are overwritten often, or many that are overwritten
/// rarely.
static KEYS: [KeyCounts; 3] = [
    KeyCounts { siblings: 3, last_wins: 1 },
    KeyCounts { siblings: 12, last_wins: 3 },
    KeyCounts { siblings: 45, last_wins: 5 },
];

/// Number of keys of the bucket [`REDEFINED`], in a run that redefines it.
const REDEFINED_KEYS: usize = 4;

/// Numbers of keys, by bucket.
struct KeyCounts {
    siblings: usize,
    last_wins: usize,
}

/// Runs a seed. The outcome names the rules that the run broke.
pub fn run_seed(seed: u64, nodes: usize, bug: Option<Bug>) -> Outcome {
    let mut plan = Plan::draw(seed, nodes, bug);
    run(seed, plan.options.clone(), async |sim| {
        let keys = plan.draw_keys();
        let activity = Rc::new(Activity::default());
        let mut tasks = spawn_clients(sim, &keys, plan.mix, &activity);
        if plan.keeps_hints {
            let (sim, activity, random) = (sim.clone(), activity.clone(), plan.hints_random.clone());
            tasks.push(tokio::task::spawn_local(async move {
                keep_hints(&sim, random, &activity.ended).await;
            }));
        }
        if plan.redefines {
            let (sim, activity, random) = (sim.clone(), activity.clone(), plan.bucket_random.clone());
            tasks.push(tokio::task::spawn_local(async move {
                redefine_bucket(&sim, random, &activity.ended).await;
            }));
        }
        let lasts_ms = plan.draw_duration_ms();
        let nemesis = Nemesis {
            sim: sim.clone(),
            random: sim.random(),
            scripts_random: plan.scripts_random.clone(),
            mix: plan.mix,
            keys: keys.clone(),
            activity: activity.clone(),
            lost_disks: 0,
            layout_changes: 0,
        };
        nemesis.run(lasts_ms).await;
        activity.ended.set(true);
        for task in tasks {
            if let Err(error) = task.await {
                sim.oracle.report(Rule::Crash, error.to_string());
            }
        }
        check_end(sim, &keys).await;
    })
}

/// The draws of a seed before its run begins.
struct Plan {
    options: Options,
    mix: FaultMix,
    /// True if operators redefine the bucket [`REDEFINED`].
    redefines: bool,
    /// True if a node keeps hints for longer than a grace period.
    keeps_hints: bool,
    random: Random,
    bucket_random: Random,
    scripts_random: Random,
    hints_random: Random,
}

impl Plan {
    fn draw(seed: u64, nodes: usize, bug: Option<Bug>) -> Plan {
        let mut random = Random::new(seed ^ 0x5eed);
        let mix = if random.chance(30) { FaultMix::OnlyDelays } else { FaultMix::All };
        let only_delays = mix == FaultMix::OnlyDelays;
        let spares = if !only_delays && random.chance(35) { 2 } else { 0 };
        // Anti-entropy and hints can hide what a layout change broke: fewer runs with layout
        // changes use them.
        let (anti_entropy, sloppy) = if spares > 0 { (30, 30) } else { (60, 70) };
        let options = Options {
            nodes,
            spares,
            durability: if random.chance(80) { Durability::Fsync } else { Durability::Interval },
            anti_entropy: random.chance(anti_entropy),
            tombstone_gc: only_delays || random.chance(60),
            bug,
            partitions: *random.pick(&[8, 64]),
            gossip: random.chance(40),
            transfer_bytes_per_s: *random.pick(&[1024 * 1024, 4 * 1024, 512]),
            bucket: BucketDefinition { sloppy: random.chance(sloppy), ..BucketDefinition::default() },
            ..Options::default()
        };
        // This generator is separate, so that its draws do not change the other draws of a seed.
        let mut bucket_random = Random::new(seed ^ 0xb0c4e7);
        let redefines = !only_delays && bucket_random.chance(15);
        let (scripts_random, mut hints_random) = (bucket_random.fork(), bucket_random.fork());
        let keeps_hints = options.tombstone_gc && !only_delays && hints_random.chance(30);
        Plan { options, mix, redefines, keeps_hints, random, bucket_random, scripts_random, hints_random }
    }

    fn draw_keys(&mut self) -> Vec<Key> {
        let counts = match self.mix {
            FaultMix::OnlyDelays => &KEYS[2],
            FaultMix::All => self.random.pick(&KEYS),
        };
        let redefined = if self.redefines { REDEFINED_KEYS } else { 0 };
        let mut keys = Vec::new();
        for (bucket, count) in
            [(SIBLINGS, counts.siblings), (LAST_WINS, counts.last_wins), (REDEFINED, redefined)]
        {
            let key = |number| Key::new(bucket.as_bytes(), format!("k{number}").as_bytes());
            keys.extend((0..count).map(|number| key(number).expect("a valid key")));
        }
        keys
    }

    /// Draws the time for which the nemesis injects faults.
    fn draw_duration_ms(&mut self) -> u64 {
        // A run of delays alone is longer: no node collects a tombstone before a grace period ends.
        let shortest_ms = match self.mix {
            FaultMix::OnlyDelays => 30_000,
            FaultMix::All => 12_000,
        };
        shortest_ms + self.random.below(28_000)
    }
}

fn spawn_clients(sim: &Rc<Sim>, keys: &[Key], mix: FaultMix, activity: &Rc<Activity>) -> Vec<JoinHandle<()>> {
    let requests = match mix {
        FaultMix::OnlyDelays => RequestMix::SoonDeleted,
        FaultMix::All => RequestMix::Even,
    };
    let mut tasks = Vec::new();
    for number in 0..CLIENTS {
        let client = Client::new(number, sim, keys.to_vec(), requests);
        let activity = activity.clone();
        tasks.push(tokio::task::spawn_local(async move { client.run(&activity).await }));
    }
    tasks
}

/// Waits until the cluster has converged, and checks the end state of the keys.
async fn check_end(sim: &Rc<Sim>, keys: &[Key]) {
    sim.converge().await;
    if sim.options.tombstone_gc {
        // Long enough to collect every tombstone, and to show if a deleted value returns.
        sim.sleep(2 * sim.options.settings().tombstone_gc.grace_ms + 5_000).await;
        sim.converge().await;
    }
    sim.check_end(keys);
    sim.log.add(format!("{:?}", sim.oracle));
}
