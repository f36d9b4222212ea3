//! Requests of operators about the cluster's layout and its buckets.

use crate::bucket::BucketDefinition;
use crate::change::StagedChange;

/// A request of an operator about the layout or the buckets. `Plan` is answered with a
/// `PlanReport`, `CreateBucket` and `Buckets` with a `BucketsReport`, all others with a
/// `ClusterReport` (see [`crate::report`]).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClusterRequest {
    /// A report of the members, the staged changes and the progress of a layout change.
    Show,
    /// A change to stage.
    Stage(StagedChange),
    /// A change to make the newest layout at once. Staged changes are left out.
    Apply(StagedChange),
    /// A report of the data that the staged changes would move.
    Plan,
    /// A request to make the staged changes the newest layout.
    Commit {
        /// Digest of the layout that a plan showed. If given, only that layout is committed.
        plan: Option<u64>,
    },
    /// A request to withdraw the staged changes.
    Clear,
    /// A request to refuse new requests of clients. Those under way are finished.
    Drain,
    /// A bucket to give a definition of its own. The reply waits until all nodes use it.
    CreateBucket {
        /// The bucket's name.
        name: String,
        /// The bucket's n, quorums, conflict resolver and limits.
        definition: BucketDefinition,
    },
    /// A report of the definitions of all buckets.
    Buckets,
}
