//! The node's process and its tools: configuration, plugin registry, startup, command line.
//!
//! This crate decides nothing about requests or replicas: that is in `quorate_core` and
//! `quorate_node`. Modules import only modules below them: `cli`, `startup`, `telemetry`, `config`,
//! `registry`, `section`.
//!
//! A node with plugins of one's own is ten lines:
//!
//! ```no_run
//! fn main() -> std::process::ExitCode {
//!     let mut registry = quorate_server::Registry::built_in();
//!     registry.storage("my-engine", quorate_storage_memory::open);
//!     quorate_server::main(registry)
//! }
//! ```

mod cli;
pub mod config;
pub mod registry;
mod section;
mod startup;
mod telemetry;

pub use registry::Registry;

/// Runs the `quorate` command with the process's arguments.
pub fn main(registry: Registry) -> std::process::ExitCode {
    run(registry, std::env::args_os())
}

/// Runs the `quorate` command with these arguments, the program's name first.
pub fn run<T: Into<std::ffi::OsString> + Clone>(
    registry: Registry,
    arguments: impl IntoIterator<Item = T>,
) -> std::process::ExitCode {
    cli::run(registry, arguments)
}

/// The guide for plugins: its examples are compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/plugins.md")]
struct PluginsGuide;
