//! Errors of a write on this replica, and their conversion to the errors that clients and peers
//! receive.

use quorate_core::codec::CodecError;
use quorate_core::event::EventKind;
use quorate_core::object::{MAX_EXTRA_DOTS, MAX_OBJECT_BYTES, WriteRefusal};
use quorate_core::request::PeerError;
use quorate_core::storage::StorageError;
use quorate_core::{NodeId, RequestError, StorageKey};

use crate::state::shared::Shared;

/// The name of the hint budget, in the error message for a hint that would exceed it.
const HINT_BUDGET: &str = "the size of the hints for one replica, in bytes ([hints] max_mib_per_target),";

/// Error of a write on this replica.
#[derive(Clone, Debug)]
pub(crate) enum WriteFailure {
    /// The write exceeds a limit of the object.
    Refused(WriteRefusal),
    /// The write's deadline passed before the engine began the write.
    Expired,
    /// The hints for one replica would exceed their budget.
    HintBudget {
        /// The replica that the hint is for.
        target: NodeId,
        /// The budget, in bytes.
        limit: u64,
    },
    /// The engine failed, or the stored record cannot be read.
    Storage(StorageError),
}

impl WriteFailure {
    /// Converts the error to the one that a peer receives.
    pub(crate) fn for_peer(&self) -> PeerError {
        match self {
            WriteFailure::Refused(refusal) => PeerError::Refused { detail: format!("{refusal:?}") },
            WriteFailure::Expired => PeerError::Expired,
            WriteFailure::HintBudget { limit, .. } => {
                PeerError::Overloaded { what: HINT_BUDGET.into(), limit: *limit }
            }
            WriteFailure::Storage(error) => storage_error_for_peer(error),
        }
    }

    /// Converts the error to the one that a client receives.
    pub(crate) fn for_client(&self) -> RequestError {
        match self {
            WriteFailure::Refused(WriteRefusal::TooManySiblings { siblings, limit }) => {
                RequestError::TooManySiblings { siblings: *siblings as u32, limit: *limit as u32 }
            }
            WriteFailure::Refused(WriteRefusal::TooManyDots { dots }) => RequestError::invalid(format!(
                "with this context the key would have {dots} separate dots that its version vector does not cover, the limit is {MAX_EXTRA_DOTS}: \
                 read the key and write with the context of that read"
            )),
            WriteFailure::Refused(WriteRefusal::TooLarge { bytes }) => RequestError::invalid(format!(
                "with this write the key's siblings would be {bytes} bytes in all, the limit is {MAX_OBJECT_BYTES}: \
                 read the key and write with the context of that read"
            )),
            WriteFailure::Expired => RequestError::Overloaded {
                what: "the write waited in the storage engine's queue until its deadline".into(),
                limit: 0,
            },
            WriteFailure::HintBudget { limit, .. } => {
                RequestError::Overloaded { what: HINT_BUDGET.into(), limit: *limit }
            }
            WriteFailure::Storage(StorageError::QueueFull { limit }) => {
                RequestError::Overloaded { what: "the storage engine's queue".into(), limit: *limit }
            }
            WriteFailure::Storage(error) => RequestError::StorageFailed { detail: error.to_string() },
        }
    }
}

/// Converts an engine's error to the one that a peer receives.
pub(crate) fn storage_error_for_peer(error: &StorageError) -> PeerError {
    match error {
        StorageError::QueueFull { limit } => {
            PeerError::Overloaded { what: "the storage engine's queue".into(), limit: *limit }
        }
        other => PeerError::Storage { detail: other.to_string() },
    }
}

/// Emits an event for a record that cannot be read. Returns the error with which an update leaves
/// the record unchanged.
pub(crate) fn unreadable(shared: &Shared, key: &StorageKey, error: CodecError) -> StorageError {
    let detail = format!("record {key:?}: {error}");
    shared.emit(None, EventKind::StorageFailed { detail: detail.clone() });
    StorageError::Rejected { detail }
}
