//! The default resolver: a read shows every concurrent version, and the application merges them.

use quorate_core::object::Version;
use quorate_core::plugin::{OpenError, PluginContext};
use quorate_core::resolver::ConflictResolver;
use serde::Deserialize;

/// This plugin's name in `[buckets.NAME] resolver`.
pub const NAME: &str = "siblings";

/// Configuration of this resolver: it has no settings.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {}

/// Opens the resolver.
///
/// # Errors
/// None today.
pub fn open(_: Config, _: &PluginContext<'_>) -> Result<Siblings, OpenError> {
    Ok(Siblings)
}

/// The resolver: shows all versions, in order of their stamps.
pub struct Siblings;

impl ConflictResolver for Siblings {
    fn resolve<'a>(&self, mut versions: Vec<&'a Version>) -> Vec<&'a Version> {
        versions.sort_by_key(|version| (version.dot.stamp, version.dot.actor));
        versions
    }
}
