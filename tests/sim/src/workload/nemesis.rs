//! The nemesis: injects faults at random times, repairs them later, and lets operators change the
//! layout.

use std::rc::Rc;

use quorate_core::Key;

use super::clients::Activity;
use super::limits::{MAX_DOWN, MAX_LAYOUT_CHANGES, MAX_LOST_DISKS};
use super::operator::{ChangeKind, change_layout};
use super::scripted_faults::{cut_off_remaining_replicas, start_and_read};
use crate::random::Random;
use crate::world::{MAX_SKEW_MS, Sim};

/// The nemesis of a run.
///
/// Each seed draws the kinds of actions that its nemesis takes. A run with many actions of few
/// kinds finds more bugs than a run with all kinds.
pub(super) struct Nemesis {
    pub(super) sim: Rc<Sim>,
    pub(super) random: Random,
    /// Generator of the random numbers in scripted faults.
    pub(super) scripts_random: Random,
    pub(super) mix: FaultMix,
    pub(super) keys: Vec<Key>,
    pub(super) activity: Rc<Activity>,
    /// Disks wiped or declared lost so far.
    pub(super) lost_disks: usize,
    /// Layout changes requested so far.
    pub(super) layout_changes: usize,
}

/// The kinds of faults in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FaultMix {
    /// Late messages and wrong clocks. No node goes down, so that tombstones are collected soon.
    OnlyDelays,
    /// All kinds of faults.
    All,
}

/// An action of the nemesis.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Kill,
    PowerOff,
    Stop,
    Wipe,
    AllPowerOff,
    Start,
    Isolate,
    CutPair,
    CutOneWay,
    Hold,
    Heal,
    Pause,
    Resume,
    Skew,
    Slow,
    FillDisk,
    FreeDisks,
    Damage,
    Quiet,
    ChangeLayout(ChangeKind),
}

/// The purpose of an action.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// The action injects a fault. A seed may leave it out.
    Fault,
    /// The action ends faults, or lets the cluster rest. Every run has it.
    Repair,
}

/// An action, and the weight with which a run draws it.
struct Choice {
    action: Action,
    weight: u64,
    purpose: Purpose,
}

const fn fault(action: Action, weight: u64) -> Choice {
    Choice { action, weight, purpose: Purpose::Fault }
}

const fn repair(action: Action, weight: u64) -> Choice {
    Choice { action, weight, purpose: Purpose::Repair }
}

/// All actions. Another order would change the runs of all seeds.
const CHOICES: [Choice; 25] = [
    fault(Action::Kill, 6),
    fault(Action::PowerOff, 6),
    fault(Action::Stop, 3),
    fault(Action::Wipe, 5),
    fault(Action::AllPowerOff, 1),
    repair(Action::Start, 16),
    fault(Action::Isolate, 4),
    fault(Action::CutPair, 4),
    fault(Action::CutOneWay, 4),
    fault(Action::Hold, 4),
    repair(Action::Heal, 9),
    fault(Action::Pause, 3),
    repair(Action::Resume, 4),
    fault(Action::Skew, 3),
    fault(Action::Slow, 3),
    fault(Action::FillDisk, 2),
    repair(Action::FreeDisks, 2),
    fault(Action::Damage, 2),
    repair(Action::Quiet, 5),
    fault(Action::ChangeLayout(ChangeKind::Join), 5),
    fault(Action::ChangeLayout(ChangeKind::Leave), 4),
    fault(Action::ChangeLayout(ChangeKind::Replace), 6),
    fault(Action::ChangeLayout(ChangeKind::Remove), 2),
    fault(Action::ChangeLayout(ChangeKind::Reweight), 3),
    fault(Action::ChangeLayout(ChangeKind::Concurrent), 3),
];

impl Nemesis {
    /// Takes random actions for `lasts_ms` of simulated time.
    pub(super) async fn run(mut self, lasts_ms: u64) {
        let nodes = self.sim.count();
        let ends_ms = self.sim.now_ms() + lasts_ms;
        let actions = self.draw_actions();
        let longest_pause_ms = match self.mix {
            FaultMix::OnlyDelays => 500,
            FaultMix::All => 200 + self.random.below(2_500),
        };
        while self.sim.now_ms() < ends_ms {
            self.sim.sleep(100 + self.random.below(longest_pause_ms)).await;
            let node = self.random.below(nodes as u64) as usize;
            let other = (node + 1 + self.random.below(nodes as u64 - 1) as usize) % nodes;
            match *self.random.pick(&actions) {
                Action::ChangeLayout(change) => self.change_layout(change, ends_ms).await,
                action => self.act(action, node, other).await,
            }
        }
    }

    /// Draws the actions of this run. An action occurs in the list as often as its weight says.
    fn draw_actions(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        for Choice { action, weight, purpose } in CHOICES {
            let weight = match (self.mix, action) {
                (FaultMix::OnlyDelays, Action::Hold) => 12,
                (FaultMix::OnlyDelays, Action::Slow | Action::Skew | Action::Heal | Action::Quiet) => 1,
                (FaultMix::OnlyDelays, _) => 0,
                (FaultMix::All, Action::ChangeLayout(_)) => {
                    if self.sim.options.spares > 0 {
                        2 * weight
                    } else {
                        0
                    }
                }
                (FaultMix::All, _) if purpose == Purpose::Repair || self.random.chance(45) => {
                    weight * (1 + self.random.below(3))
                }
                (FaultMix::All, _) => 0,
            };
            actions.extend(std::iter::repeat_n(action, weight as usize));
        }
        actions
    }

    async fn change_layout(&mut self, change: ChangeKind, ends_ms: u64) {
        if self.layout_changes >= MAX_LAYOUT_CHANGES {
            return;
        }
        self.layout_changes += 1;
        let before: Vec<Vec<usize>> = self.keys.iter().map(|key| self.sim.replicas(key)).collect();
        change_layout(&self.sim, change, &mut self.random, &mut self.lost_disks).await;
        cut_off_remaining_replicas(&self.sim, &self.keys, &before, ends_ms, &mut self.scripts_random);
    }

    async fn act(&mut self, action: Action, node: usize, other: usize) {
        let sim = self.sim.clone();
        let nodes = sim.count();
        let may_go_down = (0..nodes).filter(|&node| !sim.is_running(node)).count() < MAX_DOWN;
        match action {
            Action::Kill if may_go_down => sim.kill(node),
            Action::PowerOff if may_go_down => sim.power_off(node),
            Action::Stop if may_go_down => sim.stop(node).await,
            Action::Wipe if may_go_down && self.lost_disks < MAX_LOST_DISKS => self.wipe(node),
            Action::AllPowerOff => {
                (0..nodes).for_each(|node| sim.power_off(node));
                sim.sleep(self.random.below(1_000)).await;
                (0..nodes).for_each(|node| sim.start(node));
            }
            Action::Start => sim.start(node),
            Action::Isolate => sim.isolate(node),
            Action::CutPair => sim.cut_off(&[node, other]),
            Action::CutOneWay => {
                sim.log.add(format!("cut n{node} -> n{other}"));
                sim.net.cut(node, other);
            }
            Action::Hold => self.hold(node, other),
            Action::Heal => sim.heal(),
            Action::Pause => sim.pause(node),
            Action::Resume => (0..nodes).for_each(|node| sim.resume(node)),
            Action::Skew => sim.skew(node, self.random.below(MAX_SKEW_MS) as i64 - MAX_SKEW_MS as i64 / 2),
            Action::Slow => {
                let extra_ms = self.random.below(120);
                sim.log.add(format!("n{node} slower by {extra_ms} ms"));
                sim.net.set_extra_latency(node, extra_ms);
            }
            Action::FillDisk => sim.fill_disk(node),
            Action::FreeDisks => (0..nodes).for_each(|node| sim.free_disk(node)),
            // The nemesis damages only the disk of a node that is down. The node finds the damage
            // when it starts, because it then reads all records to build its hash trees.
            Action::Damage if !sim.is_running(node) => sim.damage(node, self.random.pick(&self.keys)),
            Action::Quiet if sim.options.tombstone_gc => self.stay_quiet().await,
            _ => {}
        }
    }

    fn wipe(&mut self, node: usize) {
        self.lost_disks += 1;
        self.sim.power_off(node);
        self.sim.wipe(node);
        if self.scripts_random.chance(60) {
            let (sim, keys, random) = (self.sim.clone(), self.keys.clone(), self.scripts_random.fork());
            tokio::task::spawn_local(async move { start_and_read(&sim, node, &keys, random).await });
        }
        if self.random.chance(60) {
            self.sim.start(node);
        }
    }

    /// Holds back the messages of one node to another for some time.
    fn hold(&mut self, node: usize, other: usize) {
        self.sim.log.add(format!("hold n{node} -> n{other}"));
        self.sim.net.hold(node, other);
        let (sim, lasts_ms) = (self.sim.clone(), 500 + self.random.below(3_500));
        tokio::task::spawn_local(async move {
            sim.sleep(lasts_ms).await;
            sim.log.add(format!("release n{node} -> n{other}"));
            sim.net.release_link(node, other);
        });
    }

    /// Stops all clients for so long that a grace period can end while a node is down.
    async fn stay_quiet(&mut self) {
        self.sim.log.add("quiet");
        self.activity.quiet.set(true);
        self.sim.sleep(10_000 + self.random.below(14_000)).await;
        self.activity.quiet.set(false);
    }
}
