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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::bucket::Bucket;
use crate::change::{Change, Staged};
use crate::key::PartitionId;
use crate::layout::{Layout, LayoutError, NodeId};
use crate::planted::{Bug, planted};
use crate::varint::{Reader, Short, put_bytes, put_u64, put_varint};

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

/// What a node goes by while it serves a request.
#[derive(Debug)]
pub struct View {
    /// All active layouts, the oldest first.
    pub active: Vec<Arc<Layout>>,
    /// Which one is read.
    pub read: Arc<Layout>,
    /// In which others a write needs its acks, too.
    pub also: Vec<Arc<Layout>>,
    /// Who takes part: all members, but none whose disk was declared lost. Sorted.
    pub participants: Vec<NodeId>,
    /// How far everybody is.
    pub least: Phase,
    /// This node was taken out while it was away: what it holds is from before.
    pub removed: bool,
}

impl View {
    /// The newest layout.
    pub fn newest(&self) -> &Arc<Layout> {
        self.active.last().expect("one layout is always active")
    }

    /// True if no change is under way.
    pub fn is_settled(&self) -> bool {
        self.active.len() == 1
    }

    /// True if the node takes part.
    pub fn is_participant(&self, node: NodeId) -> bool {
        self.participants.binary_search(&node).is_ok()
    }

    /// True if a node is a replica of the partition in any active layout.
    pub fn holds(&self, node: NodeId, partition: PartitionId) -> bool {
        self.active.iter().any(|layout| layout.holds(node, partition))
    }

    /// The layouts whose replicas are kept up: those that requests go by. One that not everybody knows may still give way to
    /// another, and what nobody goes by any more is handed over.
    pub fn kept_up(&self) -> impl Iterator<Item = &Arc<Layout>> {
        let released = self.least >= Phase::Released;
        let also = self.also.iter().filter(move |_| !released);
        also.chain([&self.read])
    }

    /// True if a node is a replica of the partition in a layout that is still kept up, for buckets of `n`.
    pub fn keeps(&self, node: NodeId, partition: PartitionId, n: u8) -> bool {
        self.kept_up().any(|layout| layout.replicas_of(partition, n).contains(&node))
    }

    /// True if a node is a replica of a bucket's keys in the partition, in a layout that is still kept up.
    pub fn keeps_for(&self, node: NodeId, partition: PartitionId, bucket: &str) -> bool {
        self.kept_up().any(|layout| layout.replicas_for(partition, bucket).contains(&node))
    }

    /// All replicas of a bucket's keys in a partition that are kept up: those of the layout that is read first.
    pub fn holders_of(&self, partition: PartitionId, bucket: &str) -> Vec<NodeId> {
        let mut holders = self.read.replicas_for(partition, bucket).to_vec();
        if self.is_settled() {
            return holders;
        }
        for layout in self.kept_up() {
            for &replica in layout.replicas_for(partition, bucket) {
                if !holders.contains(&replica) {
                    holders.push(replica);
                }
            }
        }
        holders
    }

    /// The bucket's rules. `None` while it is being created with other replicas or quorums than its keys have had: as long as
    /// some go by the one and some by the other, some would look for its keys where others do not put them.
    pub fn bucket(&self, name: &str) -> Option<&Arc<Bucket>> {
        let bucket = self.newest().buckets().get(name);
        let meets = |layout: &Arc<Layout>| bucket.meets(layout.buckets().get(name), layout.replicas());
        let settled = self.is_settled() || self.kept_up().all(meets);
        settled.then_some(bucket)
    }

    /// The newest layout that writes need acks in: what a coordinator names to those it writes to.
    pub fn written(&self) -> u64 {
        let newest = |layout: &&Arc<Layout>| layout.number();
        self.also.iter().chain([&self.read]).max_by_key(newest).expect("one is read").digest()
    }

    /// Whether a write of a coordinator that goes by this layout may be taken. Once everybody goes by the newest, one
    /// that does not has lost its memory.
    pub fn takes_write(&self, layout: u64) -> bool {
        match self.least >= Phase::Acked && !self.is_settled() {
            true => layout == self.newest().digest(),
            false => self.active.iter().any(|known| known.digest() == layout),
        }
    }

    /// Whether a read on this layout may be answered by `node`, a replica of the partition.
    pub fn takes_read(&self, layout: u64, node: NodeId, partition: PartitionId) -> bool {
        let Some(layout) = self.active.iter().find(|known| known.digest() == layout) else { return false };
        let outdated = self.least >= Phase::Reading && layout.digest() != self.newest().digest();
        !outdated && layout.holds(node, partition)
    }

    /// The member's name, in whichever layout it has one.
    pub fn name_of(&self, node: NodeId) -> String {
        let member = self.active.iter().rev().find_map(|layout| layout.member(node));
        member.map_or_else(|| format!("{node:?}"), |member| member.name.clone())
    }
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

    fn tidy_staged(&mut self) {
        self.staged.retain(|id, _| !self.cleared.contains(id));
        while self.cleared.len() > MAX_CLEARED {
            self.cleared.pop_first();
        }
    }

    /// Changes that wait for their commit, in the order of their ids. What does not fit the newest layout is not among them: somebody
    /// else has made the same change, or one that rules it out, and it would stand in the way of all others.
    pub fn staged(&self) -> Vec<Staged> {
        self.waiting().1
    }

    /// What is staged: which changes do not fit, and which do.
    fn waiting(&self) -> (Vec<u64>, Vec<Staged>) {
        let (mut unfit, mut fit) = (Vec::new(), Vec::new());
        if self.staged.is_empty() {
            return (unfit, fit);
        }
        let mut outline = self.newest().outline();
        for (&id, change) in self.staged.iter().filter(|(id, _)| !self.is_done_with(**id)) {
            match outline.apply(change) {
                Ok(()) => fit.push(Staged { id, change: change.clone() }),
                Err(_) => unfit.push(id),
            }
        }
        (unfit, fit)
    }

    /// True if the change was made, or withdrawn.
    pub fn is_done_with(&self, id: u64) -> bool {
        let made = || self.active.iter().flat_map(|layout| layout.changes()).any(|staged| staged.id == id);
        self.cleared.contains(&id) || made()
    }

    /// Stages a change, if it and those staged before it fit together. One that is staged, made or withdrawn already is not
    /// staged again: it is asked for by somebody who did not hear the answer.
    ///
    /// # Errors
    /// [`LayoutError`], naming what does not fit.
    pub fn stage(&mut self, new: Staged) -> Result<(), LayoutError> {
        let mut all = self.staged();
        let again = all.last().is_some_and(|last| last.change == new.change) || all.contains(&new);
        if again || self.is_done_with(new.id) {
            return Ok(());
        }
        if all.len() >= MAX_STAGED || self.staged.len() >= 2 * MAX_STAGED {
            let detail = format!("{MAX_STAGED} changes are staged already: commit or clear them first");
            return Err(LayoutError::Change { detail });
        }
        if self.staged.get(&new.id).is_some_and(|other| *other != new.change) {
            let detail = format!("another change has the number {:016x}", new.id);
            return Err(LayoutError::Change { detail });
        }
        let place = all.partition_point(|staged| staged.id < new.id);
        all.insert(place, new.clone());
        // Whether they fit the newest layout one after the other. That their sum makes a layout is for the commit.
        let mut outline = self.newest().outline();
        all.iter().try_for_each(|staged| outline.apply(&staged.change))?;
        self.staged.insert(new.id, new.change);
        Ok(())
    }

    /// Withdraws for good what does not fit the newest layout, once everybody knows that: before, it may give way to another one,
    /// which they fit.
    fn withdraw_unfit(&mut self) {
        if !self.staged.is_empty() && self.went_by(self.newest().digest()) {
            let unfit = self.waiting().0;
            self.cleared.extend(unfit);
            self.tidy_staged();
        }
    }

    /// Takes in what others have staged. Two changes of one number: the same one stays everywhere.
    fn take_staged<'a>(&mut self, staged: impl Iterator<Item = (u64, &'a Change)>) {
        for (id, change) in staged {
            match self.staged.get(&id) {
                Some(mine) if mine.encode() <= change.encode() => {}
                None if self.staged.len() >= 2 * MAX_STAGED => {}
                _ => drop(self.staged.insert(id, change.clone())),
            }
        }
    }

    /// Withdraws all staged changes.
    pub fn clear(&mut self) {
        // Also what does not fit now.
        let waiting: Vec<u64> = self.staged.keys().copied().filter(|id| !self.is_done_with(*id)).collect();
        self.cleared.extend(waiting);
        self.tidy_staged();
    }

    /// The layout that the staged changes make.
    ///
    /// # Errors
    /// [`LayoutError`], if none is staged, they make none, or too many changes are under way.
    pub fn plan(&self) -> Result<Layout, LayoutError> {
        let staged = self.staged();
        if staged.is_empty() {
            return Err(LayoutError::Change { detail: "no change is staged".into() });
        }
        self.check_room(staged.iter().map(|staged| &staged.change))?;
        self.newest().changed(&staged)
    }

    fn check_room<'a>(&self, mut changes: impl Iterator<Item = &'a Change>) -> Result<(), LayoutError> {
        // There is always a place for what gets a change out of waiting for a dead node.
        let removes = changes.any(|change| matches!(change, Change::Remove { .. }));
        if self.active.len() < MAX_ACTIVE + if removes { RESERVED_ACTIVE } else { 0 } {
            return Ok(());
        }
        Err(LayoutError::UnderWay { changes: self.active.len() - 1 })
    }

    /// Makes the staged changes the newest layout, if it is the one with the digest `shown`, where that is given. To be stored
    /// before it is acted on; then [`Layouts::advance`]. False if the one that was shown has been made already.
    ///
    /// # Errors
    /// As [`Layouts::plan`]; `OtherPlan` if it is another one.
    pub fn commit(&mut self, shown: Option<u64>) -> Result<bool, LayoutError> {
        if shown.is_some_and(|shown| self.history.iter().any(|past| past.digest == shown)) {
            return Ok(false);
        }
        let layout = self.plan()?;
        let now = layout.digest();
        if let Some(shown) = shown.filter(|&shown| shown != now) {
            return Err(LayoutError::OtherPlan { shown, now });
        }
        self.freeze();
        self.push(Arc::new(layout));
        Ok(true)
    }

    /// Makes these changes the newest layout, whatever else is staged. To be stored before it is acted on; then
    /// [`Layouts::advance`]. False if they were made or withdrawn already.
    ///
    /// # Errors
    /// As [`Layouts::plan`].
    pub fn commit_only(&mut self, only: &[Staged]) -> Result<bool, LayoutError> {
        if only.iter().all(|new| self.is_done_with(new.id)) {
            return Ok(false);
        }
        self.check_room(only.iter().map(|new| &new.change))?;
        let layout = self.newest().changed(only)?;
        self.freeze();
        self.push(Arc::new(layout));
        Ok(true)
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

    fn staged_digest(&self) -> u64 {
        let mut bytes = Vec::new();
        self.staged().iter().for_each(|staged| staged.write(&mut bytes));
        xxhash_rust::xxh3::xxh3_64(&bytes)
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

    /// Takes in all that another node knows. True if anything changed: to be stored before it is acted on. If that is a
    /// newer layout, this node's own phase is `Unaware` afterwards, until it says with [`Layouts::advance`] that it is stored.
    ///
    /// `holds_data`: there are objects or hints on this node's disk. If it turns out to have been taken out meanwhile, they
    /// are from before.
    pub fn absorb(&mut self, theirs: &Layouts, holds_data: bool) -> bool {
        let before = self.staged();
        if theirs.root() != self.root() || theirs.newest().partitions() != self.newest().partitions() {
            return false;
        }
        self.cleared.extend(&theirs.cleared);
        self.take_staged(theirs.staged.iter().map(|(id, change)| (*id, change)));
        self.tidy_staged();
        let changed = self.absorb_layouts(theirs, holds_data);
        self.withdraw_unfit();
        changed || before != self.staged()
    }

    fn absorb_layouts(&mut self, theirs: &Layouts, holds_data: bool) -> bool {
        let (mine, other) = (self.newest().digest(), theirs.newest().digest());
        let knows = |of: &Layouts, digest: u64| of.history.iter().any(|past| past.digest == digest);
        if mine == other {
            let progress = theirs.progress.iter().map(|(node, phase)| (*node, *phase));
            let oldest = theirs.active[0].digest();
            let mut changed = self.join_progress(oldest, progress);
            // Whoever reads or writes newer ones has seen what allows it.
            let later = |a: u64, b: u64| if self.position(b) > self.position(a) { b } else { a };
            let Base { read, from, to } = theirs.base;
            let base = Base {
                read: later(self.base.read, read),
                from: later(self.base.from, from),
                to: later(self.base.to, to),
            };
            changed |= base != self.base;
            self.base = base;
            return changed;
        }
        if knows(self, other) {
            return false;
        }
        if !knows(theirs, mine) && !self.gives_way_to(theirs) {
            // They will: so that nothing that was staged for theirs is taken for unfit meanwhile.
            let stays = self.history.clone();
            self.stage_again(&theirs.active, &stays);
            return false;
        }
        self.adopt(theirs, holds_data);
        true
    }

    /// True if requests were served by this layout or one that was made of it: everybody knew of it, or it is no news at all.
    fn went_by(&self, digest: u64) -> bool {
        let mode = self.mode(self.least());
        let position = self.active.iter().position(|layout| layout.digest() == digest);
        match position {
            Some(at) => at <= mode.to || mode.newest,
            // Not active any more: everybody has been through with it.
            None => self.history.iter().any(|past| past.digest == digest),
        }
    }

    /// Two layouts were made of one: which one stays is the same on every node. One that everybody knew has won: whoever
    /// committed the other one was not waited for, because its disk was declared lost.
    fn gives_way_to(&self, theirs: &Layouts) -> bool {
        let common =
            self.history.iter().zip(&theirs.history).take_while(|(a, b)| a.digest == b.digest).count();
        let (Some(mine), Some(other)) = (self.history.get(common), theirs.history.get(common)) else {
            return false;
        };
        match (self.went_by(mine.digest), theirs.went_by(other.digest)) {
            (true, _) => false,
            (false, true) => true,
            (false, false) => other.digest > mine.digest,
        }
    }

    /// What loses against another layout is staged again: what these changed, as far as they are not in the history that stays.
    fn stage_again(&mut self, layouts: &[Arc<Layout>], stays: &[Past]) {
        let loses = |layout: &&Arc<Layout>| !stays.iter().any(|past| past.digest == layout.digest());
        // Whoever creates a bucket is still there, and does it again.
        let is_operators = |staged: &&Staged| !matches!(staged.change, Change::Bucket { .. });
        let changes = layouts.iter().filter(loses).flat_map(|layout| layout.changes()).filter(is_operators);
        self.take_staged(changes.map(|staged| (staged.id, &staged.change)));
    }

    fn adopt(&mut self, theirs: &Layouts, holds_data: bool) {
        // What took it out may have given way to another layout: then it is as it was before.
        let undone = self.removed.is_some_and(|by| !theirs.history.iter().any(|past| past.digest == by));
        let took_part = holds_data && (undone || self.took_part());
        self.removed = self.removed.filter(|_| !undone);
        self.freeze();
        let mine = self.active.clone();
        self.stage_again(&mine, &theirs.history);
        let oldest = self.active[0].digest();
        let mine = self.base;
        let skip = theirs.active.iter().position(|layout| layout.digest() == oldest).unwrap_or(0);
        // A layout of mine that lost was written by nobody: its parent is where this node was.
        let common =
            self.history.iter().zip(&theirs.history).take_while(|(a, b)| a.digest == b.digest).count();
        let Past { digest: fork, number: fork_number, .. } = self.history[common.max(1) - 1];
        self.active = theirs.active[skip..].to_vec();
        self.history = theirs.history.clone();
        self.progress = theirs.progress.clone();
        self.own = Phase::Unaware;
        let at = |digest: u64| {
            let known = self.active.iter().position(|layout| layout.digest() == digest);
            known.or_else(|| self.active.iter().position(|layout| layout.digest() == fork)).unwrap_or(0)
        };
        let later = |a: u64, b: u64| self.active[at(a).max(at(b))].digest();
        self.base = Base {
            read: later(mine.read, theirs.base.read),
            from: later(mine.from, theirs.base.from),
            to: later(mine.to, theirs.base.to),
        };
        if self.active.len() == 1 {
            self.own = Phase::Cleared;
            self.progress.clear();
        }
        // Also if it was made a member again: that is for an empty disk.
        let lost_since = self.newest().lost_by(self.this) > fork_number;
        if self.removed.is_none() && took_part && (lost_since || !self.participants().contains(&self.this)) {
            let lost_by = self.newest().lost_by(self.this);
            let by = self.history.iter().find(|past| past.number == lost_by);
            self.removed = Some(by.map_or(self.newest().digest(), |past| past.digest));
        }
        self.settle();
    }

    /// True unless this node was a member of no active layout, or has handed over everything and missed how the others went
    /// on.
    fn took_part(&self) -> bool {
        let member = self.active.iter().any(|layout| layout.member(self.this).is_some());
        let handed_over = self.own == Phase::Cleared && self.newest().member(self.this).is_none();
        member && !handed_over
    }

    /// Everything, as bytes: for the disk, and for others.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        put_varint(&mut out, self.active.len() as u64);
        self.active.iter().for_each(|layout| put_bytes(&mut out, &layout.encode()));
        [self.base.read, self.base.from, self.base.to].iter().for_each(|digest| put_u64(&mut out, *digest));
        out.push(self.own as u8);
        put_u64(&mut out, self.removed.unwrap_or(0));
        put_progress(&mut out, self.progress.iter().map(|(node, phase)| (*node, *phase)));
        put_varint(&mut out, self.history.len() as u64);
        for past in &self.history {
            put_u64(&mut out, past.number);
            put_u64(&mut out, past.digest);
            put_bytes(&mut out, past.summary.as_bytes());
        }
        put_varint(&mut out, self.staged.len() as u64);
        for (id, change) in &self.staged {
            Staged { id: *id, change: change.clone() }.write(&mut out);
        }
        put_varint(&mut out, self.cleared.len() as u64);
        self.cleared.iter().for_each(|id| put_u64(&mut out, *id));
        out
    }

    /// What `encode` wrote, by this node or another: `this` is whose it is now.
    ///
    /// # Errors
    /// [`LayoutError::Malformed`] for anything else.
    pub fn decode(this: NodeId, bytes: &[u8]) -> Result<Layouts, LayoutError> {
        let short = |_: Short| LayoutError::Malformed;
        let mut reader = Reader::new(bytes);
        if reader.byte().map_err(short)? != FORMAT {
            return Err(LayoutError::Malformed);
        }
        let mut active: Vec<Arc<Layout>> = Vec::new();
        for _ in 0..reader.count(8).map_err(short)? {
            active.push(Arc::new(Layout::decode(reader.bytes().map_err(short)?)?));
        }
        let base = Base {
            read: reader.u64().map_err(short)?,
            from: reader.u64().map_err(short)?,
            to: reader.u64().map_err(short)?,
        };
        let own = phase(reader.byte().map_err(short)?)?;
        let removed = Some(reader.u64().map_err(short)?).filter(|&by| by != 0);
        let progress = read_progress(&mut reader)?.into_iter().collect();
        let mut history = Vec::new();
        for _ in 0..reader.count(17).map_err(short)? {
            let (number, digest) = (reader.u64().map_err(short)?, reader.u64().map_err(short)?);
            let summary = reader.text()?.chars().take(MAX_SUMMARY).collect();
            history.push(Past { number, digest, summary });
        }
        if history.len() > MAX_HISTORY {
            return Err(LayoutError::Malformed);
        }
        let mut staged = BTreeMap::new();
        for _ in 0..reader.count(9).map_err(short)? {
            let Staged { id, change } = Staged::read(&mut reader)?;
            staged.insert(id, change);
        }
        if staged.len() > 2 * MAX_STAGED {
            return Err(LayoutError::Malformed);
        }
        let mut cleared = BTreeSet::new();
        for _ in 0..reader.count(8).map_err(short)? {
            cleared.insert(reader.u64().map_err(short)?);
        }
        let chained = active.windows(2).all(|pair| pair[1].parent() == pair[0].digest());
        let one_ring = active.windows(2).all(|pair| pair[1].partitions() == pair[0].partitions());
        let ends = history.last().map(|past| past.digest) == active.last().map(|layout| layout.digest());
        if active.is_empty() || active.len() > MAX_ACTIVE + RESERVED_ACTIVE || !chained || !one_ring || !ends
        {
            return Err(LayoutError::Malformed);
        }
        Ok(Layouts { this, active, base, progress, own, history, staged, cleared, removed })
    }

    /// What a node that has no layout yet makes of what another one knows.
    pub fn first_of(this: NodeId, theirs: Layouts) -> Layouts {
        let settled = theirs.active.len() == 1;
        Layouts { this, own: if settled { Phase::Cleared } else { Phase::Unaware }, removed: None, ..theirs }
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

const FORMAT: u8 = 1;

fn phase(byte: u8) -> Result<Phase, LayoutError> {
    Phase::ALL.get(byte as usize).copied().ok_or(LayoutError::Malformed)
}

fn put_progress(out: &mut Vec<u8>, progress: impl ExactSizeIterator<Item = (NodeId, Phase)>) {
    put_varint(out, progress.len() as u64);
    for (node, phase) in progress {
        put_u64(out, node.0);
        out.push(phase as u8);
    }
}

fn read_progress(reader: &mut Reader<'_>) -> Result<Vec<(NodeId, Phase)>, LayoutError> {
    let short = |_: Short| LayoutError::Malformed;
    let mut progress = Vec::new();
    for _ in 0..reader.count(9).map_err(short)? {
        let node = NodeId(reader.u64().map_err(short)?);
        progress.push((node, phase(reader.byte().map_err(short)?)?));
    }
    Ok(progress)
}

fn summary(layout: &Layout) -> String {
    if layout.changes().is_empty() {
        return format!("{} members", layout.members().len());
    }
    let changes: Vec<String> = layout.changes().iter().map(|staged| staged.change.to_string()).collect();
    changes.join("; ").chars().take(MAX_SUMMARY).collect()
}

impl News {
    /// As bytes, for the others.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        [self.oldest, self.newest, self.staged].iter().for_each(|number| put_u64(&mut out, *number));
        put_progress(&mut out, self.progress.iter().copied());
        out
    }

    /// The news that `encode` wrote.
    ///
    /// # Errors
    /// [`LayoutError::Malformed`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<News, LayoutError> {
        let short = |_: Short| LayoutError::Malformed;
        let mut reader = Reader::new(bytes);
        if reader.byte().map_err(short)? != FORMAT {
            return Err(LayoutError::Malformed);
        }
        let (oldest, newest, staged) =
            (reader.u64().map_err(short)?, reader.u64().map_err(short)?, reader.u64().map_err(short)?);
        let progress = read_progress(&mut reader)?;
        Ok(News { oldest, newest, staged, progress })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Member;

    fn members(count: usize) -> Vec<Member> {
        (0..count).map(|n| Member::new(&format!("n{n}"), &format!("h:{n}"), "")).collect()
    }

    fn id(n: usize) -> NodeId {
        NodeId::of_name(&format!("n{n}"))
    }

    fn cluster(count: usize, known: usize) -> Vec<Layouts> {
        let first = Layout::first(members(count), 16, 3).unwrap();
        (0..known).map(|n| Layouts::settled(id(n), first.clone())).collect()
    }

    fn staged(id: u64, change: Change) -> Staged {
        Staged { id, change }
    }

    fn join(name: &str) -> Change {
        Change::Join { name: name.into(), address: "h:9".into(), zone: String::new(), weight: 100 }
    }

    /// Everybody tells everybody, and who learned of a newer layout stores it.
    fn exchange(nodes: &mut [Layouts]) {
        for from in 0..nodes.len() {
            for to in 0..nodes.len() {
                let theirs = Layouts::decode(id(to), &nodes[from].encode()).unwrap();
                nodes[to].absorb(&theirs, true);
                if nodes[to].own() == Phase::Unaware {
                    nodes[to].advance();
                }
            }
        }
    }

    /// No phase is entered before everybody is in the one before, reads move once and writes overlap with both.
    #[test]
    fn a_change_goes_through_all_phases_together() {
        let mut nodes = cluster(3, 4);
        nodes[0].stage(staged(1, join("n3"))).unwrap();
        nodes[0].commit(None).unwrap();
        nodes[0].advance();
        let mut reads = vec![1];
        for _ in 0..50 {
            exchange(&mut nodes);
            let least = nodes.iter().map(|node| node.own()).min().unwrap();
            for node in &mut nodes {
                let view = node.view();
                reads.push(view.read.number());
                let written: Vec<u64> = view.also.iter().map(|layout| layout.number()).collect();
                match node.own() {
                    Phase::Known | Phase::Acked | Phase::Synced if !view.is_settled() => {
                        assert!(written.len() == 1 || view.least < Phase::Known, "{view:?}");
                    }
                    _ => {}
                }
                assert!(node.own() <= Phase::ALL[(least as usize + 1).min(6)]);
                if node.duty() != Duty::Rest {
                    node.advance();
                }
            }
        }
        assert!(nodes.iter().all(|node| node.view().is_settled() && node.newest().number() == 2));
        assert_eq!(nodes[0].staged(), []);
        reads.dedup();
        assert!(reads.windows(2).filter(|pair| pair[1] < pair[0]).count() <= nodes.len());
    }

    /// A member that says nothing holds everybody at the first phase, where nothing has changed yet; declaring its disk
    /// lost lets them go on.
    #[test]
    fn a_dead_member_is_waited_for_until_it_is_declared_lost() {
        let mut all = cluster(4, 4);
        let mut nodes = all.split_off(1);
        nodes[0].stage(staged(1, Change::Weight { name: "n2".into(), weight: 200 })).unwrap();
        nodes[0].commit(None).unwrap();
        nodes[0].advance();
        let turn = |nodes: &mut [Layouts]| {
            for from in 0..nodes.len() {
                for to in 0..nodes.len() {
                    let theirs = nodes[from].clone();
                    nodes[to].absorb(&theirs, true);
                    if nodes[to].own() == Phase::Unaware || nodes[to].duty() != Duty::Rest {
                        nodes[to].advance();
                    }
                }
            }
        };
        (0..20).for_each(|_| turn(&mut nodes));
        assert!(nodes.iter().all(|node| node.own() == Phase::Known && node.view().also.is_empty()));
        nodes[1].stage(staged(2, Change::Remove { name: "n0".into() })).unwrap();
        nodes[1].commit(None).unwrap();
        nodes[1].advance();
        (0..40).for_each(|_| turn(&mut nodes));
        assert!(nodes.iter().all(|node| node.view().is_settled() && node.newest().number() == 3));
        // The one that was taken out finds out, and does not serve what it has.
        let theirs = nodes[0].clone();
        assert!(all[0].clone().absorb(&theirs, false) && all[0].absorb(&theirs, true) && all[0].removed());
    }

    /// Two layouts of one number: the same one stays everywhere, whoever hears of whom first, and what the other one
    /// changed is staged again.
    #[test]
    fn one_of_two_rivals_stays_and_the_other_is_staged_again() {
        for order in [[0, 1], [1, 0]] {
            let mut nodes = cluster(4, 4);
            nodes[0].stage(staged(1, Change::Weight { name: "n1".into(), weight: 200 })).unwrap();
            nodes[3].stage(staged(2, Change::Leave { name: "n2".into() })).unwrap();
            for node in [0, 3] {
                nodes[node].commit(None).unwrap();
                nodes[node].advance();
            }
            for at in order {
                let rival = [0, 3][at];
                for to in [1, 2] {
                    let theirs = nodes[rival].clone();
                    nodes[to].absorb(&theirs, true);
                }
            }
            (0..3).for_each(|_| exchange(&mut nodes));
            let digests: BTreeSet<u64> = nodes.iter().map(|node| node.newest().digest()).collect();
            assert_eq!(digests.len(), 1);
            for node in &nodes {
                assert_eq!(node.staged().len(), 1);
                assert_ne!(node.staged()[0].id, node.newest().changes()[0].id);
            }
        }
    }

    /// Everybody tells everybody and goes on, until all are through.
    fn settle(nodes: &mut [Layouts]) {
        for _ in 0..60 {
            exchange(nodes);
            nodes.iter_mut().filter(|node| node.duty() != Duty::Rest).for_each(Layouts::advance);
        }
        let first = nodes[0].newest().digest();
        assert!(nodes.iter().all(|node| node.view().is_settled() && node.newest().digest() == first));
    }

    fn weight(name: &str, weight: u16) -> Change {
        Change::Weight { name: name.into(), weight }
    }

    /// A node that was away while the others made the change that is staged there, under another number, does not stage it
    /// anew for everybody: it would stand in the way of every other change.
    #[test]
    fn what_was_made_meanwhile_is_not_staged_any_more() {
        let mut nodes = cluster(5, 5);
        nodes[0].stage(staged(1, Change::Leave { name: "n3".into() })).unwrap();
        nodes[0].stage(staged(2, weight("n1", 200))).unwrap();
        let away = nodes.remove(0);
        nodes[0].stage(staged(3, Change::Leave { name: "n3".into() })).unwrap();
        nodes[0].commit(None).unwrap();
        nodes[0].advance();
        exchange(&mut nodes);
        nodes.insert(0, away);
        exchange(&mut nodes);
        let waits = [staged(2, weight("n1", 200))];
        nodes
            .iter()
            .for_each(|node| assert_eq!((node.newest().number(), node.staged()), (2, waits.to_vec())));
        // And not once it is a member again.
        settle(&mut nodes);
        nodes[2].stage(staged(4, join("n3"))).unwrap();
        nodes[2].commit(None).unwrap();
        nodes[2].advance();
        settle(&mut nodes);
        nodes.iter().for_each(|node| assert_eq!((node.newest().number(), node.staged()), (3, vec![])));
        assert!(nodes[0].newest().member(id(3)).is_some());
    }

    /// What is staged and does not fit a layout is still there when that gives way to another; so is what was staged for it.
    #[test]
    fn what_a_loser_ruled_out_stays_staged() {
        let mut lost = 0;
        for value in 101..117 {
            let mut nodes = cluster(4, 5);
            nodes[0].stage(staged(1, weight("n3", 200))).unwrap();
            exchange(&mut nodes);
            nodes[0]
                .commit_only(&[staged(2, Change::Leave { name: "n3".into() }), staged(3, join("n4"))])
                .unwrap();
            nodes[0].advance();
            nodes[0].stage(staged(4, weight("n4", 50))).unwrap();
            nodes[1].commit_only(&[staged(5, weight("n2", value))]).unwrap();
            nodes[1].advance();
            // Those who hear of one do so before the other's maker does.
            for (to, from) in [(2, 1), (2, 0), (1, 0), (1, 2), (3, 2), (3, 0), (1, 3), (2, 3), (4, 0), (1, 4)]
            {
                let theirs = nodes[from].clone();
                nodes[to].absorb(&theirs, true);
            }
            // One hears that everybody knows before it hears what they have staged.
            for (to, from) in [(0, 1), (0, 2), (3, 0), (4, 0)] {
                let theirs = nodes[from].clone();
                nodes[to].absorb(&theirs, true);
                if nodes[to].own() == Phase::Unaware {
                    nodes[to].advance();
                }
                let news = nodes[to].news();
                for node in &mut nodes {
                    node.hear(&news);
                }
            }
            exchange(&mut nodes);
            let stays: Vec<u64> = nodes[0].newest().changes().iter().map(|staged| staged.id).collect();
            let expected = if stays == [5] { vec![1, 2, 3, 4] } else { vec![4, 5] };
            lost += usize::from(stays == [5]);
            settle(&mut nodes);
            for node in &nodes {
                let staged: Vec<u64> = node.staged().iter().map(|staged| staged.id).collect();
                assert_eq!(staged, expected, "{value}");
            }
        }
        assert!((1..16).contains(&lost), "{lost} of 16: both must happen");
    }

    /// Of two changes of one number the same one stays everywhere, and there is a bound on what others make a node remember.
    #[test]
    fn changes_of_one_number_are_not_swapped_for_ever() {
        let mut nodes = cluster(3, 2);
        nodes[0].stage(staged(1, weight("n0", 50))).unwrap();
        nodes[1].stage(staged(1, weight("n1", 60))).unwrap();
        exchange(&mut nodes);
        assert_eq!(nodes[0].staged(), nodes[1].staged());
        let before = nodes.clone();
        exchange(&mut nodes);
        assert!(before == nodes);
    }

    /// Whoever did not hear the answer asks again, perhaps another node that has heard of it or has not: it is made once.
    #[test]
    fn a_change_that_is_asked_for_again_is_made_once() {
        let leave = [staged(1, Change::Leave { name: "n3".into() })];
        let mut nodes = cluster(4, 4);
        assert_eq!(nodes[0].commit_only(&leave), Ok(true));
        nodes[0].advance();
        assert_eq!(nodes[0].commit_only(&leave), Ok(false));
        let theirs = nodes[0].clone();
        nodes[1].absorb(&theirs, true);
        assert_eq!(nodes[1].commit_only(&leave), Ok(false));
        assert_eq!(nodes[2].commit_only(&leave), Ok(true));
        nodes[2].advance();
        exchange(&mut nodes);
        settle(&mut nodes);
        nodes.iter().for_each(|node| assert_eq!((node.newest().number(), node.staged()), (2, vec![])));
        // So it is with a plan, and with what is staged.
        nodes[1].stage(staged(2, join("n3"))).unwrap();
        nodes[1].stage(staged(2, join("n3"))).unwrap();
        assert!(nodes[1].stage(staged(2, join("n4"))).is_err(), "the number is another change's");
        let plan = nodes[1].plan().unwrap().digest();
        assert_eq!((nodes[1].commit(Some(plan)), nodes[1].commit(Some(plan))), (Ok(true), Ok(false)));
        nodes[1].stage(staged(2, join("n3"))).unwrap();
        assert_eq!(nodes[1].staged(), []);
    }

    /// Somebody may be through with several layouts at once: what made them is not staged again.
    #[test]
    fn what_several_layouts_changed_is_not_staged_again() {
        let mut nodes = cluster(3, 3);
        for weight in 101..104 {
            nodes[0].stage(staged(u64::from(weight), Change::Weight { name: "n1".into(), weight })).unwrap();
            nodes[0].commit(None).unwrap();
            nodes[0].advance();
        }
        nodes[0].forget_before(2);
        assert_eq!((nodes[0].active().len(), nodes[0].staged()), (2, vec![]));
    }

    /// A change that is reverted while it is under way: a third layout, and the second is never read.
    #[test]
    fn a_third_layout_overtakes_the_second() {
        let mut nodes = cluster(4, 4);
        nodes[0].stage(staged(1, Change::Leave { name: "n3".into() })).unwrap();
        nodes[0].commit(None).unwrap();
        nodes[0].advance();
        for _ in 0..3 {
            exchange(&mut nodes);
            nodes.iter_mut().filter(|node| node.duty() == Duty::Quiet).for_each(Layouts::advance);
        }
        assert!(nodes.iter().all(|node| node.own() == Phase::Acked));
        nodes[1].stage(staged(2, join("n3"))).unwrap();
        nodes[1].commit(None).unwrap();
        nodes[1].advance();
        for _ in 0..40 {
            exchange(&mut nodes);
            for node in &mut nodes {
                let view = node.view();
                assert_ne!(view.read.number(), 2);
                assert!(
                    view.is_settled()
                        || view.least >= Phase::Reading
                        || view.also.iter().any(|l| l.number() == 2)
                );
                if node.duty() != Duty::Rest {
                    node.advance();
                }
            }
        }
        assert!(nodes.iter().all(|node| node.view().is_settled() && node.newest().number() == 3));
        assert!(nodes[2].newest().member(id(3)).is_some());
    }

    /// A rival that was committed by a node whose disk was then declared lost changes nothing, whichever digest is larger; and
    /// that node is taken out although it was made a member again, unless its disk is empty.
    #[test]
    fn who_was_declared_lost_changes_nothing_any_more() {
        for weight in 101..109 {
            let mut all = cluster(4, 4);
            all[0].stage(staged(9, Change::Weight { name: "n1".into(), weight })).unwrap();
            all[0].commit(None).unwrap();
            all[0].advance();
            let mut nodes = all.split_off(1);
            nodes[0].stage(staged(1, Change::Remove { name: "n0".into() })).unwrap();
            nodes[0].commit(None).unwrap();
            nodes[0].advance();
            for _ in 0..3 {
                exchange(&mut nodes);
                nodes.iter_mut().filter(|node| node.duty() == Duty::Quiet).for_each(Layouts::advance);
            }
            let theirs = all[0].clone();
            nodes[1].absorb(&theirs, true);
            assert!(nodes[1].newest().is_lost(id(0)), "the one that everybody knows stays");
            nodes[2].stage(staged(3, join("n0"))).unwrap();
            nodes[2].commit(None).unwrap();
            nodes[2].advance();
            let theirs = nodes[2].clone();
            let mut empty = all[0].clone();
            assert!(empty.absorb(&theirs, false) && !empty.removed());
            assert!(all[0].absorb(&theirs, true) && all[0].removed() && all[0].duty() == Duty::Rest);
        }
    }

    /// What a peer or a disk says is decoded or refused, never a panic.
    #[test]
    fn knowledge_round_trips_and_truncations_are_errors() {
        let mut nodes = cluster(3, 1);
        nodes[0].stage(staged(5, join("n3"))).unwrap();
        nodes[0].commit(None).unwrap();
        nodes[0].advance();
        nodes[0].stage(staged(6, Change::Replicas { count: 4 })).unwrap();
        let bytes = nodes[0].encode();
        assert_eq!(Layouts::decode(id(0), &bytes).unwrap(), nodes[0]);
        for end in 0..bytes.len() {
            assert!(Layouts::decode(id(0), &bytes[..end]).is_err());
        }
        let news = nodes[0].news();
        assert_eq!(News::decode(&news.encode()).unwrap(), news);
    }
}
