use serde::Deserialize;

/// `[membership]` with `plugin = "gossip"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to find some members at first, "host:port" each. This node's own address among them is no harm, so all nodes
    /// can have the same list. Default: none, which is right for a cluster of one.
    pub seeds: Vec<String>,
    /// How many nodes make up a new cluster: its first layout is made when exactly these have found each other. A node that
    /// finds a cluster that has a layout takes that one instead. The same on all nodes. Default 1.
    pub expect: usize,
    /// How often a node tells another what it knows, milliseconds. Default 500.
    pub interval_ms: u64,
    /// A member that was not heard of for so long, through anybody, is suspected to be down, milliseconds. It stays a
    /// member. Default 5000.
    pub suspect_after_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config { seeds: Vec::new(), expect: 1, interval_ms: 500, suspect_after_ms: 5_000 }
    }
}
