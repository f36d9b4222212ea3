//! The first layout of a cluster, as the configuration defines it.

use std::collections::BTreeMap;

use quorate_core::membership::ClusterInit;
use quorate_core::{BucketDefinition, Layout, Member};

use crate::section::ConfigError;

/// Configured parameters of a cluster's first layout: all but the members.
pub(super) struct FirstLayout<'a> {
    pub(super) partitions: u32,
    pub(super) replicas: u8,
    pub(super) buckets: &'a BTreeMap<String, BucketDefinition>,
}

impl FirstLayout<'_> {
    /// Computes the first layout of a cluster with these members.
    ///
    /// # Errors
    /// The first configured value that is invalid for this number of members.
    pub(super) fn of(&self, members: Vec<Member>) -> Result<Layout, ConfigError> {
        Layout::first(members, self.partitions, self.replicas)
            .and_then(|layout| layout.with_buckets(self.buckets))
            .map_err(|error| ConfigError::new(format!("[cluster] {error}")))
    }

    /// Checks that the expected number of members makes a valid layout. Without this check, an
    /// error would appear only during cluster init, after the nodes have found each other.
    pub(super) fn check_cluster_init(&self, cluster_init: &ClusterInit) -> Result<(), ConfigError> {
        if cluster_init.expect == 0 {
            return Ok(());
        }
        let placeholder = |n: usize| Member::new(&format!("member-{n}"), "", "");
        self.of((0..cluster_init.expect).map(placeholder).collect()).map(drop)
    }
}
