//! The node's process and its tools: configuration, plugin registry, startup, command line.
//!
//! The logic of requests and replicas is not in this crate, but in `quorate_core` and
//! `quorate_node`. Each module imports only modules that come after it in this list: `cli`,
//! `startup`, `telemetry`, `config`, `registry`, `section`.
//!
//! A program that runs a node with your own plugins looks like this:
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

/// Runs the `quorate` command with these arguments. The first argument is the program's name.
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
