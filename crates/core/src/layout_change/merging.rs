//! Two nodes' knowledge made one, in any order; and which of two layouts that were made of one stays.

use super::layouts::{Base, LayoutRecord, Layouts};
use super::phase::Phase;
use crate::member::NodeId;

impl Layouts {
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
    pub(super) fn went_by(&self, digest: u64) -> bool {
        let mode = self.mode(self.cluster_phase());
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

    /// What a node that has no layout yet makes of what another one knows.
    pub fn first_of(this: NodeId, theirs: Layouts) -> Layouts {
        let settled = theirs.active.len() == 1;
        Layouts { this, own: if settled { Phase::Cleared } else { Phase::Unaware }, removed: None, ..theirs }
    }
}
