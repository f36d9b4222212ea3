//! The native part of the Python package: the client for bytes, and the `quorate` command.
//!
//! Codecs, resolvers and entries are written in Python. This crate knows only bytes and durations.

mod call;
mod client;
mod error;

use pyo3::prelude::*;

/// Allocator of the node that the `quorate` command runs. The Rust binary uses the same one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs the `quorate` command and returns its exit code. The first argument is the program name.
#[pyfunction]
fn main(py: Python<'_>, arguments: Vec<String>) -> u8 {
    py.detach(|| {
        let code = quorate_server::run(quorate_server::Registry::built_in(), arguments);
        // `ExitCode` has no accessor for its number. Compare it with all 256 values.
        (0..=u8::MAX).find(|&number| std::process::ExitCode::from(number) == code).unwrap_or(u8::MAX)
    })
}

/// The native part of `quorate`.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<client::Client>()?;
    module.add_function(wrap_pyfunction!(main, module)?)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}
