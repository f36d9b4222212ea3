//! The configuration file's sections that this crate defines, with their defaults.
//!
//! `[coordinator]`, `[hints]`, `[repair]` and `[tombstone_gc]` are defined in
//! `quorate_node::settings`.

use std::net::SocketAddr;
use std::path::PathBuf;

use quorate_core::Member;
use quorate_node::TransferConfig;
use serde::Deserialize;
use toml::Table;

pub(super) const MIB: u64 = 1024 * 1024;

/// The section `[node]`: settings of this process.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeSection {
    /// Name of this node. It must be unique in the cluster, and must never change. Default "node1".
    pub name: String,
    /// Address to listen on, "ip:port". Default "127.0.0.1:7400".
    pub listen: SocketAddr,
    /// Address at which clients and other nodes reach this node, "host:port". Default: the value of
    /// `listen`.
    pub advertise: Option<String>,
    /// Failure zone of this node: replicas are spread over zones. Default: none.
    pub zone: String,
    /// Folder of this node's data. Default "./data".
    pub data: PathBuf,
    /// Number of workers: event loops, each on a thread of its own. Default: one per CPU core.
    pub workers: Option<usize>,
    /// Maximum number of open connections. At the limit, the node closes each new connection.
    /// Default 10,000.
    pub max_connections: usize,
    /// True if the node may listen on addresses that other machines can reach, although nothing is
    /// encrypted or authenticated. Default false: only loopback addresses are valid.
    pub insecure: bool,
    /// Address of the HTTP port for `/metrics`, `/livez` and `/readyz`, "ip:port". Default: no such
    /// port.
    pub metrics: Option<SocketAddr>,
    /// Format of the log on stderr: "text" or "json". Default "text".
    pub log_format: LogFormat,
    /// Filter of the log, in the syntax of `tracing_subscriber::EnvFilter`. Default "info".
    pub log: String,
}

impl Default for NodeSection {
    fn default() -> Self {
        NodeSection {
            name: "node1".into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 7400)),
            advertise: None,
            zone: String::new(),
            data: "./data".into(),
            workers: None,
            max_connections: 10_000,
            insecure: false,
            metrics: None,
            log_format: LogFormat::Text,
            log: "info".into(),
        }
    }
}

impl NodeSection {
    /// Returns this node as a member of the cluster.
    pub(super) fn member(&self) -> Member {
        let address = self.advertise.clone().unwrap_or_else(|| self.listen.to_string());
        Member::new(&self.name, &address, &self.zone)
    }
}

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[cluster]`: settings that all nodes agree on.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterSection {
    /// Id of the cluster. Connections between nodes with different ids are refused. Default
    /// "quorate".
    pub id: String,
    /// Number of replicas of each partition (N). Default: 3, or the number of members if that is
    /// smaller.
    pub replicas: Option<u8>,
    /// Number of partitions of the ring (Q): a power of two, fixed when the cluster begins. Default
    /// 1024.
    pub partitions: u32,
    /// True if a node that gossip finds, and that is no member yet, becomes a member without an
    /// operator. Default false: an operator stages and commits its join.
    pub auto_commit: bool,
    /// Maximum rate, in MiB per second, at which a node copies data from other nodes in a layout
    /// change. Default 16.
    pub transfer_rate_mib_s: u64,
}

impl Default for ClusterSection {
    fn default() -> Self {
        let TransferConfig { bytes_per_s, auto_commit } = TransferConfig::default();
        ClusterSection {
            id: "quorate".into(),
            replicas: None,
            partitions: 1024,
            auto_commit,
            transfer_rate_mib_s: bytes_per_s / MIB,
        }
    }
}

impl ClusterSection {
    /// Returns the settings of layout changes.
    pub(super) fn transfer(&self) -> TransferConfig {
        TransferConfig {
            bytes_per_s: self.transfer_rate_mib_s.saturating_mul(MIB),
            auto_commit: self.auto_commit,
        }
    }
}

/// The section `[faults]`: settings for tests only.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultsSection {
    /// Permission for clients to cut this node off from its peers. Default false.
    pub enabled: bool,
}

/// A section that names a plugin: `[storage]` or `[membership]`.
#[derive(Debug, Clone)]
pub struct PluginSection {
    /// Name of the plugin.
    pub name: String,
    /// The other keys, which are the plugin's configuration.
    pub rest: Table,
}
