//! One seed: clients that read, write, delete and retry, and a nemesis that breaks things under them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use quorate_core::planted::Bug;
use quorate_core::request::QuorumSize;
use quorate_core::{BucketDefinition, Key, Payload};

use crate::disk::Durability;
use crate::random::Random;
use crate::sim::{How, LAST_WINS, MAX_SKEW_MS, Options, Outcome, Over, SIBLINGS, Sim, run};

const CLIENTS: usize = 4;
const SIBLING_KEYS: usize = 3;
const LAST_WINS_KEYS: usize = 1;
/// Attempts at one write.
const ATTEMPTS: u16 = 3;

/// Runs a seed and holds it against the promises.
pub fn run_seed(seed: u64, nodes: usize, bug: Option<Bug>) -> Outcome {
    let mut random = Random::new(seed ^ 0x5eed);
    let options = Options {
        nodes,
        durability: if random.chance(80) { Durability::Fsync } else { Durability::Interval },
        anti_entropy: random.chance(60),
        reaping: random.chance(70),
        bug,
        bucket: BucketDefinition { sloppy: random.chance(70), ..BucketDefinition::default() },
        ..Options::default()
    };
    run(seed, options, async |sim| {
        let ring = |bucket: &str, number: usize| {
            Key::new(bucket.as_bytes(), format!("k{number}").as_bytes()).expect("a valid key")
        };
        let keys: Vec<Key> = (0..SIBLING_KEYS)
            .map(|number| ring(SIBLINGS, number))
            .chain((0..LAST_WINS_KEYS).map(|number| ring(LAST_WINS, number)))
            .collect();
        let ends = Rc::new(Cell::new(false));
        let mut tasks = Vec::new();
        for number in 0..CLIENTS {
            let client = Client {
                number,
                sim: sim.clone(),
                random: RefCell::new(sim.random()),
                keys: keys.clone(),
                seen: RefCell::default(),
                values: Cell::new(0),
            };
            let ends = ends.clone();
            tasks.push(tokio::task::spawn_local(async move {
                while !ends.get() {
                    client.act().await;
                }
            }));
        }
        let lasts = 12_000 + random.below(28_000);
        nemesis(sim, sim.random(), lasts).await;
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

struct Client {
    number: usize,
    sim: Rc<Sim>,
    random: RefCell<Random>,
    keys: Vec<Key>,
    seen: RefCell<BTreeMap<Key, Bytes>>,
    values: Cell<u64>,
}

impl Client {
    fn draw(&self, bound: u64) -> u64 {
        self.random.borrow_mut().below(bound)
    }

    fn via(&self) -> usize {
        let nodes = self.sim.options.nodes as u64;
        let some = self.draw(nodes) as usize;
        // Mostly somebody who is there, as a client that is told of dead nodes would.
        if self.sim.is_running(some) || self.draw(100) < 10 {
            return some;
        }
        (0..self.sim.options.nodes).find(|&node| self.sim.is_running(node)).unwrap_or(some)
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
        format!("c{}-{}", self.number, self.values.get())
    }

    async fn act(&self) {
        self.sim.sleep(20 + self.draw(400)).await;
        let key = self.keys[self.draw(self.keys.len() as u64) as usize].clone();
        let seen = self.seen.borrow().get(&key).cloned().unwrap_or_default();
        let value = || Payload::Value(self.value().into());
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
            let how = How { w, sloppy, timeout_ms: 400 + self.draw(800), attempt };
            let begun = self.sim.now_ms();
            let heard =
                self.sim.attempt(self.number, self.via(), key, payload.clone(), &over, request, how).await;
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

/// Breaks something every now and then, and mends it later.
async fn nemesis(sim: &Rc<Sim>, mut random: Random, lasts_ms: u64) {
    let nodes = sim.options.nodes;
    let ends = sim.now_ms() + lasts_ms;
    let mut wipes = 0;
    while sim.now_ms() < ends {
        sim.sleep(200 + random.below(2_500)).await;
        let node = random.below(nodes as u64) as usize;
        let down = (0..nodes).filter(|&node| !sim.is_running(node)).count();
        match random.below(100) {
            0..14 if down < 2 => sim.kill(node),
            14..22 if down < 2 => sim.power_off(node),
            22..27 if down < 2 => sim.stop(node).await,
            27..33 if down < 2 && wipes < 2 => {
                wipes += 1;
                sim.power_off(node);
                sim.wipe(node);
            }
            33..36 if down == 0 && random.chance(30) => {
                for node in 0..nodes {
                    sim.power_off(node);
                }
                sim.sleep(random.below(1_000)).await;
                (0..nodes).for_each(|node| sim.start(node));
            }
            36..58 => sim.start(node),
            58..63 => sim.isolate(node),
            63..67 => {
                let other = (node + 1 + random.below(nodes as u64 - 1) as usize) % nodes;
                sim.cut_off(&[node, other]);
            }
            67..71 => {
                let other = (node + 1 + random.below(nodes as u64 - 1) as usize) % nodes;
                sim.log.add(format!("cut n{node} -> n{other}"));
                sim.net.cut(node, other);
            }
            71..75 => {
                let other = (node + 1 + random.below(nodes as u64 - 1) as usize) % nodes;
                sim.log.add(format!("hold n{node} -> n{other}"));
                sim.net.hold(node, other);
            }
            75..86 => sim.heal(),
            86..89 => sim.pause(node),
            89..93 => (0..nodes).for_each(|node| sim.resume(node)),
            93..96 => sim.skew(node, random.below(MAX_SKEW_MS) as i64 - MAX_SKEW_MS as i64 / 2),
            96..98 => sim.set_full(node, true),
            _ => {
                (0..nodes).for_each(|node| sim.set_full(node, false));
                // Now and then a long quiet: long enough for a grace period to end while somebody is away.
                if random.chance(40) {
                    sim.sleep(12_000).await;
                }
            }
        }
    }
}
