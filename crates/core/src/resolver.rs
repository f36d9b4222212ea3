//! The second plugin trait: the conflict resolver, which decides which of several concurrent
//! versions a read shows.

use crate::object::{MergeRule, Version};

/// The decision which of several concurrent versions a read shows.
///
/// # Contract
/// - Pure and deterministic: the result depends on the given versions only, not on time, randomness
///   or the node.
/// - Order-free: the order of the input does not change the set that is shown.
/// - Idempotent: resolving the shown versions shows all of them again.
/// - Shows at least one version if it is given one, and none that it was not given.
/// - Does not change the stored objects, unless `merge_rule` says that replicas keep only the
///   newest version.
pub trait ConflictResolver: Send + Sync + 'static {
    /// Returns the versions that are shown, in stamp order. `versions` contains no tombstones.
    fn resolve<'a>(&self, versions: Vec<&'a Version>) -> Vec<&'a Version>;

    /// Returns the rule by which replicas merge objects of this resolver's buckets.
    fn merge_rule(&self) -> MergeRule {
        MergeRule::KeepAll
    }
}
