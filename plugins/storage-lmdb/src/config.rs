use quorate_core::plugin::OpenError;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// Configuration section `[storage]` with `engine = "lmdb"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Moment at which a write is acknowledged. Default "fsync".
    pub durability: Durability,
    /// Longest time between two checkpoints, in milliseconds. Default 1000.
    #[serde(deserialize_with = "interval_ms")]
    pub interval_ms: u64,
    /// Largest size of the LMDB file, in MiB. Opening the file reserves address space in memory,
    /// but no space on the disk. Default 65,536 (64 GiB).
    #[serde(deserialize_with = "map_size_mib")]
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

/// Longest time between two checkpoints that can be configured, in milliseconds.
const MAX_INTERVAL_MS: u64 = 60_000;
/// Largest map that can be configured, in MiB: 16 TiB.
const MAX_MAP_MIB: u64 = 16 * 1024 * 1024;

impl Config {
    /// Checks the values. Parsing a configuration section checks them too, so that
    /// `quorate config check` finds a wrong one.
    pub(crate) fn check(&self) -> Result<(), OpenError> {
        check("interval_ms", self.interval_ms, MAX_INTERVAL_MS)?;
        check("map_size_mib", self.map_size_mib, MAX_MAP_MIB)
    }
}

fn check(key: &'static str, value: u64, limit: u64) -> Result<(), OpenError> {
    if (1..=limit).contains(&value) {
        return Ok(());
    }
    let (value, remedy) = (value.to_string(), format!("use 1 to {limit}"));
    Err(OpenError::InvalidConfig { key, value, remedy })
}

fn interval_ms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let value = u64::deserialize(deserializer)?;
    check("interval_ms", value, MAX_INTERVAL_MS).map_err(D::Error::custom)?;
    Ok(value)
}

fn map_size_mib<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let value = u64::deserialize(deserializer)?;
    check("map_size_mib", value, MAX_MAP_MIB).map_err(D::Error::custom)?;
    Ok(value)
}

/// Moment at which a write is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// After the write-ahead log has the write on the disk. Writes that arrive during one flush
    /// share the next flush.
    #[default]
    Fsync,
    /// At once, from memory. The next checkpoint brings the write to the disk (`interval_ms`). A
    /// killed process loses the writes since its last checkpoint. The node treats this as a lost
    /// disk: at each start it recovers from other replicas.
    Interval,
}
