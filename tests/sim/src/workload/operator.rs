//! Operators: they request random layout changes, and redefine a bucket that is in use.

use std::cell::Cell;
use std::rc::Rc;

use quorate_core::BucketDefinition;
use quorate_core::change::LayoutChange;

use super::limits::MAX_LOST_DISKS;
use crate::random::Random;
use crate::world::{REDEFINED, Sim};

/// A kind of layout change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ChangeKind {
    /// One or two nodes join.
    Join,
    /// A member leaves.
    Leave,
    /// One or two nodes join in place of members that leave.
    Replace,
    /// A member that is down is declared lost.
    Remove,
    /// A member gets another weight.
    Reweight,
    /// Two operators request different changes at once.
    Concurrent,
}

/// The cluster as an operator sees it, with what was drawn at random for one change.
struct View<'a> {
    sim: &'a Sim,
    members: Vec<usize>,
    /// Members that run.
    up: Vec<usize>,
    /// Nodes that run and can join.
    waiting: Vec<usize>,
    /// The member that receives the request.
    via: usize,
    /// The member to change.
    member: usize,
    /// True if the cluster has more members than a key has replicas, so that one may go.
    may_shrink: bool,
    /// The new weight of a member.
    weight: u16,
}

/// Requests a random change of this kind from a running member. `lost_disks` counts the disks that
/// the run has lost.
pub(super) async fn change_layout(
    sim: &Sim,
    change: ChangeKind,
    random: &mut Random,
    lost_disks: &mut usize,
) {
    let Some(view) = View::draw(sim, random) else { return };
    match change {
        ChangeKind::Join => view.join(random).await,
        ChangeKind::Leave if view.may_shrink => {
            sim.change(view.via, vec![sim.leave_change(view.member)]).await;
        }
        ChangeKind::Replace => view.replace(random).await,
        ChangeKind::Remove if view.may_shrink && *lost_disks < MAX_LOST_DISKS => {
            view.remove(random, lost_disks).await;
        }
        ChangeKind::Reweight => {
            sim.change(view.via, vec![view.reweight()]).await;
        }
        ChangeKind::Concurrent => view.change_concurrently(random).await,
        _ => {}
    }
}

impl<'a> View<'a> {
    /// Draws the members of a change. `None`: no member runs.
    fn draw(sim: &'a Sim, random: &mut Random) -> Option<View<'a>> {
        let layout = sim.layout();
        let members = sim.members();
        let can_join =
            |node: &usize| !members.contains(node) && sim.is_running(*node) && !sim.was_declared_lost(*node);
        let waiting: Vec<usize> = (0..sim.count()).filter(can_join).collect();
        let up: Vec<usize> = members.iter().copied().filter(|&node| sim.is_running(node)).collect();
        if up.is_empty() {
            return None;
        }
        let via = *random.pick(&up);
        let member = *random.pick(&members);
        let may_shrink = members.len() > usize::from(layout.replicas());
        let weight = 50 + random.below(200) as u16;
        Some(View { sim, members, up, waiting, via, member, may_shrink, weight })
    }

    fn reweight(&self) -> LayoutChange {
        LayoutChange::Weight { name: self.sim.name(self.member), weight: self.weight }
    }

    async fn join(&self, random: &mut Random) {
        let count = 1 + random.below(2) as usize;
        let joins: Vec<LayoutChange> =
            self.waiting.iter().take(count).map(|&node| self.sim.join_change(node)).collect();
        if !joins.is_empty() {
            self.sim.change(self.via, joins).await;
        }
    }

    async fn replace(&self, random: &mut Random) {
        // With two replacements at once, some partitions keep one old replica.
        let count = 1 + random.below(2) as usize;
        let mut left = self.members.clone();
        let mut changes = Vec::new();
        for &by in self.waiting.iter().take(count) {
            let leaving = left.swap_remove(random.below(left.len() as u64) as usize);
            changes.extend([self.sim.leave_change(leaving), self.sim.join_change(by)]);
        }
        if !changes.is_empty() {
            self.sim.change(self.via, changes).await;
        }
    }

    /// Declares that a member which is down has lost its disk, as an operator would. The node may
    /// start again with all its records: then the cluster refuses it.
    async fn remove(&self, random: &mut Random, lost_disks: &mut usize) {
        let down = self.members.iter().copied().find(|&node| !self.sim.is_running(node));
        let Some(lost) = down else { return };
        let mut changes = vec![LayoutChange::Remove { name: self.sim.name(lost) }];
        if random.chance(50) {
            changes.extend(self.waiting.first().map(|&by| self.sim.join_change(by)));
        }
        *lost_disks += 1;
        self.sim.declare_lost(lost);
        self.sim.change(self.via, changes).await;
    }

    /// Requests two changes at once, perhaps from nodes on two sides of a cut.
    async fn change_concurrently(&self, random: &mut Random) {
        let other = *random.pick(&self.up);
        let changes = match self.waiting.first() {
            Some(&node) => vec![self.sim.join_change(node)],
            None if self.may_shrink => vec![self.sim.leave_change(*random.pick(&self.members))],
            None => return,
        };
        let reweight = vec![self.reweight()];
        futures::future::join(self.sim.change(self.via, changes), self.sim.change(other, reweight)).await;
    }
}

/// Gives the bucket [`REDEFINED`], which is in use, an n of its own. Sometimes two operators do so
/// at once.
pub(super) async fn redefine_bucket(sim: &Rc<Sim>, mut random: Random, ended: &Cell<bool>) {
    while !ended.get() && !sim.layout().buckets().is_declared(REDEFINED) {
        sim.sleep(500 + random.below(6_000)).await;
        let up: Vec<usize> = sim.members().into_iter().filter(|&node| sim.is_running(node)).collect();
        if up.is_empty() {
            continue;
        }
        let (one, other) = (*random.pick(&up), *random.pick(&up));
        let (first, second) = (vec![draw_definition(&mut random)], vec![draw_definition(&mut random)]);
        if random.chance(30) {
            futures::future::join(sim.change(one, first), sim.change(other, second)).await;
        } else {
            sim.change(one, first).await;
        }
    }
}

fn draw_definition(random: &mut Random) -> LayoutChange {
    let n = Some(1 + random.below(2) as u8);
    let definition = BucketDefinition { n, sloppy: random.chance(50), ..BucketDefinition::default() };
    LayoutChange::Bucket { name: REDEFINED.to_owned(), definition }
}
