//! The merge of two nodes' layouts and progress, in any order; and the choice between two layouts
//! that were made from the same one.

use super::layouts::{Base, LayoutRecord, Layouts};
use super::phase::Phase;
use crate::member::NodeId;

impl Layouts {
    /// Merges all that another node knows of layouts. Returns true if anything changed; the caller
    /// must then store the result before it acts on it.
    ///
    /// If the other node has a newer layout, this node's own phase is `Unaware` afterwards. The
    /// caller stores the layout and then calls [`Layouts::advance`].
    ///
    /// `holds_data`: true if there are objects or hints on this node's disk. If the other node's
    /// layouts removed this node while it was down, these records are outdated. This node then
    /// counts as removed: it refuses requests until it starts with an empty folder.
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
            // If the other node reads or writes newer layouts, it has seen that all nodes reached
            // the phase that allows this.
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
            // The other node will adopt this node's layouts. The changes that made its own layouts
            // are staged again now. Otherwise staged changes that depend on them would be withdrawn
            // in the meantime.
            let stays = self.history.clone();
            self.stage_again(&theirs.active, &stays);
            return false;
        }
        self.adopt(theirs, holds_data);
        true
    }

    /// True if all nodes knew this layout, so that requests may have used it or one made from it.
    /// Also true for older layouts of the history.
    pub(super) fn went_by(&self, digest: u64) -> bool {
        let mode = self.mode(self.cluster_phase());
        let position = self.active.iter().position(|layout| layout.digest() == digest);
        match position {
            Some(at) => at <= mode.to || mode.newest,
            // The layout is no longer active: all nodes have completed the change to a later one.
            None => self.history.iter().any(|past| past.digest == digest),
        }
    }

    /// True if the other node's layout wins over this node's, where both were made from the same
    /// one. Every node comes to the same decision.
    ///
    /// A layout that all nodes knew wins. (The node that made the other layout did not know the
    /// winner. It was not waited for, because its disk was declared lost.) Otherwise the larger
    /// digest wins.
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

    fn adopt(&mut self, theirs: &Layouts, holds_data: bool) {
        // The layout that removed this node may have lost to another one. The node is then a member
        // as before.
        let undone = self.removed.is_some_and(|by| !theirs.history.iter().any(|past| past.digest == by));
        let took_part = holds_data && (undone || self.took_part());
        self.removed = self.removed.filter(|_| !undone);
        self.freeze();
        let mine = self.active.clone();
        self.stage_again(&mine, &theirs.history);
        let oldest = self.active[0].digest();
        let mine = self.base;
        let skip = theirs.active.iter().position(|layout| layout.digest() == oldest).unwrap_or(0);
        // No request used a layout of this node that lost. The node continues from the last layout
        // that both nodes have in common.
        let common =
            self.history.iter().zip(&theirs.history).take_while(|(a, b)| a.digest == b.digest).count();
        let LayoutRecord { digest: fork, number: fork_number, .. } = self.history[common.max(1) - 1];
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
        // A node whose disk was declared lost is removed even if it was made a member again: only
        // an empty disk may join again.
        let lost_since = self.newest().lost_by(self.this) > fork_number;
        if self.removed.is_none() && took_part && (lost_since || !self.participants().contains(&self.this)) {
            let lost_by = self.newest().lost_by(self.this);
            let by = self.history.iter().find(|past| past.number == lost_by);
            self.removed = Some(by.map_or(self.newest().digest(), |past| past.digest));
        }
        self.settle();
    }

    /// True if this node has held data in an active layout. False if it was a member of none, or
    /// has handed over all its data and missed later layouts.
    fn took_part(&self) -> bool {
        let member = self.active.iter().any(|layout| layout.member(self.this).is_some());
        let handed_over = self.own == Phase::Cleared && self.newest().member(self.this).is_none();
        member && !handed_over
    }

    /// Returns the layouts of a node that has none yet, from all that another node knows.
    pub fn first_of(this: NodeId, theirs: Layouts) -> Layouts {
        let settled = theirs.active.len() == 1;
        Layouts { this, own: if settled { Phase::Cleared } else { Phase::Unaware }, removed: None, ..theirs }
    }
}
