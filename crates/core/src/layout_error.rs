//! Errors of making a layout, of changing one, and of decoding one.

use crate::member::MAX_MEMBERS;
use crate::varint::Short;

/// Why no layout can be made of these members, or bytes are no layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Fewer members than replicas.
    #[error(
        "replicas = {replicas} but the cluster has {members} members: add nodes or lower [cluster] replicas"
    )]
    TooFewMembers {
        /// Replicas wanted.
        replicas: u8,
        /// Members there are.
        members: usize,
    },
    /// More members than a layout holds.
    #[error("{members} members: a cluster has at most {MAX_MEMBERS}")]
    TooManyMembers {
        /// Members there are.
        members: usize,
    },
    /// Q is no power of two in range.
    #[error("partitions = {partitions}: use a power of two from 1 to 16384")]
    Partitions {
        /// What was given.
        partitions: u32,
    },
    /// N is zero.
    #[error("replicas = 0: use 1 or more")]
    NoReplicas,
    /// What is staged is not what was shown.
    #[error(
        "the plan is {now:016x} by now, not {shown:016x}: others staged or committed something, see `quorate cluster plan`"
    )]
    OtherPlan {
        /// The digest that was shown.
        shown: u64,
        /// The digest of what would be committed.
        now: u64,
    },
    /// A bucket's definition does not fit the cluster.
    #[error("bucket {name:?}: {detail}")]
    Bucket {
        /// The bucket.
        name: String,
        /// What does not fit, and what to do.
        detail: String,
    },
    /// As many changes are under way as may be.
    #[error("{changes} changes are under way already: wait for them (quorate cluster transfers)")]
    UnderWay {
        /// How many.
        changes: usize,
    },
    /// A change does not fit the layout it is made to.
    #[error("{detail}")]
    Change {
        /// What does not fit, and what to do.
        detail: String,
    },
    /// Two members have one name (or, very unlikely, one hash).
    #[error("two members are called {name:?}: names must differ")]
    SameName {
        /// The name.
        name: String,
    },
    /// A weight out of range.
    #[error("{name:?}: weight = {weight}: use 1 to 10000")]
    Weight {
        /// The member.
        name: String,
        /// What was given.
        weight: u16,
    },
    /// Not what [`Layout::encode`] writes.
    #[error("malformed layout")]
    Malformed,
}

impl From<Short> for LayoutError {
    fn from(_: Short) -> LayoutError {
        LayoutError::Malformed
    }
}
