//! Scripted faults: sequences that the nemesis's random faults rarely form.

use std::cell::Cell;
use std::rc::Rc;

use quorate_core::Key;
use quorate_core::quorum::QuorumSize;

use super::clients::CLIENTS;
use super::limits::MAX_DOWN;
use crate::random::Random;
use crate::world::Sim;

/// Number of reads after the loss of a disk.
const READS_AFTER_LOSS: usize = 30;

/// Makes a node keep its hints for a target longer than a grace period.
///
/// Either the target stays down, or it runs and only the node with the hints cannot reach it.
pub(super) async fn keep_hints(sim: &Rc<Sim>, mut random: Random, ended: &Cell<bool>) {
    while !ended.get() {
        sim.sleep(500 + random.below(2_000)).await;
        let count = sim.count() as u64;
        let target = random.below(count) as usize;
        let keeper = (target + 1 + random.below(count - 1) as usize) % count as usize;
        let down = (0..sim.count()).filter(|&node| !sim.is_running(node)).count();
        if !sim.is_running(target) || down >= MAX_DOWN {
            continue;
        }
        let stays_down = random.chance(50);
        sim.log.add(format!("n{keeper} keeps hints of n{target}, which stays away: {stays_down}"));
        sim.kill(target);
        sim.sleep(500 + random.below(2_500)).await;
        let until_ms = sim.now_ms() + sim.options.settings().tombstone_gc.grace_ms + random.below(8_000);
        while sim.now_ms() < until_ms && !ended.get() {
            // Repeated, because the nemesis may heal the network or start the target meanwhile.
            match stays_down {
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
        sim.net.heal_link(keeper, target);
        sim.net.heal_link(target, keeper);
        sim.start(target);
    }
}

/// Starts a node that has just lost its disk, and reads keys before the node has recovered them.
pub(super) async fn start_and_read(sim: &Rc<Sim>, node: usize, keys: &[Key], mut random: Random) {
    sim.sleep(random.below(400)).await;
    sim.start(node);
    for _ in 0..READS_AFTER_LOSS {
        sim.sleep(random.below(40)).await;
        let key = random.pick(keys).clone();
        let via = random.below(sim.count() as u64) as usize;
        sim.read(CLIENTS, via, &key, QuorumSize::Default).await;
    }
}

/// After a layout change, sometimes cuts off those replicas of a key that stay its replicas.
///
/// This is the most dangerous cut for a layout change: these replicas reach neither the key's
/// former replicas nor its new ones, and clients use both sides. `before` are the replicas of each
/// key before the change.
pub(super) fn cut_off_remaining_replicas(
    sim: &Rc<Sim>,
    keys: &[Key],
    before: &[Vec<usize>],
    ends_ms: u64,
    random: &mut Random,
) {
    let moved: Vec<Vec<usize>> = keys
        .iter()
        .zip(before)
        .map(|(key, old)| (old, sim.replicas(key)))
        .filter(|(old, new)| *old != new)
        .map(|(old, new)| old.iter().copied().filter(|node| new.contains(node)).collect())
        .filter(|remaining: &Vec<usize>| !remaining.is_empty())
        .collect();
    if moved.is_empty() || !random.chance(40) {
        return;
    }
    let (sim, remaining) = (sim.clone(), random.pick(&moved).clone());
    let (begins_ms, lasts_ms) = (random.below(1_500), 1_000 + random.below(4_000));
    // No cut may begin or last after the nemesis has ended: the cluster converges then.
    let left_ms = ends_ms.saturating_sub(sim.now_ms() + begins_ms);
    if left_ms == 0 {
        return;
    }
    tokio::task::spawn_local(async move {
        sim.sleep(begins_ms).await;
        sim.cut_off(&remaining);
        sim.sleep(lasts_ms.min(left_ms)).await;
        sim.heal();
    });
}
