//! The configuration sections `[buckets.NAME]`. They define the buckets with which a new cluster
//! begins.

use std::collections::BTreeMap;

use quorate_core::{BucketDefinition, Buckets, LayoutError};
use toml::{Table, Value};

use crate::registry::Registry;
use crate::section::{ConfigError, parse_section};

/// Parses the `[buckets.NAME]` sections. Returns the definitions by bucket name.
pub(super) fn parse_buckets(sections: Table) -> Result<BTreeMap<String, BucketDefinition>, ConfigError> {
    let mut buckets = BTreeMap::new();
    for (name, definition) in sections {
        let section = format!("buckets.{name}");
        let Value::Table(definition) = definition else {
            return Err(ConfigError::new(format!("[{section}] must be a section")));
        };
        buckets.insert(name, parse_section::<BucketDefinition>(&section, definition)?);
    }
    Ok(buckets)
}

/// Checks that the definitions are valid with this number of replicas, and that this build has
/// their conflict resolvers.
pub(super) fn check_buckets(
    buckets: &BTreeMap<String, BucketDefinition>,
    replicas: u8,
    registry: &Registry,
) -> Result<(), ConfigError> {
    Buckets::new(buckets, replicas).map_err(|error| match error {
        LayoutError::Bucket { name, detail } => ConfigError::new(format!("[buckets.{name}] {detail}")),
        other => ConfigError::new(format!("[buckets] {other}")),
    })?;
    for (name, definition) in buckets {
        registry.check_resolver(&format!("[buckets.{name}] resolver"), &definition.resolver)?;
    }
    Ok(())
}
