//! The configuration file of a node, `node.toml`. It is parsed and checked as a whole. An error
//! names the key, and says what to write instead.

mod buckets;
mod checks;
mod env;
mod file;
mod first_layout;
mod load;
mod sections;

pub use crate::section::ConfigError;
pub use load::Config;
pub use sections::{ClusterSection, FaultsSection, LogFormat, NodeSection, PluginSection};
