use serde::Deserialize;

/// `[membership]` with `plugin = "gossip"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Addresses of nodes through which this node finds the cluster, "host:port" each. The list may
    /// contain this node's own address, so that all nodes can have the same list. Default: none,
    /// which is right for a cluster of one node.
    pub seeds: Vec<String>,
    /// Number of nodes that begin a new cluster, the same on all of them. Its first layout is made
    /// once exactly this number of nodes have found each other. A node that finds a cluster with a
    /// layout adopts that layout instead. Default 1.
    pub expect: usize,
    /// Interval of the gossip rounds, in milliseconds. Default 500.
    pub interval_ms: u64,
    /// Time without a new heartbeat of a member, from any node, after which it is suspected to be
    /// down, in milliseconds. It stays a member. Default 5000.
    pub suspect_after_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config { seeds: Vec::new(), expect: 1, interval_ms: 500, suspect_after_ms: 5_000 }
    }
}
