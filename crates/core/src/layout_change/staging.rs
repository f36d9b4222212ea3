//! Changes that wait for their commit: an operator stages, shows, commits or withdraws them. Two
//! nodes may each make a next layout at the same time; only one of these stays. The changes of the
//! layout that loses are staged again.

use std::sync::Arc;

use super::layouts::{LayoutRecord, Layouts, MAX_ACTIVE, MAX_CLEARED, MAX_STAGED, RESERVED_ACTIVE};
use crate::change::{LayoutChange, StagedChange};
use crate::layout::Layout;
use crate::layout_error::LayoutError;

impl Layouts {
    pub(super) fn tidy_staged(&mut self) {
        self.staged.retain(|id, _| !self.cleared.contains(id));
        while self.cleared.len() > MAX_CLEARED {
            self.cleared.pop_first();
        }
    }

    /// Returns the changes that wait for their commit, in the order of their ids.
    ///
    /// Changes that cannot be applied to the newest layout are left out. Another operator has made
    /// the same change, or one that rules it out. Such an unfit change would block the commit of
    /// all others.
    pub fn staged(&self) -> Vec<StagedChange> {
        self.waiting().1
    }

    /// Returns the ids of the staged changes that cannot be applied to the newest layout, and the
    /// changes that can.
    pub(super) fn waiting(&self) -> (Vec<u64>, Vec<StagedChange>) {
        let (mut unfit, mut fit) = (Vec::new(), Vec::new());
        if self.staged.is_empty() {
            return (unfit, fit);
        }
        let mut outline = self.newest().outline();
        for (&id, change) in self.staged.iter().filter(|(id, _)| !self.is_done_with(**id)) {
            match outline.apply(change) {
                Ok(()) => fit.push(StagedChange { id, change: change.clone() }),
                Err(_) => unfit.push(id),
            }
        }
        (unfit, fit)
    }

    /// True if the change was made or withdrawn.
    pub fn is_done_with(&self, id: u64) -> bool {
        let made = || self.active.iter().flat_map(|layout| layout.changes()).any(|staged| staged.id == id);
        self.cleared.contains(&id) || made()
    }

    /// Stages a change, if it can be applied together with the changes that are staged already.
    ///
    /// A change that is staged, made or withdrawn already is not staged again: its sender did not
    /// receive the answer, and repeats the request.
    ///
    /// # Errors
    /// [`LayoutError`] if the change is not possible, if too many changes are staged, or if another
    /// change has the same number.
    pub fn stage(&mut self, new: StagedChange) -> Result<(), LayoutError> {
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
        // Each change must be possible in the newest layout, after the staged changes with smaller
        // numbers. Only the commit checks that the result is a valid layout.
        let mut outline = self.newest().outline();
        all.iter().try_for_each(|staged| outline.apply(&staged.change))?;
        self.staged.insert(new.id, new.change);
        Ok(())
    }

    /// Withdraws for good the changes that cannot be applied to the newest layout, once all nodes
    /// know that layout. Before that, the layout may still lose to another one, in which the
    /// changes are possible.
    pub(super) fn withdraw_unfit(&mut self) {
        if !self.staged.is_empty() && self.went_by(self.newest().digest()) {
            let unfit = self.waiting().0;
            self.cleared.extend(unfit);
            self.tidy_staged();
        }
    }

    /// Merges the changes that another node has staged. If two changes have the same number, every
    /// node keeps the one with the smaller encoding.
    pub(super) fn take_staged<'a>(&mut self, staged: impl Iterator<Item = (u64, &'a LayoutChange)>) {
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
        // Changes that cannot be applied to the newest layout are withdrawn too.
        let waiting: Vec<u64> = self.staged.keys().copied().filter(|id| !self.is_done_with(*id)).collect();
        self.cleared.extend(waiting);
        self.tidy_staged();
    }

    /// Returns the layout that the staged changes make.
    ///
    /// # Errors
    /// [`LayoutError`] if no change is staged, if the changes make no valid layout, or if too many
    /// layout changes are under way.
    pub fn plan(&self) -> Result<Layout, LayoutError> {
        let staged = self.staged();
        if staged.is_empty() {
            return Err(LayoutError::Change { detail: "no change is staged".into() });
        }
        self.check_room(staged.iter().map(|staged| &staged.change))?;
        self.newest().changed(&staged)
    }

    pub(super) fn check_room<'a>(
        &self,
        mut changes: impl Iterator<Item = &'a LayoutChange>,
    ) -> Result<(), LayoutError> {
        // Removing a dead member must always be possible, because only that ends a layout change
        // that waits for the member.
        let removes = changes.any(|change| matches!(change, LayoutChange::Remove { .. }));
        if self.active.len() < MAX_ACTIVE + if removes { RESERVED_ACTIVE } else { 0 } {
            return Ok(());
        }
        Err(LayoutError::UnderWay { changes: self.active.len() - 1 })
    }

    /// Makes the staged changes the newest layout. If `shown` is given, only the layout with that
    /// digest is committed. Returns false if that layout was committed already.
    ///
    /// The caller must store the result before it acts on it, and then call [`Layouts::advance`].
    ///
    /// # Errors
    /// Those of [`Layouts::plan`]; `OtherPlan` if the staged changes do not make the layout
    /// `shown`.
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

    /// Makes these changes the newest layout, without the other staged ones. Returns false if they
    /// were made or withdrawn already.
    ///
    /// The caller must store the result before it acts on it, and then call [`Layouts::advance`].
    ///
    /// # Errors
    /// Those of [`Layouts::plan`].
    pub fn commit_only(&mut self, only: &[StagedChange]) -> Result<bool, LayoutError> {
        if only.iter().all(|new| self.is_done_with(new.id)) {
            return Ok(false);
        }
        self.check_room(only.iter().map(|new| &new.change))?;
        let layout = self.newest().changed(only)?;
        self.freeze();
        self.push(Arc::new(layout));
        Ok(true)
    }

    pub(super) fn staged_digest(&self) -> u64 {
        let mut bytes = Vec::new();
        self.staged().iter().for_each(|staged| staged.write(&mut bytes));
        xxhash_rust::xxh3::xxh3_64(&bytes)
    }

    /// Stages again the changes of layouts that lost. A layout has lost if it is in `layouts`, but
    /// not in `stays`, the history of the layout that wins.
    pub(super) fn stage_again(&mut self, layouts: &[Arc<Layout>], stays: &[LayoutRecord]) {
        let loses = |layout: &&Arc<Layout>| !stays.iter().any(|past| past.digest == layout.digest());
        // The creation of a bucket is not staged: the node that serves the request is still
        // waiting, and repeats the creation.
        let is_operators = |staged: &&StagedChange| !matches!(staged.change, LayoutChange::Bucket { .. });
        let changes = layouts.iter().filter(loses).flat_map(|layout| layout.changes()).filter(is_operators);
        self.take_staged(changes.map(|staged| (staged.id, &staged.change)));
    }
}
