//! Environment variables that override keys of the configuration file.

use toml::{Table, Value};

use crate::section::ConfigError;

const PREFIX: &str = "QUORATE__";

/// Returns true if an environment variable overrides a key of the file.
pub(super) fn is_override(variable: &str) -> bool {
    variable.starts_with(PREFIX)
}

/// Sets the keys that variables name: `QUORATE__SECTION__KEY=value`.
pub(super) fn override_from(
    sections: &mut Table,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<(), ConfigError> {
    for (variable, value) in environment {
        let Some(path) = variable.strip_prefix(PREFIX) else {
            continue;
        };
        let path: Vec<String> = path.split("__").map(str::to_lowercase).collect();
        let Some((key, parents)) = path.split_last().filter(|(_, parents)| !parents.is_empty()) else {
            return Err(ConfigError::new(format!("environment {variable}: use {PREFIX}SECTION__KEY")));
        };
        let mut table = &mut *sections;
        for parent in parents {
            let entry = table.entry(parent.clone()).or_insert_with(|| Value::Table(Table::new()));
            table = entry.as_table_mut().ok_or_else(|| {
                ConfigError::new(format!("environment {variable}: {parent} is not a section"))
            })?;
        }
        table.insert(key.clone(), parse_value(value));
    }
    Ok(())
}

/// Parses a TOML value. Text that is no TOML value is a string: the user need not quote it.
fn parse_value(text: String) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    parsed.unwrap_or(Value::String(text))
}
