//! Opening a plugin. Every plugin exports
//! `open(config: Config, context: &PluginContext) -> Result<_, OpenError>`.

use std::path::Path;

use crate::member::Member;
use crate::storage::StorageError;

/// The facts about a node that a plugin is given when the node opens it.
#[derive(Clone, Copy, Debug)]
pub struct PluginContext<'a> {
    /// The node's data folder. A durable engine creates it, locks it, and checks its format.
    pub data_folder: &'a Path,
    /// This node, as the configuration's `[node]` describes it.
    pub this: &'a Member,
}

/// Error of opening a plugin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A value of the plugin's configuration is refused.
    #[error("{key} = {value}: {remedy}")]
    InvalidConfig {
        /// The configuration key, without its section.
        key: &'static str,
        /// The value that was given.
        value: String,
        /// The reason, and what to write instead.
        remedy: String,
    },
    /// A resource that the plugin needs, such as a file or a library, is missing or fails.
    #[error("cannot {action}: {detail}")]
    Resource {
        /// The action that failed, as an infinitive: "read members.json".
        action: String,
        /// The error of the operating system or the library.
        detail: String,
    },
    /// The storage engine cannot be opened.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
