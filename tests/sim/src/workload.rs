//! One seed: clients that read, write, delete and retry, and a nemesis that breaks things under them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use quorate_core::change::Change;
use quorate_core::planted::Bug;
use quorate_core::request::QuorumSize;
use quorate_core::{BucketDefinition, Key, Payload};

use crate::disk::Durability;
use crate::random::Random;
use crate::sim::{How, LAST_WINS, MAX_SKEW_MS, Options, Outcome, Over, REDEFINED, SIBLINGS, Sim, run};

/// Padding of some values.
const LARGE_VALUE_BYTES: usize = 1_100;
const CLIENTS: usize = 5;
/// Keys of a run, in the bucket that keeps siblings and in the other: few that are overwritten all the time, or many of
/// which each write stands for long.
const KEYS: [(usize, usize); 3] = [(3, 1), (12, 3), (45, 5)];
const REDEFINED_KEYS: usize = 4;
const READS_AFTER_LOSS: usize = 30;
/// Attempts at one write.
const ATTEMPTS: u16 = 3;

/// Runs a seed and holds it against the promises.
pub fn run_seed(seed: u64, nodes: usize, bug: Option<Bug>) -> Outcome {
    let mut random = Random::new(seed ^ 0x5eed);
    // Where nobody dies, tombstones are reaped soon: what arrives late is all the trouble there is.
    let only_late = random.chance(30);
    // Whether layouts change is the seed's, too.
    let spares = if !only_late && random.chance(35) { 2 } else { 0 };
    // Where they change, less is done besides that would mend what a change of layout broke.
    let (mends, sloppy) = if spares > 0 { (30, 30) } else { (60, 70) };
    let options = Options {
        nodes,
        spares,
        durability: if random.chance(80) { Durability::Fsync } else { Durability::Interval },
        anti_entropy: random.chance(mends),
        reaping: only_late || random.chance(60),
        bug,
        partitions: *random.pick(&[8, 64]),
        gossip: random.chance(40),
        transfer_bytes_per_s: *random.pick(&[1024 * 1024, 4 * 1024, 512]),
        bucket: BucketDefinition { sloppy: random.chance(sloppy), ..BucketDefinition::default() },
        ..Options::default()
    };
    // Drawn apart from the rest, which stays as it is without it.
    let mut own = Random::new(seed ^ 0xb0c4e7);
    let redefines = !only_late && own.chance(15);
    let (soon, mut hints) = (own.fork(), own.fork());
    let keeps_hints = options.reaping && !only_late && hints.chance(30);
    run(seed, options, async |sim| {
        let ring = |bucket: &str, number: usize| {
            Key::new(bucket.as_bytes(), format!("k{number}").as_bytes()).expect("a valid key")
        };
        let (siblings, last_wins) = if only_late { KEYS[2] } else { *random.pick(&KEYS) };
        let keys: Vec<Key> = (0..siblings)
            .map(|number| ring(SIBLINGS, number))
            .chain((0..last_wins).map(|number| ring(LAST_WINS, number)))
            .chain((0..if redefines { REDEFINED_KEYS } else { 0 }).map(|number| ring(REDEFINED, number)))
            .collect();
        let (ends, quiet) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let mut tasks = Vec::new();
        for number in 0..CLIENTS {
            let client = Client {
                number,
                sim: sim.clone(),
                random: RefCell::new(sim.random()),
                keys: keys.clone(),
                seen: RefCell::default(),
                values: Cell::new(0),
                churns: only_late,
            };
            let (ends, quiet) = (ends.clone(), quiet.clone());
            tasks.push(tokio::task::spawn_local(async move {
                while !ends.get() {
                    match quiet.get() {
                        true => client.sim.sleep(500).await,
                        false => client.act().await,
                    }
                }
            }));
        }
        if keeps_hints {
            let (sim, ends) = (sim.clone(), ends.clone());
            tasks.push(tokio::task::spawn_local(async move { keep_hints(&sim, hints, &ends).await }));
        }
        if redefines {
            let (sim, ends) = (sim.clone(), ends.clone());
            tasks.push(tokio::task::spawn_local(async move { redefine(&sim, own, &ends).await }));
        }
        // Nothing is reaped before a grace period is over.
        let lasts = if only_late { 30_000 } else { 12_000 } + random.below(28_000);
        nemesis(sim, sim.random(), lasts, &keys, &quiet, only_late, soon.clone()).await;
        ends.set(true);
        for task in tasks {
            if let Err(error) = task.await {
                sim.oracle.report(crate::oracle::Rule::Crash, error.to_string());
            }
        }
        sim.settle().await;
        if sim.options.reaping {
            // Long enough for what can be reaped to be, and for what was reaped to show whether it stays so.
            sim.sleep(2 * sim.options.settings().reaping.grace_ms + 5_000).await;
            sim.settle().await;
        }
        sim.check_end(&keys);
        sim.log.add(format!("{:?}", sim.oracle));
    })
}

/// Operators give a bucket that is in use an n of its own: with the keys there are.
async fn redefine(sim: &Rc<Sim>, mut random: Random, ends: &Cell<bool>) {
    while !ends.get() && !sim.layout().buckets().is_declared(REDEFINED) {
        sim.sleep(500 + random.below(6_000)).await;
        let up: Vec<usize> = sim.members().into_iter().filter(|&node| sim.is_running(node)).collect();
        if up.is_empty() {
            continue;
        }
        let (one, other) = (*random.pick(&up), *random.pick(&up));
        let mut with_n = || {
            let n = Some(1 + random.below(2) as u8);
            let definition = BucketDefinition { n, sloppy: random.chance(50), ..BucketDefinition::default() };
            vec![Change::Bucket { name: REDEFINED.to_owned(), definition }]
        };
        let (first, second) = (with_n(), with_n());
        if random.chance(30) {
            futures::future::join(sim.change(one, first), sim.change(other, second)).await;
        } else {
            sim.change(one, first).await;
        }
    }
}

/// Somebody who keeps hints for a node can't reach it for longer than a grace period, when all others can; or nobody can.
async fn keep_hints(sim: &Rc<Sim>, mut random: Random, ends: &Cell<bool>) {
    while !ends.get() {
        sim.sleep(500 + random.below(2_000)).await;
        let count = sim.count() as u64;
        let target = random.below(count) as usize;
        let keeper = (target + 1 + random.below(count - 1) as usize) % count as usize;
        if !sim.is_running(target)
            || (0..sim.count()).filter(|&node| !sim.is_running(node)).count() >= MOST_DOWN
        {
            continue;
        }
        let stays_away = random.chance(50);
        sim.log.add(format!("n{keeper} keeps hints of n{target}, which stays away: {stays_away}"));
        sim.kill(target);
        sim.sleep(500 + random.below(2_500)).await;
        let until = sim.now_ms() + sim.options.settings().reaping.grace_ms + random.below(8_000);
        while sim.now_ms() < until && !ends.get() {
            // Whatever else is mended meanwhile.
            match stays_away {
                true if sim.is_running(target) => sim.kill(target),
                true => {}
                false => {
                    sim.net.cut(keeper, target);
                    sim.net.cut(target, keeper);
                    sim.start(target);
                }
            }
            sim.sleep(100).await;
        }
        sim.net.mend(keeper, target);
        sim.net.mend(target, keeper);
        sim.start(target);
    }
}

/// A node that has just lost its disk comes back at once, and its keys are read before it can know them again.
async fn start_and_read(sim: &Rc<Sim>, node: usize, keys: &[Key], mut random: Random) {
    sim.sleep(random.below(400)).await;
    sim.start(node);
    for _ in 0..READS_AFTER_LOSS {
        sim.sleep(random.below(40)).await;
        let key = random.pick(keys).clone();
        let via = random.below(sim.count() as u64) as usize;
        sim.read(CLIENTS, via, &key, QuorumSize::Default).await;
    }
}

struct Client {
    number: usize,
    sim: Rc<Sim>,
    random: RefCell<Random>,
    keys: Vec<Key>,
    seen: RefCell<BTreeMap<Key, Bytes>>,
    values: Cell<u64>,
    /// It deletes much of what it writes, soon.
    churns: bool,
}

impl Client {
    fn draw(&self, bound: u64) -> u64 {
        self.random.borrow_mut().below(bound)
    }

    fn via(&self) -> usize {
        let nodes = self.sim.count() as u64;
        let some = self.draw(nodes) as usize;
        // Mostly somebody who is there, as a client that is told of dead nodes would.
        if self.sim.is_running(some) || self.draw(100) < 10 {
            return some;
        }
        (0..self.sim.count()).find(|&node| self.sim.is_running(node)).unwrap_or(some)
    }

    fn size(&self) -> QuorumSize {
        match self.draw(10) {
            0 => QuorumSize::Count(1),
            1 => QuorumSize::All,
            _ => QuorumSize::Default,
        }
    }

    fn value(&self) -> String {
        self.values.set(self.values.get() + 1);
        let value = format!("c{}-{}", self.number, self.values.get());
        // Some are large enough to lie behind the rest of their record.
        if self.values.get().is_multiple_of(8) {
            format!("{value}{}", ".".repeat(LARGE_VALUE_BYTES))
        } else {
            value
        }
    }

    async fn act(&self) {
        self.sim.sleep(5 + self.draw(250)).await;
        let key = self.keys[self.draw(self.keys.len() as u64) as usize].clone();
        let seen = self.seen.borrow().get(&key).cloned().unwrap_or_default();
        let value = || Payload::Value(self.value().into());
        if self.churns && self.draw(100) < 60 {
            self.write(&key, value(), Over::WhatIsThere(seen)).await;
            self.sim.sleep(self.draw(200)).await;
            if let Some(context) = self.read(&key, QuorumSize::Default).await {
                self.write(&key, Payload::Tombstone, Over::Exactly(context)).await;
            }
            return;
        }
        match self.draw(100) {
            0..30 => {
                let size = self.size();
                self.read(&key, size).await;
            }
            30..55 => {
                if let Some(context) = self.read(&key, QuorumSize::Default).await {
                    self.write(&key, value(), Over::Exactly(context)).await;
                }
            }
            55..72 => self.write(&key, value(), Over::WhatIsThere(seen)).await,
            72..80 => self.write(&key, value(), Over::Nothing).await,
            80..86 => self.write(&key, value(), Over::Exactly(seen)).await,
            _ => {
                if let Some(context) = self.read(&key, QuorumSize::Default).await {
                    self.write(&key, Payload::Tombstone, Over::Exactly(context)).await;
                }
            }
        }
    }

    async fn read(&self, key: &Key, r: QuorumSize) -> Option<Bytes> {
        let reply = self.sim.read(self.number, self.via(), key, r).await?.ok()?;
        self.seen.borrow_mut().insert(key.clone(), reply.context.clone());
        Some(reply.context)
    }

    /// A write and its retries, one after the other, under one request id.
    async fn write(&self, key: &Key, payload: Payload, over: Over) {
        let request = self.sim.new_request();
        let w = self.size();
        let sloppy = [None, None, Some(true), Some(false)][self.draw(4) as usize];
        let gives_up = self.draw(100) < 20;
        for attempt in 0..ATTEMPTS {
            let how = How { client: self.number, w, sloppy, timeout_ms: 400 + self.draw(800), attempt };
            let begun = self.sim.now_ms();
            let heard = self.sim.attempt(self.via(), key, payload.clone(), &over, request, how).await;
            match heard {
                Some(Ok(reply)) => {
                    self.seen.borrow_mut().insert(key.clone(), reply.context);
                    return;
                }
                Some(Err(error)) if !error.is_retryable() => return,
                _ if gives_up => return,
                _ => {}
            }
            // The next attempt begins when this one's deadline is over.
            let over_at = begun + how.timeout_ms;
            self.sim.sleep(over_at.saturating_sub(self.sim.now_ms()) + self.draw(300)).await;
        }
    }
}

/// What the nemesis can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
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
    DiskFull,
    DiskFree,
    Damage,
    Quiet,
    Join,
    Leave,
    Replace,
    Remove,
    Weigh,
    Two,
}

/// Each with how often it is drawn where it is drawn at all. What mends is never left out.
const ACTS: [(Act, u64, bool); 25] = [
    (Act::Kill, 6, false),
    (Act::PowerOff, 6, false),
    (Act::Stop, 3, false),
    (Act::Wipe, 5, false),
    (Act::AllPowerOff, 1, false),
    (Act::Start, 16, true),
    (Act::Isolate, 4, false),
    (Act::CutPair, 4, false),
    (Act::CutOneWay, 4, false),
    (Act::Hold, 4, false),
    (Act::Heal, 9, true),
    (Act::Pause, 3, false),
    (Act::Resume, 4, true),
    (Act::Skew, 3, false),
    (Act::Slow, 3, false),
    (Act::DiskFull, 2, false),
    (Act::DiskFree, 2, true),
    (Act::Damage, 2, false),
    (Act::Quiet, 5, true),
    (Act::Join, 5, false),
    (Act::Leave, 4, false),
    (Act::Replace, 6, false),
    (Act::Remove, 2, false),
    (Act::Weigh, 3, false),
    (Act::Two, 3, false),
];

/// Changes of layout in one run.
const MOST_CHANGES: usize = 12;

/// Nodes that may be down at a time.
const MOST_DOWN: usize = 3;
/// Disks that are lost in one run.
const MOST_WIPES: usize = 3;

/// Breaks something every now and then, and mends it later. Each seed draws what kinds of trouble it has: few kinds, and
/// much of each, find more than all of them at once.
async fn nemesis(
    sim: &Rc<Sim>,
    mut random: Random,
    lasts_ms: u64,
    keys: &[Key],
    quiet: &Cell<bool>,
    only_late: bool,
    mut soon: Random,
) {
    let nodes = sim.count();
    let ends = sim.now_ms() + lasts_ms;
    let mut acts = Vec::new();
    for (act, weight, mends) in ACTS {
        let weight = match (only_late, act) {
            (true, Act::Hold) => 12,
            (true, Act::Slow | Act::Skew | Act::Heal | Act::Quiet) => 1,
            (true, _) => 0,
            (false, Act::Join | Act::Leave | Act::Replace | Act::Remove | Act::Weigh | Act::Two) => {
                if sim.options.spares > 0 { 2 * weight } else { 0 }
            }
            (false, _) if mends || random.chance(45) => weight * (1 + random.below(3)),
            (false, _) => 0,
        };
        acts.extend(std::iter::repeat_n(act, weight as usize));
    }
    let pace = if only_late { 500 } else { 200 + random.below(2_500) };
    let mut wipes = 0;
    let mut changes = 0;
    while sim.now_ms() < ends {
        sim.sleep(100 + random.below(pace)).await;
        let node = random.below(nodes as u64) as usize;
        let other = (node + 1 + random.below(nodes as u64 - 1) as usize) % nodes;
        let down = (0..nodes).filter(|&node| !sim.is_running(node)).count();
        let act = *random.pick(&acts);
        if matches!(act, Act::Join | Act::Leave | Act::Replace | Act::Remove | Act::Weigh | Act::Two) {
            if changes < MOST_CHANGES {
                changes += 1;
                let before: Vec<Vec<usize>> = keys.iter().map(|key| sim.replicas(key)).collect();
                change_layout(sim, act, &mut random, &mut wipes).await;
                cut_off_who_stays(sim, keys, &before, ends, &mut soon);
            }
            continue;
        }
        match act {
            Act::Kill if down < MOST_DOWN => sim.kill(node),
            Act::PowerOff if down < MOST_DOWN => sim.power_off(node),
            Act::Stop if down < MOST_DOWN => sim.stop(node).await,
            Act::Wipe if down < MOST_DOWN && wipes < MOST_WIPES => {
                wipes += 1;
                sim.power_off(node);
                sim.wipe(node);
                if soon.chance(60) {
                    let (sim, keys, random) = (sim.clone(), keys.to_vec(), soon.fork());
                    tokio::task::spawn_local(async move { start_and_read(&sim, node, &keys, random).await });
                }
                if random.chance(60) {
                    sim.start(node);
                }
            }
            Act::AllPowerOff => {
                (0..nodes).for_each(|node| sim.power_off(node));
                sim.sleep(random.below(1_000)).await;
                (0..nodes).for_each(|node| sim.start(node));
            }
            Act::Start => sim.start(node),
            Act::Isolate => sim.isolate(node),
            Act::CutPair => sim.cut_off(&[node, other]),
            Act::CutOneWay => {
                sim.log.add(format!("cut n{node} -> n{other}"));
                sim.net.cut(node, other);
            }
            Act::Hold => {
                sim.log.add(format!("hold n{node} -> n{other}"));
                sim.net.hold(node, other);
                let (sim, lasts) = (sim.clone(), 500 + random.below(3_500));
                tokio::task::spawn_local(async move {
                    sim.sleep(lasts).await;
                    sim.log.add(format!("release n{node} -> n{other}"));
                    sim.net.release_from(node, other);
                });
            }
            Act::Heal => sim.heal(),
            Act::Pause => sim.pause(node),
            Act::Resume => (0..nodes).for_each(|node| sim.resume(node)),
            Act::Skew => sim.skew(node, random.below(MAX_SKEW_MS) as i64 - MAX_SKEW_MS as i64 / 2),
            Act::Slow => {
                let extra = random.below(120);
                sim.log.add(format!("n{node} slower by {extra} ms"));
                sim.net.slow(node, extra);
            }
            Act::DiskFull => sim.set_full(node, true),
            Act::DiskFree => (0..nodes).for_each(|node| sim.set_full(node, false)),
            // What rots while a node is down is found when it builds its trees; while it runs, when it is read.
            Act::Damage if !sim.is_running(node) => sim.damage(node, random.pick(keys)),
            Act::Quiet if sim.options.reaping => {
                // Long enough for a grace period to end while somebody is away.
                sim.log.add("quiet");
                quiet.set(true);
                sim.sleep(10_000 + random.below(14_000)).await;
                quiet.set(false);
            }
            _ => {}
        }
    }
}

/// The cut that a change of layout must fear most, now and then: some key's replicas that stay see neither those that go nor
/// those that come, while clients use both sides.
fn cut_off_who_stays(sim: &Rc<Sim>, keys: &[Key], before: &[Vec<usize>], ends: u64, random: &mut Random) {
    let moved: Vec<Vec<usize>> = keys
        .iter()
        .zip(before)
        .map(|(key, old)| (old, sim.replicas(key)))
        .filter(|(old, new)| *old != new)
        .map(|(old, new)| old.iter().copied().filter(|node| new.contains(node)).collect())
        .filter(|stay: &Vec<usize>| !stay.is_empty())
        .collect();
    if moved.is_empty() || !random.chance(40) {
        return;
    }
    let (sim, stay) = (sim.clone(), random.pick(&moved).clone());
    let (begins, lasts) = (random.below(1_500), 1_000 + random.below(4_000));
    // Nothing is cut any more where the run comes to rest.
    let left = ends.saturating_sub(sim.now_ms() + begins);
    if left == 0 {
        return;
    }
    tokio::task::spawn_local(async move {
        sim.sleep(begins).await;
        sim.cut_off(&stay);
        sim.sleep(lasts.min(left)).await;
        sim.heal();
    });
}

/// An operator changes the layout, through whoever answers.
async fn change_layout(sim: &Rc<Sim>, act: Act, random: &mut Random, wipes: &mut usize) {
    let layout = sim.layout();
    let members = sim.members();
    let waiting: Vec<usize> = (0..sim.count())
        .filter(|node| !members.contains(node) && sim.is_running(*node) && !sim.was_lost(*node))
        .collect();
    let up: Vec<usize> = members.iter().copied().filter(|&node| sim.is_running(node)).collect();
    let Some(&via) = (!up.is_empty()).then(|| random.pick(&up)) else { return };
    let some = *random.pick(&members);
    let may_shrink = members.len() > usize::from(layout.replicas());
    let weight = 50 + random.below(200) as u16;
    let leave = |node: usize| Change::Leave { name: sim.name(node) };
    match act {
        Act::Join => {
            let count = 1 + random.below(2) as usize;
            let joining: Vec<Change> = waiting.iter().take(count).map(|&node| sim.joining(node)).collect();
            if !joining.is_empty() {
                sim.change(via, joining).await;
            }
        }
        Act::Leave if may_shrink => {
            sim.change(via, vec![leave(some)]).await;
        }
        Act::Replace => {
            // One, or two together: then some partitions have one old replica left.
            let mut goes = members.clone();
            let mut changes = Vec::new();
            for &by in waiting.iter().take(1 + random.below(2) as usize) {
                let some = goes.swap_remove(random.below(goes.len() as u64) as usize);
                changes.extend([leave(some), sim.joining(by)]);
            }
            if !changes.is_empty() {
                sim.change(via, changes).await;
            }
        }
        // Only who is down is declared lost, as an operator would; it may come back with all it had, and is refused.
        Act::Remove if may_shrink && *wipes < MOST_WIPES => {
            let down = members.iter().copied().find(|&node| !sim.is_running(node));
            let Some(dead) = down else { return };
            let mut changes = vec![Change::Remove { name: sim.name(dead) }];
            if random.chance(50) {
                changes.extend(waiting.first().map(|&by| sim.joining(by)));
            }
            *wipes += 1;
            sim.declare_lost(dead);
            sim.change(via, changes).await;
        }
        Act::Weigh => {
            sim.change(via, vec![Change::Weight { name: sim.name(some), weight }]).await;
        }
        // Two operators at once, perhaps on two sides of a cut.
        Act::Two => {
            let other = *random.pick(&up);
            let changes = match waiting.first() {
                Some(&node) => vec![sim.joining(node)],
                None if may_shrink => vec![leave(*random.pick(&members))],
                None => return,
            };
            let weigh = vec![Change::Weight { name: sim.name(some), weight }];
            futures::future::join(sim.change(via, changes), sim.change(other, weigh)).await;
        }
        _ => {}
    }
}
