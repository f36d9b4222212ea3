//! The second plugin trait: what concurrent versions are shown as.

use crate::object::{MergeRule, Version};

/// Turns the concurrent versions of a read into what is shown.
///
/// # Contract
/// - Pure and deterministic: the result depends on the given versions only, not on time, randomness or the node.
/// - Order-free: the order of the input does not change the set that is shown.
/// - Idempotent: resolving what was shown shows it again.
/// - Shows at least one version if it is given one, and none that it was not given.
/// - Does not touch what replicas store, unless `merge_rule` says that only the newest version is kept.
pub trait ConflictResolver: Send + Sync + 'static {
    /// Which of the versions are shown, in stamp order. `versions` holds no tombstones.
    fn resolve<'a>(&self, versions: Vec<&'a Version>) -> Vec<&'a Version>;

    /// How replicas merge objects of this resolver's buckets.
    fn merge_rule(&self) -> MergeRule {
        MergeRule::KeepAll
    }
}
