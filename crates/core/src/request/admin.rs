//! Requests of operators about the cluster's layout and its buckets.

use crate::bucket::BucketDefinition;
use crate::change::StagedChange;

/// What an operator asks about layouts. All answer with a [`ClusterReport`], `Plan` with a [`PlanReport`],
/// `CreateBucket` and `Buckets` with a [`BucketsReport`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClusterRequest {
    /// Show members, staged changes and how far a change is.
    Show,
    /// Stage a change.
    Stage(StagedChange),
    /// Make one change the newest layout, whatever else is staged.
    Apply(StagedChange),
    /// What the staged changes would move.
    Plan,
    /// Make the staged changes the newest layout.
    Commit {
        /// The digest of the layout that a plan showed, if it must be that one.
        plan: Option<u64>,
    },
    /// Withdraw the staged changes.
    Clear,
    /// Take no more requests of clients; those under way are finished.
    Drain,
    /// Give a bucket a definition of its own, and wait until all nodes go by it.
    CreateBucket {
        /// Its name.
        name: String,
        /// What its keys are held to.
        definition: BucketDefinition,
    },
    /// What buckets' keys are held to.
    Buckets,
}
