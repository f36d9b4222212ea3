use serde::Deserialize;

/// `[membership]` with `plugin = "static"`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// List of all members, this node included. Empty: this node alone.
    pub members: Vec<MemberEntry>,
    /// True if this node joins a cluster that the other members already form. It fetches their
    /// layout, and holds no data until an operator commits a layout that contains it. Default
    /// false: the listed members form the cluster.
    pub join: bool,
}

/// One member.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberEntry {
    /// Name of the member, its `[node] name`.
    pub name: String,
    /// Address of the member, "host:port".
    pub address: String,
    /// Failure zone of the member. Default: none.
    #[serde(default)]
    pub zone: String,
}
