//! Checks of the configuration against the layouts that the cluster has.

use quorate_core::Layout;
use quorate_core::bucket::DEFAULT_BUCKET;
use quorate_core::layout_change::Layouts;

use crate::config::{Config, ConfigError};

/// Refuses a configuration that contradicts the layouts of the cluster.
pub(super) fn check_layouts(config: &Config, layouts: &Layouts) -> Result<(), ConfigError> {
    let newest = layouts.newest();
    check_partitions(config, newest)?;
    // Only the first layout must have the configured number of replicas. A later layout may have
    // another number, while the configuration still has the number from cluster init.
    if layouts.history().len() == 1 && config.cluster.replicas.is_some() {
        check_replicas(config, newest)?;
    }
    check_buckets(config, newest)
}

fn check_partitions(config: &Config, layout: &Layout) -> Result<(), ConfigError> {
    let partitions = layout.partitions();
    if partitions == config.cluster.partitions {
        return Ok(());
    }
    Err(ConfigError::new(format!(
        "[cluster] partitions = {}: the cluster began with {partitions} partitions; use that number",
        config.cluster.partitions,
    )))
}

fn check_replicas(config: &Config, layout: &Layout) -> Result<(), ConfigError> {
    if layout.replicas() == config.replicas {
        return Ok(());
    }
    Err(ConfigError::new(format!(
        "[cluster] replicas = {}: the cluster began with {} replicas; use that number, and change it with \
         `quorate cluster replicas`",
        config.replicas,
        layout.replicas()
    )))
}

/// Checks the configured buckets. They take effect only when the cluster begins. Later, the
/// configuration may repeat or omit the definitions of the newest layout. Other definitions are
/// refused.
fn check_buckets(config: &Config, layout: &Layout) -> Result<(), ConfigError> {
    let defined = layout.buckets().definitions();
    match config.buckets.iter().find(|(name, definition)| defined.get(*name) != Some(*definition)) {
        None => Ok(()),
        Some((name, _)) if defined.contains_key(name) => Err(ConfigError::new(format!(
            "[buckets.{name}]: the cluster has another definition of this bucket, which cannot be changed; use the \
             definition that `quorate bucket show {name}` prints"
        ))),
        Some((name, _)) => Err(ConfigError::new(format!(
            "[buckets.{name}]: the cluster began without this definition, and later this section has no effect; \
             remove it{}",
            match name.as_str() {
                DEFAULT_BUCKET => String::new(),
                name => format!(", and use `quorate bucket create {name}`"),
            }
        ))),
    }
}
