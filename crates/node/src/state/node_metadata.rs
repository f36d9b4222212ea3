//! The node metadata that this crate stores beside the objects.

use bytes::Bytes;
use quorate_core::StorageKey;
use quorate_core::key::Table;
use quorate_core::storage::{RecordAction, StorageEngine, StorageError, Update};
use tokio::sync::oneshot;

/// Returns the key of the mark that this node has to recover. The mark exists until the node has
/// recovered.
pub fn recovering_key() -> StorageKey {
    StorageKey::of_table(Table::NodeMetadata, b"recovering")
}

/// Returns the key of the record with the layouts that this node knows.
pub fn layouts_key() -> StorageKey {
    StorageKey::of_table(Table::NodeMetadata, b"layouts")
}

/// Stores the mark that this node may have forgotten data. Does not wait for the commit.
pub(crate) fn mark_recovering(engine: &dyn StorageEngine) {
    engine.update(vec![Box::new(Store { key: recovering_key(), value: Some("1".into()), done: None })]);
}

/// Removes the mark of [`mark_recovering`]. Does not wait for the commit.
pub(crate) fn unmark_recovering(engine: &dyn StorageEngine) {
    engine.update(vec![Box::new(Store { key: recovering_key(), value: None, done: None })]);
}

/// Stores a metadata record and waits until it is durable.
///
/// # Errors
/// The engine's failure.
pub(crate) async fn store(
    engine: &dyn StorageEngine,
    key: StorageKey,
    value: Bytes,
) -> Result<(), StorageError> {
    let (done, stored) = oneshot::channel();
    engine.update(vec![Box::new(Store { key, value: Some(value), done: Some(done) })]);
    engine.flush();
    let dropped = || StorageError::Io { detail: "the storage engine did not finish a write".into() };
    stored.await.unwrap_or_else(|_| Err(dropped()))
}

/// An update that stores one metadata record, or removes it.
struct Store {
    key: StorageKey,
    value: Option<Bytes>,
    done: Option<oneshot::Sender<Result<(), StorageError>>>,
}

impl Update for Store {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, _: Option<Bytes>) -> Result<RecordAction, StorageError> {
        Ok(self.value.clone().map_or(RecordAction::Remove, RecordAction::Put))
    }

    fn applied(&mut self) {}

    fn finished(mut self: Box<Self>, outcome: Result<(), StorageError>) {
        if let Some(done) = self.done.take() {
            let _ = done.send(outcome);
        }
    }
}
