//! Printing of results: tables for people, JSON for scripts.

use clap::ValueEnum;

/// Format of a command's result.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    Table,
    Json,
}

/// Prints a line to stdout. Ignores an error, because the program that reads the output may have
/// ended early (`| head`).
macro_rules! print_line {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($words)*);
    }};
}
pub(super) use print_line;

pub(super) fn print_json(value: &serde_json::Value) {
    print_line!("{value:#}");
}

/// Prints a report as the JSON object that it serializes to.
pub(super) fn print_report(report: &impl serde::Serialize) {
    print_json(&serde_json::to_value(report).expect("plain data"));
}

/// Creates an empty table.
pub(super) fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_BORDERS_ONLY);
    table.set_header(header.to_vec());
    table
}

/// Formats bytes for people. UTF-8 without control characters is shown as text, other bytes are
/// escaped.
pub(super) fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

/// Formats a number of bytes in MiB.
pub(super) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1024.0 / 1024.0)
}
