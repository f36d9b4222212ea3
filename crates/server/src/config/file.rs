//! The sections of one configuration file, before their keys are checked.

use std::collections::BTreeMap;

use quorate_core::BucketDefinition;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::buckets::parse_buckets;
use super::env::override_from;
use super::sections::PluginSection;
use crate::section::{ConfigError, parse_section, unknown_name};

/// The sections of a configuration file that are still to be read. Reading a section removes it.
pub(super) struct ConfigFile {
    sections: Table,
}

const SECTIONS: [&str; 10] = [
    "node",
    "cluster",
    "storage",
    "membership",
    "buckets",
    "coordinator",
    "hints",
    "repair",
    "tombstone_gc",
    "faults",
];

/// Sections that were renamed: the old name and the new name. Without this list, the error for an
/// old name would suggest the most similar known name. For "reaping" that is "repair", a wrong
/// section with some of the same keys.
const RENAMED: [(&str, &str); 1] = [("reaping", "tombstone_gc")];

impl ConfigFile {
    /// Parses the text, lets the environment override keys, and refuses unknown sections.
    pub(super) fn parse(
        text: &str,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<ConfigFile, ConfigError> {
        let mut sections: Table =
            text.parse().map_err(|error: toml::de::Error| ConfigError::new(error.to_string()))?;
        override_from(&mut sections, environment)?;
        if let Some(unknown) = sections.keys().find(|key| !SECTIONS.contains(&key.as_str())) {
            let renamed = RENAMED.iter().find(|(old, _)| old == unknown);
            return Err(ConfigError::new(match renamed {
                Some((old, new)) => format!("section [{old}] has a new name: write [{new}]"),
                None => unknown_name("section", unknown, &SECTIONS),
            }));
        }
        Ok(ConfigFile { sections })
    }

    /// Reads a section. If the file lacks the section, all its keys have their defaults.
    pub(super) fn section<C: DeserializeOwned>(&mut self, name: &str) -> Result<C, ConfigError> {
        parse_section(name, self.remove(name)?)
    }

    /// Reads a section in which `key` names a plugin.
    pub(super) fn plugin_section(
        &mut self,
        section: &str,
        key: &str,
        default: &str,
    ) -> Result<PluginSection, ConfigError> {
        let mut rest = self.remove(section)?;
        let name = match rest.remove(key) {
            None => default.to_owned(),
            Some(Value::String(name)) => name,
            Some(other) => {
                return Err(ConfigError::new(format!("[{section}] {key} = {other}: use a plugin's name")));
            }
        };
        Ok(PluginSection { name, rest })
    }

    /// Reads the `[buckets.NAME]` sections.
    pub(super) fn buckets(&mut self) -> Result<BTreeMap<String, BucketDefinition>, ConfigError> {
        parse_buckets(self.remove("buckets")?)
    }

    fn remove(&mut self, section: &str) -> Result<Table, ConfigError> {
        match self.sections.remove(section) {
            None => Ok(Table::new()),
            Some(Value::Table(table)) => Ok(table),
            Some(_) => Err(ConfigError::new(format!("[{section}] must be a section"))),
        }
    }
}
