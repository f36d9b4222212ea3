use serde::Deserialize;

/// `[storage]` with `engine = "fjall"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Size of the cache for blocks of the tree, in MiB. Default 64.
    pub cache_mib: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config { cache_mib: 64 }
    }
}
