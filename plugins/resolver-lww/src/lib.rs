//! Last write wins: a read shows the version with the greatest (stamp, actor), and replicas keep
//! only that version.
//!
//! Of concurrent writes all but one are lost, without an error. Use this resolver for caches, and
//! for values of which any recent one is good enough. A write never loses against a version that it
//! replaces, even if clocks are wrong: its stamp is greater than the stamps of all these versions.

use quorate_core::object::{MergeRule, Version};
use quorate_core::plugin::{OpenError, PluginContext};
use quorate_core::resolver::ConflictResolver;
use serde::Deserialize;

/// This plugin's name in `[buckets.NAME] resolver`.
pub const NAME: &str = "lww";

/// Configuration of this resolver: it has no settings.
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

/// The resolver: keeps the newest version.
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
