//! Requests of operators about the cluster's layout and its buckets.

use crate::bucket::BucketDefinition;
use crate::change::StagedChange;

/// A request of an operator about the layout or the buckets. `Plan` is answered with a
/// `PlanReport`, `CreateBucket` and `Buckets` with a `BucketsReport`, all others with a
/// `ClusterReport` (see [`crate::report`]).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClusterRequest {
    /// A request for a report of the members, the staged changes and the progress of a layout
    /// change.
    Show,
    /// A request to stage this change.
    Stage(StagedChange),
    /// A request to make this change alone the newest layout, at once. Staged changes stay staged.
    Apply(StagedChange),
    /// A request for a report of the data that the staged changes would move.
    Plan,
    /// A request to make the staged changes the newest layout.
    Commit {
        /// Digest of the layout that a plan showed. If given, only that layout is committed.
        plan: Option<u64>,
    },
    /// A request to withdraw the staged changes.
    Clear,
    /// A request that this node refuse new requests of clients. It finishes requests under way.
    Drain,
    /// A request to give a bucket a definition of its own. The reply is sent once all nodes use the
    /// definition.
    CreateBucket {
        /// The bucket's name.
        name: String,
        /// The bucket's n, quorums, conflict resolver and limits.
        definition: BucketDefinition,
    },
    /// A request for a report of the definitions of all buckets.
    Buckets,
}
