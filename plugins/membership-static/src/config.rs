use serde::Deserialize;

/// `[membership]` with `plugin = "static"`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// All members, this node among them. Empty: this node alone.
    pub members: Vec<MemberEntry>,
    /// This node joins a cluster that the others are already: it asks them for their layout, and takes no part in it until an
    /// operator commits that. Default false: the members listed are the cluster.
    pub join: bool,
}

/// One member.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberEntry {
    /// Its `[node] name`.
    pub name: String,
    /// Where it listens, "host:port".
    pub address: String,
    /// Its failure zone. Default: none.
    #[serde(default)]
    pub zone: String,
}
