//! `node.toml`: parsed once into a valid value, with errors that name the key and what to write.

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
