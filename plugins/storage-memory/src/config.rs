use serde::Deserialize;

/// `[storage]` with `engine = "memory"`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Largest number of MiB of keys and values. Beyond it, writes fail with `StorageFailed`.
    /// Default: no limit.
    pub max_mib: Option<u64>,
}
