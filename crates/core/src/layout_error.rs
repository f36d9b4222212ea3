//! Errors of making, changing and decoding a layout.

use crate::member::MAX_MEMBERS;
use crate::varint::Short;

/// Error of making, changing or decoding a layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The layout would have fewer members than replicas of a partition.
    #[error(
        "replicas = {replicas} but the cluster has {members} members: add nodes, or use fewer replicas (before the cluster begins: [cluster] replicas; later: quorate cluster replicas)"
    )]
    TooFewMembers {
        /// N, the replicas of each partition.
        replicas: u8,
        /// Members of the layout.
        members: usize,
    },
    /// The layout would have more than [`MAX_MEMBERS`] members.
    #[error("{members} members: a cluster has at most {MAX_MEMBERS}")]
    TooManyMembers {
        /// Members of the layout.
        members: usize,
    },
    /// Q is not a power of two from 1 to 16384.
    #[error("partitions = {partitions}: use a power of two from 1 to 16384")]
    Partitions {
        /// The number that was given.
        partitions: u32,
    },
    /// N is zero.
    #[error("replicas = 0: use 1 or more")]
    NoReplicas,
    /// The staged changes no longer make the layout that the operator was shown.
    #[error(
        "the plan is now {now:016x}, not {shown:016x}: changes were staged or committed since, see `quorate cluster plan`"
    )]
    OtherPlan {
        /// Digest of the layout that was shown.
        shown: u64,
        /// Digest of the layout that would be committed now.
        now: u64,
    },
    /// A bucket's definition has a value that this cluster does not allow.
    #[error("bucket {name:?}: {detail}")]
    Bucket {
        /// The bucket's name.
        name: String,
        /// The value that is not allowed, and the remedy.
        detail: String,
    },
    /// The maximum number of layout changes is under way already.
    #[error(
        "{changes} layout changes are under way already: wait until they end (see `quorate cluster transfers`)"
    )]
    UnderWay {
        /// Changes under way.
        changes: usize,
    },
    /// A change is not possible in the layout to which it is applied.
    #[error("{detail}")]
    Change {
        /// The reason why the change is not possible, with the value and the remedy.
        detail: String,
    },
    /// Two members have the same name or, very unlikely, the same hash of their names.
    #[error("two members are called {name:?}: names must differ")]
    SameName {
        /// The name.
        name: String,
    },
    /// A member's weight is not from 1 to 10000.
    #[error("{name:?}: weight = {weight}: use 1 to 10000")]
    Weight {
        /// The member's name.
        name: String,
        /// The weight that was given.
        weight: u16,
    },
    /// The bytes are not an encoded layout or change.
    #[error("malformed layout")]
    Malformed,
}

impl From<Short> for LayoutError {
    fn from(_: Short) -> LayoutError {
        LayoutError::Malformed
    }
}
