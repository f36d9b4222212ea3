//! The data folder's owner and layouts, stored in the engine as node metadata.

use std::sync::mpsc::{Sender, channel};

use bytes::Bytes;
use quorate_core::StorageKey;
use quorate_core::key::Table;
use quorate_core::layout_change::{Layouts, Phase};
use quorate_core::storage::{RecordAction, StorageEngine, StorageError, Update};
use quorate_node::{layouts_key, recovering_key};

use crate::config::{Config, ConfigError};

/// Claims the data folder for this node. A folder belongs to one node of one cluster. If it belongs
/// to another node, this node does not start, so that the data of two nodes never mix.
pub(super) fn claim_folder(engine: &dyn StorageEngine, config: &Config) -> Result<FolderState, ConfigError> {
    let owner = format!("{}/{} Q={}", config.cluster.id, config.node.name, config.cluster.partitions);
    let key = StorageKey::of_table(Table::NodeMetadata, b"owner");
    match engine.get(&key)? {
        Some(stored) if stored == owner.as_bytes() => Ok(FolderState::Owned),
        Some(stored) => Err(ConfigError::new(format!(
            "data folder {} belongs to {}, not to {owner}: set [node] data to another folder",
            config.node.data.display(),
            String::from_utf8_lossy(&stored)
        ))),
        None => {
            // Stores the owner together with the mark that this node must recover. If the node
            // stops before it has recovered, the next start finds an owned folder, but also the
            // mark.
            let recovering = Metadata { key: recovering_key(), value: "1".into() };
            store_metadata(engine, vec![recovering, Metadata { key, value: owner.into() }])?;
            Ok(FolderState::New)
        }
    }
}

/// State of a data folder before this start.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FolderState {
    /// The folder had no owner: this node is new, or its disk was wiped.
    New,
    /// The folder belonged to this node already.
    Owned,
}

/// Stores the first layouts that this node knows. Call it before the node uses these layouts.
pub(super) fn store_layouts(
    engine: &dyn StorageEngine,
    mut layouts: Layouts,
) -> Result<Layouts, ConfigError> {
    if layouts.local_phase() == Phase::Unaware {
        layouts.advance();
    }
    store_metadata(engine, vec![Metadata { key: layouts_key(), value: layouts.encode().into() }])?;
    Ok(layouts)
}

/// A record of node metadata.
struct Metadata {
    key: StorageKey,
    value: Bytes,
}

/// Stores records in one batch, and waits until they are durable.
fn store_metadata(engine: &dyn StorageEngine, records: Vec<Metadata>) -> Result<(), ConfigError> {
    let (sender, receiver) = channel();
    let count = records.len();
    let write = |record| -> Box<dyn Update> { Box::new(MetadataWrite { record, outcome: sender.clone() }) };
    engine.update(records.into_iter().map(write).collect());
    engine.flush();
    for _ in 0..count {
        let dropped = StorageError::Io { detail: "the storage engine did not finish a write".into() };
        receiver.recv().unwrap_or(Err(dropped))?;
    }
    Ok(())
}

/// Storage update that writes one record of node metadata.
struct MetadataWrite {
    record: Metadata,
    outcome: Sender<Result<(), StorageError>>,
}

impl Update for MetadataWrite {
    fn key(&self) -> &StorageKey {
        &self.record.key
    }

    fn change(&mut self, _: Option<Bytes>) -> Result<RecordAction, StorageError> {
        Ok(RecordAction::Put(self.record.value.clone()))
    }

    fn applied(&mut self) {}

    fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
        let _ = self.outcome.send(outcome);
    }
}
