use serde::Deserialize;

/// `[storage]` with `engine = "lmdb"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// When a write is acked. Default "fsync".
    pub durability: Durability,
    /// How often what is newer than the tree is committed to it, milliseconds. Default 1000.
    pub interval_ms: u64,
    /// Most MiB the file may grow to. Only address space is taken at once. Default 65,536 (64 GiB).
    pub map_size_mib: u64,
    /// Writes are refused when less than this is left on the disk, and those that make the tree larger when less is left in the map,
    /// MiB. Default 16.
    pub reserve_mib: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config { durability: Durability::Fsync, interval_ms: 1_000, map_size_mib: 65_536, reserve_mib: 16 }
    }
}

/// When a write is acked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Once it is on the disk, in the log, together with what gathered meanwhile.
    #[default]
    Fsync,
    /// At once, from memory; a commit to the tree follows within `interval_ms`. A kill loses what was not yet committed, and counts
    /// as a lost disk.
    Interval,
}
