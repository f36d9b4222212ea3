//! A change of one record, together with the counters and hash trees that describe the record.
//!
//! The counters change in the step in which the engine applies the record's change. If the change
//! cannot be committed, they are restored.

use std::sync::Arc;

use bytes::Bytes;
use quorate_core::StorageKey;
use quorate_core::storage::{RecordAction, StorageError, Update};

use crate::state::hash_trees::TreeChange;
use crate::state::hint_ledger::HintChange;
use crate::state::shared::Shared;

/// A change of one record. `Tracked` runs it as an engine's update.
pub(crate) trait RecordChange: Send + 'static {
    /// The record.
    fn key(&self) -> &StorageKey;

    /// Decides, given the bytes that are stored now, what becomes of the record.
    ///
    /// # Errors
    /// To leave the record alone.
    fn decide(&mut self, shared: &Shared, stored: Option<Bytes>) -> Result<Decision, StorageError>;

    /// Runs after the change and its side effect were applied.
    fn applied(&mut self) {}

    /// Runs when the change is durable, or has failed and its side effect was undone.
    fn finished(self, shared: &Shared, end: Finished);
}

/// The action on a record, and the change of the counters that goes with it.
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

/// The end of an update.
pub(crate) struct Finished {
    pub(crate) outcome: Result<(), StorageError>,
    /// The change was applied, and perhaps told to others, before it failed or became durable.
    pub(crate) was_applied: bool,
}

/// A change that goes with a record's: of its partition's hash trees, or of the hint ledger.
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

/// A [`RecordChange`] as an engine's update.
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
