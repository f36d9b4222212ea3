//! The first plugin trait: one node's records, as bytes.

use std::path::Path;

use bytes::Bytes;

use crate::key::StorageKey;

/// Why an engine did not do what it was asked. Reads go on after a failed write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// No room is left: in the map, on the disk, or under a configured bound.
    #[error("storage is full: {detail}")]
    Full {
        /// What is full, and what to do.
        detail: String,
    },
    /// The update queue is at its bound.
    #[error("storage queue is at its limit of {limit}")]
    QueueFull {
        /// The bound.
        limit: u64,
    },
    /// The disk or the file failed.
    #[error("storage failed: {detail}")]
    Io {
        /// What failed.
        detail: String,
    },
    /// The update refused the record that is stored: damaged, or not to be replaced.
    #[error("{detail}")]
    Rejected {
        /// Why.
        detail: String,
    },
}

/// The action of an update on its record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecordAction {
    /// Nothing.
    Keep,
    /// Store these bytes.
    Put(Bytes),
    /// Remove the record.
    Remove,
}

/// One read-change-write of one record.
///
/// The engine calls `change` once, then `applied` before any later update of the record is begun, then `finished`. If
/// `change` keeps the record, `applied` and `finished` follow all the same: `finished` once what it read is durable. None of them may call the engine: it may hold a lock.
pub trait Update: Send {
    /// Which record.
    fn key(&self) -> &StorageKey;

    /// Decides, given what is stored now. Called with no other update of the record between this and the write.
    ///
    /// # Errors
    /// To leave the record alone and be `finished` with this error, without `applied`.
    fn change(&mut self, stored: Option<Bytes>) -> Result<RecordAction, StorageError>;

    /// The change is decided: updates of the record that follow see it. Readers do too if the engine lets replicas ack
    /// now (`!capability().ack_when_durable`), else when it is `finished`.
    fn applied(&mut self);

    /// The change is durable (as far as the engine promises it), or failed: then it is as if it had never been.
    /// Called in any thread, exactly once, and before any later update of the record is begun if it failed although it had
    /// been `applied`.
    fn finished(self: Box<Self>, outcome: Result<(), StorageError>);
}

/// What an engine promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capability {
    /// What was reported durable survives a crash of the process and of the machine.
    pub durable: bool,
    /// When a replica may ack: after `finished` if true, after `applied` if false.
    pub ack_when_durable: bool,
    /// What was stored is still there after a clean stop.
    pub survives_restart: bool,
}

/// A range of records, in storage key order.
#[derive(Clone, Debug)]
pub struct Range<'a> {
    /// First key wanted, included (unless `after`).
    pub start: &'a [u8],
    /// Leave out `start` itself: to go on where a page ended.
    pub after: bool,
    /// First key not wanted; `None`: to the end.
    pub end: Option<&'a [u8]>,
    /// Most records.
    pub limit: usize,
    /// Stop once keys and values make this many bytes (at least one record is returned, if there is one).
    pub max_bytes: usize,
}

/// Records of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Key and value of each, in order.
    pub records: Vec<(Bytes, Bytes)>,
    /// True if a bound stopped the page before the range's end.
    pub more: bool,
}

/// One node's records, as bytes under bytes. Thread-safe; methods may block on disk.
///
/// # Contract
/// - Keys have 1 to 511 bytes, values up to 64 MiB; both come back as they went in.
/// - `update` is atomic per record: no other update of it runs between an update's read and its write; updates of one
///   record submitted by one thread run in that order.
/// - The updates of one call are committed in groups, each of which is atomic on disk.
/// - `applied` is called when later updates see the change (and `get` and `scan`, unless `ack_when_durable`);
///   `finished(Ok)` when everybody does and it is as durable as `capability()` says. A change whose `finished` got an
///   error is not visible to any read that begins afterwards.
/// - Once reported durable, a change survives a crash if `capability().durable`.
/// - A read never returns bytes that were not stored, and an unreadable record is an error, never absent.
/// - Full is an error of the update, not of the engine: reads go on, and so do updates once there is room.
/// - `scan` returns what was visible at one moment, in key order, no record twice; an error is never the end of data.
/// - Queues are bounded: beyond the bound, `finished(Err(QueueFull))`.
/// - Dropping the engine finishes what was submitted and leaves the folder ready to be opened again.
pub trait StorageEngine: Send + Sync + 'static {
    /// The record, if there is one. Cheap enough for an event loop.
    ///
    /// # Errors
    /// If it cannot be read; never for a record that is absent.
    fn get(&self, key: &StorageKey) -> Result<Option<Bytes>, StorageError>;

    /// Submits updates. May read records for them, waits for no commit; each update is told what became of it.
    fn update(&self, batch: Vec<Box<dyn Update>>);

    /// Asks an engine that buffers to commit now what was submitted before, instead of at its time. Returns at once; each
    /// update is told as always. Called when somebody waits for what is durable: a node that starts or stops, a hint's or a copy's
    /// sender.
    fn flush(&self) {}

    /// Updates that were submitted and are not finished, for people.
    fn waiting(&self) -> usize {
        0
    }

    /// Records of a range, in order.
    ///
    /// # Errors
    /// If any of them cannot be read.
    fn scan(&self, range: Range<'_>) -> Result<Page, StorageError>;

    /// Writes a consistent copy of everything durable into an empty folder, while serving. Blocks until it is there.
    ///
    /// # Errors
    /// If the engine cannot (memory), or the folder cannot be written.
    fn checkpoint(&self, folder: &Path) -> Result<(), StorageError>;

    /// What this engine, as configured, promises.
    fn capability(&self) -> Capability;
}
