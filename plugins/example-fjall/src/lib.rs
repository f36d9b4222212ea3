//! A worked example of a storage plugin: durable storage on [fjall], a log-structured merge tree in pure Rust.
//!
//! A commit is one append to a journal and one flush, however many records are in it and wherever they belong in the
//! tree, which is sorted later and in the background. A B+ tree such as LMDB's writes a page a record. So this engine
//! commits small batches of scattered keys faster, and pays for it when it reads and when it merges: docs/benchmarks.md.
//!
//! - [`Config`]: what stands beside `engine = "fjall"` in `[storage]`.
//! - `store.rs`: reading, scanning and committing, all of fjall's API.
//! - `writer.rs`: how updates are applied and gathered into commits.
//! - `main.rs`: a node with this engine, and everything that comes with Quorate.
//!
//! What is *not* here, and an engine for production must have: watching the free space of the disk. A disk that is full fails a
//! commit, fjall takes no more writes after that, and so this engine takes none until the node is started again.

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
