//! A worked example of a storage plugin: durable storage on [fjall], a log-structured merge tree in
//! pure Rust.
//!
//! A commit is one append to a journal and one flush, for any number of records anywhere in the
//! tree. The tree is sorted later, in the background. A B+ tree such as LMDB's writes a page for
//! each record. This engine therefore commits small batches of scattered keys faster, but reads and
//! background merges cost more: docs/benchmarks.md.
//!
//! - [`Config`]: the keys of `[storage]` besides `engine = "fjall"`.
//! - `store.rs`: reads, scans and commits; all uses of fjall's API.
//! - `writer.rs`: applies updates and gathers them into commits.
//! - `main.rs`: a node with this engine, and with all plugins that come with Quorate.
//!
//! An engine for production must also watch the free space of the disk; this one does not. A full
//! disk fails a commit. After that fjall accepts no more writes, and so this engine accepts none
//! until the node is restarted.

mod config;
mod store;
mod writer;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use quorate_core::key::StorageKey;
use quorate_core::plugin::{OpenError, PluginContext};
use quorate_core::storage::{Capability, Page, Range, StorageEngine, StorageError, Update};

pub use config::Config;

use store::Store;
use writer::Writer;

/// This plugin's name in `[storage] engine`.
pub const NAME: &str = "fjall";

/// Opens the store in the data folder, or creates it.
///
/// # Errors
/// If the folder is in use by another process, or cannot be read or written.
pub fn open(config: Config, context: &PluginContext<'_>) -> Result<FjallStorage, OpenError> {
    let store = Arc::new(Store::open(&config, context.data_folder)?);
    Ok(FjallStorage { writer: Writer::start(store.clone()), store })
}

/// A store in a folder.
pub struct FjallStorage {
    writer: Writer,
    store: Arc<Store>,
}

impl StorageEngine for FjallStorage {
    fn get(&self, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
        self.store.get(key.as_bytes())
    }

    fn update(&self, batch: Vec<Box<dyn Update>>) {
        self.writer.update(batch);
    }

    fn scan(&self, range: Range<'_>) -> Result<Page, StorageError> {
        self.store.scan(&range)
    }

    fn checkpoint(&self, folder: &Path) -> Result<(), StorageError> {
        self.store.copy_to(folder)
    }

    fn capability(&self) -> Capability {
        Capability { durable: true, ack_when_durable: true, survives_restart: true }
    }
}
