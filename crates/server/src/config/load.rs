//! A node's configuration as one valid value, from its file and the environment.

use std::collections::BTreeMap;
use std::path::Path;

use quorate_core::admission::Identity;
use quorate_core::plugin::PluginContext;
use quorate_core::{BucketDefinition, Layout, Member};
use quorate_node::Settings;

use super::buckets::check_buckets;
use super::checks::{check_cluster, check_node, check_settings};
use super::env::is_override;
use super::file::ConfigFile;
use super::first_layout::FirstLayout;
use super::sections::{ClusterSection, FaultsSection, NodeSection, PluginSection};
use crate::registry::Registry;
use crate::section::ConfigError;

/// Number of replicas of each partition (N) if the configuration does not set it. If the cluster
/// has fewer members, N is the number of members.
const DEFAULT_REPLICAS: usize = 3;

/// A valid configuration.
pub struct Config {
    /// Settings of this process (`[node]`).
    pub node: NodeSection,
    /// Settings that all nodes agree on.
    pub cluster: ClusterSection,
    /// The storage plugin's name and its own keys.
    pub storage: PluginSection,
    /// The membership plugin's name and its own keys.
    pub membership: PluginSection,
    /// The buckets that the cluster begins with, by name.
    pub buckets: BTreeMap<String, BucketDefinition>,
    /// Settings of requests, hints, repair, tombstone collection and layout changes.
    pub settings: Settings,
    /// Settings for tests (`[faults]`).
    pub faults: FaultsSection,
    /// Number of replicas of each partition (N).
    pub replicas: u8,
    /// The first layout, if the membership plugin knows all members from the start. Otherwise the
    /// nodes compute it in cluster init.
    pub layout: Option<Layout>,
}

impl Config {
    /// Reads a file, lets the environment override it (`QUORATE__SECTION__KEY=value`), and checks
    /// everything that can be checked without touching the disk or the network.
    ///
    /// # Errors
    /// The first error. It names the key, and says what to write instead.
    pub fn load(
        path: &Path,
        environment: impl Iterator<Item = (String, String)>,
        registry: &Registry,
    ) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::new(format!("cannot read {}: {error}", path.display())))?;
        let environment: Vec<(String, String)> = environment.collect();
        let overrides: Vec<&str> =
            environment.iter().map(|(name, _)| name.as_str()).filter(|name| is_override(name)).collect();
        let source = match overrides.as_slice() {
            [] => path.display().to_string(),
            names => format!("{}, overridden by the environment ({})", path.display(), names.join(", ")),
        };
        Config::parse(&text, environment.into_iter(), registry)
            .map_err(|error| ConfigError::new(format!("{source}: {error}")))
    }

    /// Parses a configuration from its text, by the rules of [`Config::load`].
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(
        text: &str,
        environment: impl Iterator<Item = (String, String)>,
        registry: &Registry,
    ) -> Result<Config, ConfigError> {
        let mut file = ConfigFile::parse(text, environment)?;
        let node: NodeSection = file.section("node")?;
        let cluster: ClusterSection = file.section("cluster")?;
        let storage = file.plugin_section("storage", "engine", "lmdb")?;
        let membership = file.plugin_section("membership", "plugin", "static")?;
        let buckets = file.buckets()?;
        let settings = Settings {
            coordinator: file.section("coordinator")?,
            hints: file.section("hints")?,
            repair: file.section("repair")?,
            tombstone_gc: file.section("tombstone_gc")?,
            transfer: cluster.transfer(),
        };
        let faults = file.section("faults")?;

        check_node(&node)?;
        check_cluster(&cluster)?;
        check_settings(&settings)?;
        registry.check_storage(&storage.name, storage.rest.clone())?;
        let this = node.member();
        let context = PluginContext { data_folder: &node.data, this: &this };
        let opened = registry.open_membership(&membership.name, membership.rest.clone(), &context)?;
        let members: Vec<Member> = opened.view().into_iter().map(|view| view.member).collect();
        let cluster_init = opened.cluster_init();
        let expected = cluster_init.as_ref().map(|init| init.expect).filter(|&expect| expect > 0);
        let member_count = expected.unwrap_or(members.len());
        let replicas = cluster.replicas.unwrap_or(member_count.min(DEFAULT_REPLICAS) as u8);
        check_buckets(&buckets, replicas, registry)?;
        let first_layout = FirstLayout { partitions: cluster.partitions, replicas, buckets: &buckets };
        let layout = match &cluster_init {
            Some(cluster_init) => {
                first_layout.check_cluster_init(cluster_init)?;
                None
            }
            None => Some(first_layout.of(members)?),
        };
        Ok(Config { node, cluster, storage, membership, buckets, settings, faults, replicas, layout })
    }

    /// Computes the first layout of a cluster with these members.
    ///
    /// # Errors
    /// The first configured value that is invalid for this number of members.
    pub fn first_layout(&self, members: Vec<Member>) -> Result<Layout, ConfigError> {
        let first_layout = FirstLayout {
            partitions: self.cluster.partitions,
            replicas: self.replicas,
            buckets: &self.buckets,
        };
        first_layout.of(members)
    }

    /// Returns this node as a member of the cluster.
    pub fn member(&self) -> Member {
        self.node.member()
    }

    /// Returns the identity with which this node introduces itself on a connection. `layout_digest`
    /// is the digest of the cluster's first layout, or 0 if this node has no layout yet.
    pub(crate) fn identity(&self, layout_digest: u64) -> Identity {
        let member = self.member();
        Identity { cluster: self.cluster.id.clone(), node: member.id, name: member.name, layout_digest }
    }
}
