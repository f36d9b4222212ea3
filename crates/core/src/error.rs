//! Errors of client requests, one variant for each outcome that a coordinator can tell apart.

/// Error of a client's request. Rust, the wire, the command line and Python use the same names. The
/// table in `docs/errors.md` maps situations to them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Too few live replicas can be reached. Nothing was written, so the request can safely be
    /// repeated.
    #[error("unavailable: needed {needed} replicas, {reachable} reachable; nothing was attempted")]
    Unavailable {
        /// Replicas that the request needs.
        needed: u8,
        /// Live replicas that the coordinator can reach.
        reachable: u8,
    },
    /// A write reached some replicas, but not enough in time. Later reads may show the write or
    /// not. Each replica has the whole write or nothing of it.
    #[error("indeterminate: needed {needed} acks, received {received}; the write may appear later")]
    Indeterminate {
        /// Acks that the write needs.
        needed: u8,
        /// Acks that were received.
        received: u8,
    },
    /// A queue has reached its limit, or the node or the bucket accepts no requests now. Nothing was
    /// done. The request can be repeated after a pause.
    #[error("overloaded: {what}{}; retry after a pause", limit_text(*limit))]
    Overloaded {
        /// Name of the queue that is full. If `limit` is 0: the whole reason.
        what: String,
        /// The queue's limit. 0 if the reason is not a limit.
        limit: u64,
    },
    /// A read did not get its replies in time. The read can be repeated at any time.
    #[error("deadline exceeded: needed {needed} replies, received {received} within {after_ms} ms")]
    DeadlineExceeded {
        /// Replies that the read needs.
        needed: u8,
        /// Replies that were received.
        received: u8,
        /// Time that the read waited, in milliseconds.
        after_ms: u32,
    },
    /// The context is empty, and the key already has as many siblings as the bucket allows. The
    /// client has to read, and to write with the context of that read.
    #[error(
        "too many siblings: the key has {siblings}, the limit is {limit}; read the key and write with the context of that read"
    )]
    TooManySiblings {
        /// Siblings that the key has.
        siblings: u32,
        /// Maximum number of siblings, from the bucket's definition.
        limit: u32,
    },
    /// A storage engine refused or failed to read or write a record.
    #[error("storage failed: {detail}")]
    StorageFailed {
        /// The engine's error.
        detail: String,
    },
    /// The request breaks a rule. Repeating it unchanged is useless.
    #[error("invalid request: {detail}")]
    InvalidRequest {
        /// The value, the limit and the remedy.
        detail: String,
    },
}

/// Describes the limit of an overload. Returns an empty text if the reason is not a limit.
fn limit_text(limit: u64) -> String {
    match limit {
        0 => String::new(),
        limit => format!(" is at its limit of {limit}"),
    }
}

impl RequestError {
    /// Returns the error's name, as the command line, the wire and Python write it.
    pub fn name(&self) -> &'static str {
        match self {
            RequestError::Unavailable { .. } => "Unavailable",
            RequestError::Indeterminate { .. } => "Indeterminate",
            RequestError::Overloaded { .. } => "Overloaded",
            RequestError::DeadlineExceeded { .. } => "DeadlineExceeded",
            RequestError::TooManySiblings { .. } => "TooManySiblings",
            RequestError::StorageFailed { .. } => "StorageFailed",
            RequestError::InvalidRequest { .. } => "InvalidRequest",
        }
    }

    /// True if the same request may succeed after a pause or at another node.
    pub fn is_retryable(&self) -> bool {
        match self {
            RequestError::Unavailable { .. }
            | RequestError::Overloaded { .. }
            | RequestError::StorageFailed { .. }
            | RequestError::Indeterminate { .. }
            | RequestError::DeadlineExceeded { .. } => true,
            RequestError::TooManySiblings { .. } | RequestError::InvalidRequest { .. } => false,
        }
    }

    /// Creates a [`RequestError::InvalidRequest`].
    pub fn invalid(detail: impl Into<String>) -> RequestError {
        RequestError::InvalidRequest { detail: detail.into() }
    }
}
