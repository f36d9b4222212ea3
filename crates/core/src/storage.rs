//! The first plugin trait: a storage engine, which keeps one node's records as bytes.

use std::path::Path;

use bytes::Bytes;

use crate::key::StorageKey;

/// Error of a storage engine. After a failed write, reads still work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// No space is left: in the map, on the disk, or under a configured limit.
    #[error("storage is full: {detail}")]
    Full {
        /// The space that is used up, and the remedy.
        detail: String,
    },
    /// The queue of updates has reached a limit, in number or in bytes. The update was not run.
    #[error("storage queue is at its limit of {limit}")]
    QueueFull {
        /// The limit that was reached: a number of updates, or of bytes.
        limit: u64,
    },
    /// The disk or the file failed.
    #[error("storage failed: {detail}")]
    Io {
        /// The operation that failed, and the reason.
        detail: String,
    },
    /// The update itself refused the stored record, because it is damaged or must not be replaced.
    #[error("{detail}")]
    Rejected {
        /// The reason for the refusal.
        detail: String,
    },
}

/// The action of an update on its record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecordAction {
    /// The record stays as it is.
    Keep,
    /// These bytes are stored.
    Put(Bytes),
    /// The record is removed.
    Remove,
}

/// One read-change-write of one record, which the engine runs atomically.
///
/// The engine calls `change` once. It then calls `applied`, before it begins the next update of the
/// record, and `finished` at the end. It calls both even if `change` keeps the record: then
/// `finished` means that the bytes that `change` read are durable. If `change` returns an error, or
/// the engine refuses the update, the engine calls `finished` with the error, and never `applied`.
/// None of the three methods may call the engine, because the engine may hold a lock.
pub trait Update: Send {
    /// Returns the key of the record.
    fn key(&self) -> &StorageKey;

    /// Decides on the change, given the stored bytes. No other update of the record runs between
    /// this call and the write.
    ///
    /// # Errors
    /// An error leaves the record unchanged. The engine then calls `finished` with the same error,
    /// and does not call `applied`.
    fn change(&mut self, stored: Option<Bytes>) -> Result<RecordAction, StorageError>;

    /// Notes that the change is decided: later updates of the record see it.
    ///
    /// If `capability().ack_when_durable` is false, `get` and `scan` see the change from now on
    /// too. Otherwise they see it once it is `finished`.
    fn applied(&mut self);

    /// Notes that the change is durable, as far as the engine promises that, or that it failed. A
    /// failed change is as if it had never been made.
    ///
    /// The engine calls this exactly once, on any thread. If a change fails after `applied`, the
    /// engine calls this before it begins any later update of the record.
    fn finished(self: Box<Self>, outcome: Result<(), StorageError>);
}

/// The promises of an engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capability {
    /// True if a change that was reported durable survives a crash of the process and of the
    /// machine.
    pub durable: bool,
    /// True if a replica may ack a write only after `finished`. False if it may ack it already
    /// after `applied`.
    pub ack_when_durable: bool,
    /// True if the records are still there after the process was stopped cleanly and started again.
    pub survives_restart: bool,
}

/// A range of records, in storage key order.
#[derive(Clone, Debug)]
pub struct Range<'a> {
    /// First key of the range. It is included, unless `after` is set.
    pub start: &'a [u8],
    /// True if `start` itself is left out, to continue after the last key of a page.
    pub after: bool,
    /// First key after the range. `None`: the range has no end.
    pub end: Option<&'a [u8]>,
    /// Maximum number of records.
    pub limit: usize,
    /// Size of keys and values after which the page ends, in bytes. The page has at least one
    /// record, if the range has one.
    pub max_bytes: usize,
}

/// One page of a range: its records up to a limit of the [`Range`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Keys with their values, in key order.
    pub records: Vec<(Bytes, Bytes)>,
    /// True if a limit ended the page before the range's end.
    pub more: bool,
}

/// One node's records: each is a value under a storage key, and both are bytes. Thread-safe;
/// methods may block on disk.
///
/// # Contract
/// - Keys have 1 to 511 bytes, values up to 64 MiB. Both are returned exactly as they were stored.
/// - `update` is atomic per record: no other update of the record runs between an update's read and
///   its write. Updates that one thread submits for one record run in the order of their
///   submission.
/// - The updates of one call are committed in groups. After a crash, all changes of a group are on
///   disk or none of them.
/// - `applied` is called when later updates see the change. `get` and `scan` see it then too,
///   unless `ack_when_durable`.
/// - `finished(Ok)` is called when all readers see the change and it is as durable as
///   `capability()` says. A change that finished with an error is not visible to any read that
///   begins afterwards.
/// - Once reported durable, a change survives a crash if `capability().durable`.
/// - A read never returns bytes that were not stored. A record that cannot be read is an error,
///   never absent.
/// - `Full` fails one update, not the engine: reads still work, and updates work again once there
///   is space.
/// - `scan` returns the records that were visible at one moment, in key order, none of them twice.
///   An error is never reported as the end of the data.
/// - Queues are bounded: an update beyond the limit is finished with `QueueFull`.
/// - Dropping the engine finishes all submitted updates, and leaves the folder ready to be opened
///   again.
pub trait StorageEngine: Send + Sync + 'static {
    /// Returns the record, if there is one. It must be fast, because event loops call it.
    ///
    /// # Errors
    /// [`StorageError`] if the record cannot be read; never for an absent record.
    fn get(&self, key: &StorageKey) -> Result<Option<Bytes>, StorageError>;

    /// Submits updates. It may read the records of these updates, but does not wait until they are
    /// durable. Each update receives its result through [`Update`].
    fn update(&self, batch: Vec<Box<dyn Update>>);

    /// Asks an engine that buffers to commit all submitted updates now, not at its usual time. It
    /// returns at once; updates are finished as always.
    ///
    /// It is called when a caller waits for durability: a node that starts or stops, and the sender
    /// of a hint or a transfer.
    fn flush(&self) {}

    /// Returns the number of submitted updates that are not finished, for reports.
    fn waiting(&self) -> usize {
        0
    }

    /// Returns the records of a range, in key order.
    ///
    /// # Errors
    /// [`StorageError`] if any of the records cannot be read.
    fn scan(&self, range: Range<'_>) -> Result<Page, StorageError>;

    /// Writes a consistent copy of all durable records into an empty folder, while the engine
    /// serves. Blocks until the copy is complete.
    ///
    /// # Errors
    /// [`StorageError`] if the engine keeps nothing on disk, or the folder cannot be written.
    fn checkpoint(&self, folder: &Path) -> Result<(), StorageError>;

    /// Returns the promises of this engine, as it is configured.
    fn capability(&self) -> Capability;
}
