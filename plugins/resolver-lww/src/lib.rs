//! Last write wins: the version with the greatest (stamp, actor) is shown, and is the only one that replicas keep.
//!
//! Concurrent writes are lost, silently: for caches and for values of which any recent one will do. A write still never
//! loses against one that it had seen, however wrong the clocks are, since it is stamped beyond everything it saw.

use quorate_core::object::{MergeRule, Version};
use quorate_core::plugin::{OpenError, PluginContext};
use quorate_core::resolver::ConflictResolver;
use serde::Deserialize;

/// This plugin's name in `[buckets.NAME] resolver`.
pub const NAME: &str = "lww";

/// Nothing to configure.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {}

/// Opens the resolver.
///
/// # Errors
/// None today.
pub fn open(_: Config, _: &PluginContext<'_>) -> Result<LastWriteWins, OpenError> {
    Ok(LastWriteWins)
}

/// Keeps the newest.
pub struct LastWriteWins;

impl ConflictResolver for LastWriteWins {
    fn resolve<'a>(&self, versions: Vec<&'a Version>) -> Vec<&'a Version> {
        versions
            .into_iter()
            .max_by_key(|version| (version.dot.stamp, version.dot.actor))
            .into_iter()
            .collect()
    }

    fn merge_rule(&self) -> MergeRule {
        MergeRule::KeepNewest
    }
}
