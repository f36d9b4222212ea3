//! A barrier for the engine's updates. A caller waits here until the engine has committed all
//! updates that were submitted to it before.

use std::time::Duration;

use bytes::Bytes;
use quorate_core::StorageKey;
use quorate_core::key::Table;
use quorate_core::storage::{RecordAction, StorageEngine, StorageError, Update};
use tokio::sync::oneshot;

/// Largest number of attempts to submit the barrier. After the last one, the wait is given up. An
/// engine refuses updates while its queue is full, or after it has failed for good.
const ATTEMPTS: usize = 100;
/// Time between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until every update that was submitted before this call is committed. Gives up if the
/// engine keeps refusing updates.
pub(crate) async fn all_committed(engine: &dyn StorageEngine) {
    for _ in 0..ATTEMPTS {
        let (done, committed) = oneshot::channel();
        let key = StorageKey::of_table(Table::NodeMetadata, b"barrier");
        engine.update(vec![Box::new(Barrier { key, done: Some(done) })]);
        engine.flush();
        if let Ok(Ok(())) = committed.await {
            return;
        }
        // The engine refused the barrier, mostly because its queue is full.
        tokio::time::sleep(PAUSE).await;
    }
}

/// An update that changes nothing. The engine finishes it after all updates that were submitted
/// before it.
struct Barrier {
    key: StorageKey,
    done: Option<oneshot::Sender<Result<(), StorageError>>>,
}

impl Update for Barrier {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, _: Option<Bytes>) -> Result<RecordAction, StorageError> {
        Ok(RecordAction::Keep)
    }

    fn applied(&mut self) {}

    fn finished(mut self: Box<Self>, outcome: Result<(), StorageError>) {
        if let Some(done) = self.done.take() {
            let _ = done.send(outcome);
        }
    }
}
