//! One section of the configuration file: its parsing and its errors.
//!
//! `registry` and `config` both parse sections. `config` imports `registry`, so `registry` must not
//! import `config`. The common code is therefore in this module.

use quorate_core::storage::StorageError;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Similarity (Jaro-Winkler, 0 to 1) that a known name must exceed to be suggested in place of an
/// unknown name.
const MIN_SIMILARITY: f64 = 0.7;

/// Parses one section. An unknown key is an error that suggests the nearest known key.
pub(crate) fn parse_section<C: DeserializeOwned>(name: &str, table: Table) -> Result<C, ConfigError> {
    Value::Table(table.clone()).try_into().map_err(|error: toml::de::Error| match UnknownField::from_message(
        error.message(),
    ) {
        Some(UnknownField { unknown, known }) => {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            ConfigError::new(format!("[{name}] {}", unknown_name("key", &unknown, &known)))
        }
        None => ConfigError::new(format!("[{name}] {}", invalid_value(&error, &table))),
    })
}

/// Returns the error message for a value that the section's type does not permit. The message names
/// the key and the value, and says what to use instead.
fn invalid_value(error: &toml::de::Error, table: &Table) -> String {
    let text = error.to_string();
    // The parser names the key after its message: "…\nin `key`".
    let key = text.rsplit_once("in `").and_then(|(_, rest)| rest.split_once('`')).map(|(key, _)| key);
    let message = error.message();
    let expected = message.rsplit_once("expected ").map(|(_, expected)| expected);
    let remedy = match expected {
        _ if message.contains("socket address") => "use ip:port, for example 127.0.0.1:7400".to_owned(),
        Some("u8") => "use a whole number up to 255".to_owned(),
        Some("u16") => "use a whole number up to 65535".to_owned(),
        Some("u32" | "u64" | "usize") => "use a whole number, 0 or more".to_owned(),
        Some("a boolean") => "use true or false".to_owned(),
        Some("a sequence") => "use a list, for example [\"host:port\"]".to_owned(),
        Some(expected) => format!("use {expected}"),
        None => message.to_owned(),
    };
    match key.and_then(|key| Some((key, table.get(key)?))) {
        Some((key, value)) if remedy.starts_with(&value.to_string()) => format!("{key} = {remedy}"),
        Some((key, value)) => format!("{key} = {value}: {remedy}"),
        None => text.trim().replace('\n', " "),
    }
}

/// Error in a configuration. Its message names the key, and says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    message: String,
}

impl ConfigError {
    pub(crate) fn new(message: impl Into<String>) -> ConfigError {
        ConfigError { message: message.into() }
    }
}

impl From<StorageError> for ConfigError {
    fn from(error: StorageError) -> ConfigError {
        ConfigError::new(format!("[storage] {error}"))
    }
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

/// Returns the error message for an unknown name. The message suggests the most similar known name
/// ("did you mean") and lists all known names. `kind` is the kind of name: "section" or "key".
pub(crate) fn unknown_name(kind: &str, unknown: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .max_by(|a, b| strsim::jaro_winkler(a, unknown).total_cmp(&strsim::jaro_winkler(b, unknown)));
    let suggestion = match nearest {
        Some(nearest) if strsim::jaro_winkler(nearest, unknown) > MIN_SIMILARITY => {
            format!(": did you mean {nearest:?}?")
        }
        _ => ".".to_owned(),
    };
    match known {
        [] => format!("unknown {kind} {unknown:?}: no {kind} is allowed here"),
        known => format!("unknown {kind} {unknown:?}{suggestion} Known: {}", known.join(", ")),
    }
}

/// The names in serde's message "unknown field `a`, expected one of `b`, `c`".
struct UnknownField {
    unknown: String,
    known: Vec<String>,
}

impl UnknownField {
    fn from_message(message: &str) -> Option<UnknownField> {
        let rest = message.strip_prefix("unknown field `")?;
        let (unknown, rest) = rest.split_once('`')?;
        let known = rest.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        Some(UnknownField { unknown: unknown.to_owned(), known })
    }
}
