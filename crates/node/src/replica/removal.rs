//! Removal of records that this node no longer has to hold.

use bytes::Bytes;
use quorate_core::StorageKey;
use quorate_core::codec::decode_unread;
use quorate_core::storage::{RecordAction, StorageError, Update};
use tokio::sync::oneshot;

use super::Replica;
use super::record_update::{Decision, Finished, RecordChange, SideEffect, Tracked};
use crate::state::hash_trees::{RecordState, TreeChange};
use crate::state::shared::Shared;

impl Replica {
    /// Removes records, and asks the engine to commit the removals at once. Returns a receiver for
    /// each record's outcome.
    pub(crate) fn remove(
        &self,
        keys: impl Iterator<Item = StorageKey>,
    ) -> Vec<oneshot::Receiver<Result<(), StorageError>>> {
        let mut removed = Vec::new();
        let mut updates: Vec<Box<dyn Update>> = Vec::new();
        for key in keys {
            let (done, outcome) = oneshot::channel();
            removed.push(outcome);
            updates.push(Tracked::update(DropRecord { key, done }, &self.shared));
        }
        self.shared.engine.update(updates);
        self.shared.engine.flush();
        removed
    }
}

/// The removal of one record, whatever it contains. An unreadable record is removed too.
struct DropRecord {
    key: StorageKey,
    done: oneshot::Sender<Result<(), StorageError>>,
}

impl RecordChange for DropRecord {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn decide(&mut self, _: &Shared, stored: Option<Bytes>) -> Result<Decision, StorageError> {
        let Some(stored) = stored else { return Ok(Decision::keep()) };
        let old = decode_unread(&stored).ok().map(|unread| RecordState::of(&unread.unchecked().object));
        let removal = |old| TreeChange { key: self.key.clone(), old: Some(old), new: None };
        let side_effect = old.map(removal).map(SideEffect::Tree);
        Ok(Decision { action: RecordAction::Remove, side_effect })
    }

    fn finished(self, _: &Shared, end: Finished) {
        let _ = self.done.send(end.outcome);
    }
}
