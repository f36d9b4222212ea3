//! A change of one record, together with the counters and hash trees that describe the record.
//!
//! The counters and trees change in the same step in which the engine applies the record's change.
//! They are restored if the change cannot be committed.

use std::sync::Arc;

use bytes::Bytes;
use quorate_core::StorageKey;
use quorate_core::storage::{RecordAction, StorageError, Update};

use crate::state::hash_trees::TreeChange;
use crate::state::hint_ledger::HintChange;
use crate::state::shared::Shared;

/// A change of one record. `Tracked` runs it as an update of the engine.
pub(crate) trait RecordChange: Send + 'static {
    /// Returns the storage key of the record.
    fn key(&self) -> &StorageKey;

    /// Decides what to do with the record. `stored` is its current content.
    ///
    /// # Errors
    /// An error leaves the record unchanged.
    fn decide(&mut self, shared: &Shared, stored: Option<Bytes>) -> Result<Decision, StorageError>;

    /// Runs after the change and its side effect were applied.
    fn applied(&mut self) {}

    /// Runs when the change is durable, or when it has failed and its side effect was undone.
    fn finished(self, shared: &Shared, end: Finished);
}

/// The action on a record, and the side effect that belongs to it.
pub(crate) struct Decision {
    pub(crate) action: RecordAction,
    pub(crate) side_effect: Option<SideEffect>,
}

impl Decision {
    pub(crate) fn keep() -> Decision {
        Decision { action: RecordAction::Keep, side_effect: None }
    }

    pub(crate) fn put(object: Bytes, side_effect: SideEffect) -> Decision {
        Decision { action: RecordAction::Put(object), side_effect: Some(side_effect) }
    }
}

/// The result of a finished update.
pub(crate) struct Finished {
    pub(crate) outcome: Result<(), StorageError>,
    /// True if the change was applied before it failed or became durable. It may then have been
    /// sent to other nodes.
    pub(crate) was_applied: bool,
}

/// A change in memory that belongs to a record's change: of the partition's hash trees, or of the
/// hint ledger.
pub(crate) enum SideEffect {
    Tree(TreeChange),
    Hint(HintChange),
}

impl SideEffect {
    fn apply(&self, shared: &Shared) {
        match self {
            SideEffect::Tree(change) => shared.trees.apply(change),
            SideEffect::Hint(change) => shared.hints.apply(*change),
        }
    }

    fn undo(&self, shared: &Shared) {
        match self {
            SideEffect::Tree(change) => shared.trees.undo(change),
            SideEffect::Hint(change) => shared.hints.apply(change.undone()),
        }
    }
}

/// A [`RecordChange`] as an update of the engine, together with its side effect.
pub(crate) struct Tracked<C> {
    change: C,
    shared: Arc<Shared>,
    side_effect: Option<SideEffect>,
    was_applied: bool,
}

impl<C: RecordChange> Tracked<C> {
    /// Wraps a change for the engine.
    pub(crate) fn update(change: C, shared: &Arc<Shared>) -> Box<dyn Update> {
        Box::new(Tracked { change, shared: shared.clone(), side_effect: None, was_applied: false })
    }
}

impl<C: RecordChange> Update for Tracked<C> {
    fn key(&self) -> &StorageKey {
        self.change.key()
    }

    fn change(&mut self, stored: Option<Bytes>) -> Result<RecordAction, StorageError> {
        let Decision { action, side_effect } = self.change.decide(&self.shared, stored)?;
        self.side_effect = side_effect;
        Ok(action)
    }

    fn applied(&mut self) {
        self.was_applied = true;
        if let Some(side_effect) = &self.side_effect {
            side_effect.apply(&self.shared);
        }
        self.change.applied();
    }

    fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
        let Tracked { change, shared, side_effect, was_applied } = *self;
        if let (Err(_), Some(side_effect), true) = (&outcome, &side_effect, was_applied) {
            side_effect.undo(&shared);
        }
        change.finished(&shared, Finished { outcome, was_applied });
    }
}
