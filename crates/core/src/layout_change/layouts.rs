//! The layouts that a node knows, and the phase of every node in the change to the newest one.

use crate::change::{LayoutChange, StagedChange};
use crate::key::PartitionId;
use crate::layout::Layout;
use crate::member::NodeId;
use crate::planted::{Bug, planted};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::phase::{NextStep, Phase};
use super::summary::{LayoutSummary, SummaryMerge};
use super::view::View;

/// Maximum number of layouts that are active together. Further layout changes are refused until
/// older layouts are forgotten.
pub const MAX_ACTIVE: usize = 6;

/// Number of layouts that may be active beyond [`MAX_ACTIVE`]. Such a layout must declare a disk
/// lost, because the earlier layout changes may be waiting for that node.
pub(super) const RESERVED_ACTIVE: usize = 4;

/// Maximum number of staged changes. Further ones are refused.
pub const MAX_STAGED: usize = 256;

/// Maximum number of remembered ids of changes that were made or withdrawn. The smallest ids are
/// forgotten first. Another node may still have such a change staged; without the id, this node
/// would stage it again.
pub(super) const MAX_CLEARED: usize = 1_024;

/// Maximum number of layouts in the history. The oldest are dropped, except for the first.
pub(super) const MAX_HISTORY: usize = 4_096;

pub(super) const MAX_SUMMARY: usize = 1_024;

/// An entry of the history: a layout that is or was the newest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayoutRecord {
    /// The layout's number.
    pub number: u64,
    /// The layout's digest.
    pub digest: u64,
    /// The changes that made the layout, as text for people.
    pub summary: String,
}

/// Digests of the layouts that a node reads (`read`) and writes (all from `from` to `to`) until the
/// newest layout takes over. They are fixed when a newer layout appears.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Base {
    pub(super) read: u64,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// All that a node knows of layouts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layouts {
    pub(super) this: NodeId,
    /// Active layouts, each the parent of the next. There is at least one.
    pub(super) active: Vec<Arc<Layout>>,
    pub(super) base: Base,
    /// Phases of nodes in the change to the newest layout.
    pub(super) progress: BTreeMap<NodeId, Phase>,
    /// This node's own phase, restored from its own disk. After the loss of the disk it is not taken
    /// from the other nodes: the node goes through the phases again.
    pub(super) own: Phase,
    /// Layouts up to the newest, which is the last.
    pub(super) history: Vec<LayoutRecord>,
    pub(super) staged: BTreeMap<u64, LayoutChange>,
    pub(super) cleared: BTreeSet<u64>,
    /// Digest of the layout that removed this node while it was down or cut off.
    pub(super) removed: Option<u64>,
}

impl Layouts {
    /// Creates the state of a node with one layout and no layout change under way.
    pub fn settled(this: NodeId, layout: Layout) -> Layouts {
        let digest = layout.digest();
        let past = LayoutRecord { number: layout.number(), digest, summary: describe_changes(&layout) };
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

    /// Returns the newest layout.
    pub fn newest(&self) -> &Arc<Layout> {
        self.active.last().expect("one layout is always active")
    }

    /// Returns all active layouts, the oldest first.
    pub fn active(&self) -> &[Arc<Layout>] {
        &self.active
    }

    /// Returns the digest of the first layout in the history, which is the same on all nodes of a
    /// cluster.
    pub fn root(&self) -> u64 {
        self.history[0].digest
    }

    /// Returns the history, the newest layout last.
    pub fn history(&self) -> &[LayoutRecord] {
        &self.history
    }

    /// True if this node was removed while it was down or cut off.
    pub fn removed(&self) -> bool {
        self.removed.is_some()
    }

    /// Returns this node's phase in the change to the newest layout.
    pub fn local_phase(&self) -> Phase {
        self.own
    }

    /// Returns a participant's phase, as far as this node knows.
    pub fn phase_of(&self, node: NodeId) -> Phase {
        if self.active.len() == 1 {
            return Phase::Cleared;
        }
        self.progress.get(&node).copied().unwrap_or_default()
    }

    /// Returns the members of all active layouts, without those whose disk was declared lost.
    /// Sorted by id.
    pub fn participants(&self) -> Vec<NodeId> {
        let all = self.active.iter().flat_map(|layout| layout.members()).map(|member| member.id);
        let newest = self.newest();
        let mut all: Vec<NodeId> = all.filter(|&node| !newest.is_lost(node)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Returns the phase that every participant has reached.
    pub fn cluster_phase(&self) -> Phase {
        self.participants().into_iter().map(|node| self.phase_of(node)).min().unwrap_or(Phase::Cleared)
    }

    /// Returns the positions in `active` of the layouts that are read and written, if every
    /// participant has reached the phase `least`. A flag says if the newest layout is written too.
    pub(super) fn mode(&self, least: Phase) -> Mode {
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

    /// Returns the position of an active layout, or that of the oldest if it is no longer active.
    pub(super) fn position(&self, digest: u64) -> usize {
        self.active.iter().position(|layout| layout.digest() == digest).unwrap_or(0)
    }

    /// Returns the layouts as a request that begins now sees them.
    pub fn view(&self) -> View {
        let least = self.cluster_phase();
        let mode = self.mode(least);
        let newest = self.active.len() - 1;
        let written = |at: &usize| (mode.from..=mode.to).contains(at) || (*at == newest && mode.newest);
        let also = (0..self.active.len()).filter(|at| *at != mode.read).filter(written);
        View {
            read: self.active[mode.read].clone(),
            pending_write_layouts: also.map(|at| self.active[at].clone()).collect(),
            participants: self.participants(),
            active: self.active.clone(),
            cluster_phase: least,
            removed: self.removed(),
        }
    }

    /// Returns the older layouts whose replicas may hold records that the newest layout's replicas
    /// must copy.
    pub fn sources(&self) -> &[Arc<Layout>] {
        let newest = self.active.len() - 1;
        &self.active[self.position(self.base.read).min(newest)..newest]
    }

    /// Returns the buckets for which requests under the newest layout may miss writes under one of
    /// its [`Layouts::sources`].
    pub fn redefined_buckets(&self) -> BTreeSet<String> {
        let newest = self.newest().buckets();
        let redefined = |source: &Arc<Layout>| {
            newest.that_miss(source.buckets(), source.replicas()).map(str::to_owned).collect()
        };
        self.sources().iter().flat_map(|source| -> Vec<String> { redefined(source) }).collect()
    }

    /// True if this node gains the partition in the newest layout, and has not copied it yet.
    pub fn has_to_copy(&self, partition: PartitionId) -> bool {
        let held = self.sources().iter().any(|source| source.holds(self.this, partition));
        self.active.len() > 1
            && self.own < Phase::Synced
            && !self.removed()
            && !held
            && self.newest().holds(self.this, partition)
    }

    /// Returns this node's next step.
    pub fn next_step(&self) -> NextStep {
        let least = self.cluster_phase();
        let takes_part = self.active.len() > 1 && !self.removed() && self.participants().contains(&self.this);
        if takes_part && planted(Bug::SyncBeforeAllAcked) {
            match self.own {
                Phase::Known => return NextStep::CopyData,
                Phase::Acked if least >= Phase::Acked => return NextStep::DrainRequests,
                _ => {}
            }
        }
        if !takes_part || least < self.own {
            return NextStep::Idle;
        }
        match self.own {
            Phase::Unaware | Phase::Cleared => NextStep::Idle,
            Phase::Known | Phase::Synced | Phase::Reading => NextStep::DrainRequests,
            Phase::Acked => NextStep::CopyData,
            Phase::Released => NextStep::HandOff,
        }
    }

    /// Moves this node to its next phase. Call it after the node has done its step, or has stored
    /// the newest layout. Store the result before telling other nodes.
    pub fn advance(&mut self) {
        let next = Phase::ALL.iter().position(|phase| *phase == self.own).unwrap_or(0) + 1;
        self.own = Phase::ALL[next.min(Phase::ALL.len() - 1)];
        self.note(self.this, self.own);
        self.settle();
    }

    pub(super) fn note(&mut self, node: NodeId, phase: Phase) -> bool {
        let known = self.progress.entry(node).or_default();
        let news = phase > *known;
        *known = (*known).max(phase);
        news
    }

    /// Forgets the older layouts, if every participant is in the last phase. Returns true if it
    /// did.
    pub(super) fn settle(&mut self) -> bool {
        if self.active.len() == 1 || self.cluster_phase() < Phase::Cleared {
            return false;
        }
        self.forget_before(self.active.len() - 1);
        true
    }

    /// Forgets the layouts before this position. Call it only if some node has seen that every node
    /// is done with them.
    pub(super) fn forget_before(&mut self, position: usize) {
        if position == 0 {
            return;
        }
        let gone: Vec<Arc<Layout>> = self.active.drain(..position).collect();
        // The creation of a bucket is never staged. Its id is not remembered, because the ids of
        // many buckets would displace the ids of other changes.
        let is_staged = |staged: &&StagedChange| !matches!(staged.change, LayoutChange::Bucket { .. });
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

    /// Fixes the layouts that this node reads and writes now, so that it continues to use them when
    /// a newer layout is added.
    pub(super) fn freeze(&mut self) {
        let mode = self.mode(self.cluster_phase());
        let newest = self.active.len() - 1;
        let to = if mode.newest { newest } else { mode.to };
        let digest = |at: usize| self.active[at].digest();
        self.base = Base { read: digest(mode.read), from: digest(mode.from), to: digest(to) };
    }

    pub(super) fn push(&mut self, layout: Arc<Layout>) {
        let (number, digest, summary) = (layout.number(), layout.digest(), describe_changes(&layout));
        self.history.push(LayoutRecord { number, digest, summary });
        if self.history.len() > MAX_HISTORY {
            // The first layout stays: nodes of one cluster recognise each other by it.
            self.history.remove(1);
        }
        self.active.push(layout);
        self.progress.clear();
        self.own = Phase::Unaware;
    }

    /// Returns this node's summary for other nodes.
    pub fn summary(&self) -> LayoutSummary {
        let known = |(node, phase): (&NodeId, &Phase)| (*node, *phase);
        LayoutSummary {
            oldest: self.active[0].digest(),
            newest: self.newest().digest(),
            staged: self.staged_digest(),
            progress: self.progress.iter().map(known).collect(),
        }
    }

    /// Merges another node's summary.
    pub fn merge_summary(&mut self, news: &LayoutSummary) -> SummaryMerge {
        if news.newest != self.newest().digest() {
            let behind = self.history.iter().any(|past| past.digest == news.newest);
            return SummaryMerge { changed: false, fetch: !behind };
        }
        let fetch = news.staged != self.staged_digest();
        let changed = self.join_progress(news.oldest, news.progress.iter().copied());
        SummaryMerge { changed, fetch }
    }

    /// Merges the phases of nodes that another node knows. Its newest layout must be the same as
    /// this node's. `oldest` is the digest of that node's oldest active layout. Returns true if
    /// anything changed.
    pub(super) fn join_progress(
        &mut self,
        oldest: u64,
        progress: impl Iterator<Item = (NodeId, Phase)>,
    ) -> bool {
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

/// The layouts that are read and written, as positions in `active`. Writes use all layouts from
/// `from` to `to`.
pub(super) struct Mode {
    pub(super) read: usize,
    pub(super) from: usize,
    pub(super) to: usize,
    /// True if writes use the newest layout too.
    pub(super) newest: bool,
}

pub(super) fn describe_changes(layout: &Layout) -> String {
    if layout.changes().is_empty() {
        return format!("{} members", layout.members().len());
    }
    let changes: Vec<String> = layout.changes().iter().map(|staged| staged.change.to_string()).collect();
    changes.join("; ").chars().take(MAX_SUMMARY).collect()
}
