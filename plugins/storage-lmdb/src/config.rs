use serde::Deserialize;

/// Configuration section `[storage]` with `engine = "lmdb"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Moment at which a write is acknowledged. Default "fsync".
    pub durability: Durability,
    /// Longest time between two checkpoints, in milliseconds. Default 1000.
    pub interval_ms: u64,
    /// Largest size of the LMDB file, in MiB. Opening it reserves only address space.
    /// Default 65,536 (64 GiB).
    pub map_size_mib: u64,
    /// Free space that the engine keeps, in MiB. Default 16.
    ///
    /// With less free space on the disk, every write is refused. With less free space in the map,
    /// only writes that make the tree larger are refused.
    pub reserve_mib: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config { durability: Durability::Fsync, interval_ms: 1_000, map_size_mib: 65_536, reserve_mib: 16 }
    }
}

/// Moment at which a write is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// After the write-ahead log has it on the disk. Writes that arrive meanwhile share a flush.
    #[default]
    Fsync,
    /// At once, from memory. A checkpoint brings it to the disk within `interval_ms`. A killed
    /// process loses the writes since its last checkpoint, which counts as a lost disk.
    Interval,
}
