//! Shows every concurrent version: the application merges. The default.

use quorate_core::object::Version;
use quorate_core::plugin::{OpenError, PluginContext};
use quorate_core::resolver::ConflictResolver;
use serde::Deserialize;

/// This plugin's name in `[buckets.NAME] resolver`.
pub const NAME: &str = "siblings";

/// Nothing to configure.
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

/// Shows what there is.
pub struct Siblings;

impl ConflictResolver for Siblings {
    fn resolve<'a>(&self, mut versions: Vec<&'a Version>) -> Vec<&'a Version> {
        versions.sort_by_key(|version| (version.dot.stamp, version.dot.actor));
        versions
    }
}
