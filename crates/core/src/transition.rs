//! How a cluster goes from one layout to the next while clients read and write: what each node knows of the active layouts,
//! how far every other one is, and what follows from that.
//!
//! A change has six phases, and a node enters each only when it has seen everybody in the one before:
//!
//! | phase | the node has | once all have, it |
//! |---|---|---|
//! | known | stored the layout | also counts W acks in the new replica sets |
//! | acked | no write open that it began without the new layout | copies what its partitions hold |
//! | synced | merged what enough of the layout that is read hold | reads from the new replica sets |
//! | reading | no read open that it began on an older layout | writes to the new replica sets only |
//! | released | no write open that it began with an older layout | hands over and drops what is not its own |
//! | cleared | nothing that is not its own | forgets the older layouts |
//!
//! What is *not* here: messages, disks, time. Two nodes' knowledge is joined by [`Layouts::absorb`], in any order.
//!
//! Source: Garage's layout history (`ack`, `sync`, `sync_ack`); the barriers between all phases are ours.

mod encoding;
mod joining;
mod staging;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::change::{Change, Staged};
use crate::key::PartitionId;
use crate::layout::{Layout, NodeId};
use crate::planted::{Bug, planted};

pub use view::View;

/// Layouts that may be active together: further changes wait.
pub const MAX_ACTIVE: usize = 6;
/// Further ones that may be, to declare disks lost.
const RESERVED_ACTIVE: usize = 4;
/// Changes that may be staged.
pub const MAX_STAGED: usize = 256;
/// Applied or withdrawn changes that are remembered, so that they are not staged again by somebody who has not heard.
const MAX_CLEARED: usize = 1_024;
/// Past layouts that are remembered.
const MAX_HISTORY: usize = 4_096;
const MAX_SUMMARY: usize = 1_024;

/// How far a node is with the newest layout.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Phase {
    /// It does not know of it, as far as is known.
    #[default]
    Unaware,
    /// It has stored it.
    Known,
    /// No write is open that it began without it.
    Acked,
    /// It has merged what its partitions must hold.
    Synced,
    /// No read is open that it began on an older one.
    Reading,
    /// No write is open that it began with an older one.
    Released,
    /// It holds nothing that is not its own.
    Cleared,
}

impl Phase {
    const ALL: [Phase; 7] = [
        Phase::Unaware,
        Phase::Known,
        Phase::Acked,
        Phase::Synced,
        Phase::Reading,
        Phase::Released,
        Phase::Cleared,
    ];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Unaware => "unaware",
            Phase::Known => "known",
            Phase::Acked => "acked",
            Phase::Synced => "synced",
            Phase::Reading => "reading",
            Phase::Released => "released",
            Phase::Cleared => "cleared",
        }
    }
}

/// What a node has to do for its next phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Duty {
    /// Nothing: the others are not that far, or all is done.
    Rest,
    /// Wait until no request is open that was begun under an earlier view.
    Quiet,
    /// Merge what its partitions of the newest layout must hold.
    Sync,
    /// Hand over and drop what is not its own in the newest layout.
    Clear,
}

/// A layout that was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Past {
    /// Its number.
    pub number: u64,
    /// Its digest.
    pub digest: u64,
    /// What was changed, for people.
    pub summary: String,
}

/// Which of the older layouts a node reads and writes, by digest: settled when a newer one appeared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Base {
    read: u64,
    from: u64,
    to: u64,
}

/// What a node knows of layouts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layouts {
    this: NodeId,
    /// Each the parent of the next. Never none.
    active: Vec<Arc<Layout>>,
    base: Base,
    /// With the newest layout.
    progress: BTreeMap<NodeId, Phase>,
    /// This node's own, as far as its disk remembers: a lost disk begins anew, whatever the others remember.
    own: Phase,
    /// Up to the newest, which is the last.
    history: Vec<Past>,
    staged: BTreeMap<u64, Change>,
    cleared: BTreeSet<u64>,
    /// The digest of the layout that took this node out while it was away.
    removed: Option<u64>,
}

/// What a node tells the others all the time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct News {
    oldest: u64,
    newest: u64,
    staged: u64,
    progress: Vec<(NodeId, Phase)>,
}

/// What news came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heard {
    /// Something changed here.
    pub changed: bool,
    /// The other knows more: its layouts are to be fetched.
    pub fetch: bool,
}

impl Layouts {
    /// A node that goes by one layout.
    pub fn settled(this: NodeId, layout: Layout) -> Layouts {
        let digest = layout.digest();
        let past = Past { number: layout.number(), digest, summary: summary(&layout) };
        Layouts {
            this,
            active: vec![Arc::new(layout)],
            base: Base { read: digest, from: digest, to: digest },
            progress: BTreeMap::new(),
            own: Phase::Cleared,
            history: vec![past],
            staged: BTreeMap::new(),
            cleared: BTreeSet::new(),
            removed: None,
        }
    }

    /// The newest layout.
    pub fn newest(&self) -> &Arc<Layout> {
        self.active.last().expect("one layout is always active")
    }

    /// All active layouts, the oldest first.
    pub fn active(&self) -> &[Arc<Layout>] {
        &self.active
    }

    /// The digest of the first layout that is remembered: the same on all nodes of a cluster.
    pub fn root(&self) -> u64 {
        self.history[0].digest
    }

    /// The layouts that were, the newest last.
    pub fn history(&self) -> &[Past] {
        &self.history
    }

    /// True if this node was taken out while it was away.
    pub fn removed(&self) -> bool {
        self.removed.is_some()
    }

    /// How far this node is with the newest layout.
    pub fn own(&self) -> Phase {
        self.own
    }

    /// How far a participant is, as far as is known.
    pub fn phase_of(&self, node: NodeId) -> Phase {
        if self.active.len() == 1 {
            return Phase::Cleared;
        }
        self.progress.get(&node).copied().unwrap_or_default()
    }

    /// All members of all active layouts, but those whose disk was declared lost. Sorted.
    pub fn participants(&self) -> Vec<NodeId> {
        let all = self.active.iter().flat_map(|layout| layout.members()).map(|member| member.id);
        let newest = self.newest();
        let mut all: Vec<NodeId> = all.filter(|&node| !newest.is_lost(node)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// What everybody has reached with the newest layout.
    pub fn least(&self) -> Phase {
        self.participants().into_iter().map(|node| self.phase_of(node)).min().unwrap_or(Phase::Cleared)
    }

    /// Positions in `active` of the layout that is read, and of those that are written, the newest of them apart.
    fn mode(&self, least: Phase) -> Mode {
        let newest = self.active.len() - 1;
        let read_from = if planted(Bug::ReadsMoveBeforeSynced) { Phase::Acked } else { Phase::Synced };
        let (from, to) = (self.position(self.base.from), self.position(self.base.to));
        Mode {
            read: if least >= read_from { newest } else { self.position(self.base.read) },
            from: if least >= Phase::Reading { newest } else { from },
            to: if least >= Phase::Reading { newest } else { to },
            newest: least >= Phase::Known,
        }
    }

    /// The position of a layout; the oldest if it is none any more.
    fn position(&self, digest: u64) -> usize {
        self.active.iter().position(|layout| layout.digest() == digest).unwrap_or(0)
    }

    /// What to go by.
    pub fn view(&self) -> View {
        let least = self.least();
        let mode = self.mode(least);
        let newest = self.active.len() - 1;
        let written = |at: &usize| (mode.from..=mode.to).contains(at) || (*at == newest && mode.newest);
        let also = (0..self.active.len()).filter(|at| *at != mode.read).filter(written);
        View {
            read: self.active[mode.read].clone(),
            also: also.map(|at| self.active[at].clone()).collect(),
            participants: self.participants(),
            active: self.active.clone(),
            least,
            removed: self.removed(),
        }
    }

    /// The layouts whose replicas may hold what the newest one's must copy.
    pub fn sources(&self) -> &[Arc<Layout>] {
        let newest = self.active.len() - 1;
        &self.active[self.position(self.base.read).min(newest)..newest]
    }

    /// Buckets whose requests by the newest layout may miss what was written by one that it follows.
    pub fn redefined_buckets(&self) -> BTreeSet<String> {
        let newest = self.newest().buckets();
        let redefined = |source: &Arc<Layout>| {
            newest.that_miss(source.buckets(), source.replicas()).map(str::to_owned).collect()
        };
        self.sources().iter().flat_map(|source| -> Vec<String> { redefined(source) }).collect()
    }

    /// True if the partition moves to this node, and it has not copied it yet.
    pub fn has_to_copy(&self, partition: PartitionId) -> bool {
        let held = self.sources().iter().any(|source| source.holds(self.this, partition));
        self.active.len() > 1
            && self.own < Phase::Synced
            && !self.removed()
            && !held
            && self.newest().holds(self.this, partition)
    }

    /// What this node has to do next.
    pub fn duty(&self) -> Duty {
        let least = self.least();
        let takes_part = self.active.len() > 1 && !self.removed() && self.participants().contains(&self.this);
        if takes_part && planted(Bug::SyncBeforeAllAcked) {
            match self.own {
                Phase::Known => return Duty::Sync,
                Phase::Acked if least >= Phase::Acked => return Duty::Quiet,
                _ => {}
            }
        }
        if !takes_part || least < self.own {
            return Duty::Rest;
        }
        match self.own {
            Phase::Unaware | Phase::Cleared => Duty::Rest,
            Phase::Known | Phase::Synced | Phase::Reading => Duty::Quiet,
            Phase::Acked => Duty::Sync,
            Phase::Released => Duty::Clear,
        }
    }

    /// This node has done its duty, or stored the newest layout: it is one phase further. To be stored before it is told.
    pub fn advance(&mut self) {
        let next = Phase::ALL.iter().position(|phase| *phase == self.own).unwrap_or(0) + 1;
        self.own = Phase::ALL[next.min(Phase::ALL.len() - 1)];
        self.note(self.this, self.own);
        self.settle();
    }

    fn note(&mut self, node: NodeId, phase: Phase) -> bool {
        let known = self.progress.entry(node).or_default();
        let news = phase > *known;
        *known = (*known).max(phase);
        news
    }

    /// Once everybody is done, the older layouts are forgotten.
    fn settle(&mut self) -> bool {
        if self.active.len() == 1 || self.least() < Phase::Cleared {
            return false;
        }
        self.forget_before(self.active.len() - 1);
        true
    }

    /// Somebody has seen everybody be done with the layouts before this position.
    fn forget_before(&mut self, position: usize) {
        if position == 0 {
            return;
        }
        let gone: Vec<Arc<Layout>> = self.active.drain(..position).collect();
        // Nobody stages a bucket: the many there may be are not to displace what is remembered of others.
        let is_staged = |staged: &&Staged| !matches!(staged.change, Change::Bucket { .. });
        let made = gone.iter().chain(self.active.first()).flat_map(|layout| layout.changes());
        self.cleared.extend(made.filter(is_staged).map(|staged| staged.id));
        self.tidy_staged();
        if self.active.len() == 1 {
            self.progress.clear();
            self.own = Phase::Cleared;
        }
        let oldest = self.active[0].digest();
        let known = |digest: u64| self.active.iter().any(|layout| layout.digest() == digest);
        let or_oldest = |digest: u64| if known(digest) { digest } else { oldest };
        let Base { read, from, to } = self.base;
        self.base = Base { read: or_oldest(read), from: or_oldest(from), to: or_oldest(to) };
    }

    /// How this node reads and writes the active layouts now is how it goes on with them.
    fn freeze(&mut self) {
        let mode = self.mode(self.least());
        let newest = self.active.len() - 1;
        let to = if mode.newest { newest } else { mode.to };
        let digest = |at: usize| self.active[at].digest();
        self.base = Base { read: digest(mode.read), from: digest(mode.from), to: digest(to) };
    }

    fn push(&mut self, layout: Arc<Layout>) {
        let (number, digest, summary) = (layout.number(), layout.digest(), summary(&layout));
        self.history.push(Past { number, digest, summary });
        if self.history.len() > MAX_HISTORY {
            // The root stays: it is what nodes know each other by.
            self.history.remove(1);
        }
        self.active.push(layout);
        self.progress.clear();
        self.own = Phase::Unaware;
    }

    /// What to tell the others.
    pub fn news(&self) -> News {
        let known = |(node, phase): (&NodeId, &Phase)| (*node, *phase);
        News {
            oldest: self.active[0].digest(),
            newest: self.newest().digest(),
            staged: self.staged_digest(),
            progress: self.progress.iter().map(known).collect(),
        }
    }

    /// Takes in what another node tells.
    pub fn hear(&mut self, news: &News) -> Heard {
        if news.newest != self.newest().digest() {
            let behind = self.history.iter().any(|past| past.digest == news.newest);
            return Heard { changed: false, fetch: !behind };
        }
        let fetch = news.staged != self.staged_digest();
        let changed = self.join_progress(news.oldest, news.progress.iter().copied());
        Heard { changed, fetch }
    }

    /// Joins what is known of the same newest layout.
    fn join_progress(&mut self, oldest: u64, progress: impl Iterator<Item = (NodeId, Phase)>) -> bool {
        let mut changed = false;
        if self.active.len() > 1 {
            let participants = self.participants();
            for (node, phase) in progress.filter(|(node, _)| participants.binary_search(node).is_ok()) {
                changed |= self.note(node, phase);
            }
            let position = self.position(oldest);
            changed |= position > 0;
            self.forget_before(position);
        }
        changed |= self.settle();
        self.withdraw_unfit();
        changed
    }
}

/// Which layouts are read and written, by position.
struct Mode {
    read: usize,
    from: usize,
    to: usize,
    /// Also the newest.
    newest: bool,
}

fn summary(layout: &Layout) -> String {
    if layout.changes().is_empty() {
        return format!("{} members", layout.members().len());
    }
    let changes: Vec<String> = layout.changes().iter().map(|staged| staged.change.to_string()).collect();
    changes.join("; ").chars().take(MAX_SUMMARY).collect()
}
