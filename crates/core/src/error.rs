//! What a client is told when its request did not succeed, typed by what is known.

/// Why a request failed. The same words are used in Rust, on the wire, by the command line and in Python; the table in
/// `docs/errors.md` maps situations to them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Too few live replicas in sight: nothing was written. Safe to repeat.
    #[error("unavailable: needed {needed} replicas, {reachable} reachable; nothing was attempted")]
    Unavailable {
        /// Replicas the request needs.
        needed: u8,
        /// Replicas in sight.
        reachable: u8,
    },
    /// A write reached some replicas but not enough in time. It may surface later, whole, or never.
    #[error("indeterminate: needed {needed} acks, received {received}; the write may surface later")]
    Indeterminate {
        /// Acks the write needs.
        needed: u8,
        /// Acks that came.
        received: u8,
    },
    /// A queue is at its bound. Nothing was done. Repeat after a pause.
    #[error("overloaded: {what} is at its limit of {limit}; retry after a pause")]
    Overloaded {
        /// Which queue.
        what: String,
        /// Its bound.
        limit: u64,
    },
    /// A read did not get its replies in time. Repeat as you like.
    #[error("deadline exceeded: needed {needed} replies, received {received} within {after_ms} ms")]
    DeadlineExceeded {
        /// Replies the read needs.
        needed: u8,
        /// Replies that came.
        received: u8,
        /// How long it waited.
        after_ms: u32,
    },
    /// The empty context would add a sibling to a key that has the most allowed. Read, resolve, write with the context.
    #[error(
        "too many siblings: {siblings} lie side by side, the limit is {limit}; read and write with that context"
    )]
    TooManySiblings {
        /// How many there are.
        siblings: u32,
        /// The bucket's limit.
        limit: u32,
    },
    /// A storage engine refused or failed.
    #[error("storage failed: {detail}")]
    StorageFailed {
        /// What the engine said.
        detail: String,
    },
    /// The request breaks a rule; repeating it unchanged is useless.
    #[error("invalid request: {detail}")]
    InvalidRequest {
        /// The value, the limit and what to do.
        detail: String,
    },
}

impl RequestError {
    /// The error's name, as the command line, the wire and Python write it.
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

    /// True if the same request, sent again after a pause or to another node, may succeed.
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

    /// Shorthand for a broken rule.
    pub fn invalid(detail: impl Into<String>) -> RequestError {
        RequestError::InvalidRequest { detail: detail.into() }
    }
}
