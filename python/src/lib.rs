//! The native part of the Python package: the client for bytes, and the `quorate` command.
//!
//! Everything that knows of Python values (codecs, resolvers, entries) is Python. Here are bytes, and time.

mod call;
mod client;
mod error;

use pyo3::prelude::*;

/// For the node that the `quorate` command runs, as in the Rust binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs the `quorate` command with these arguments, the program's name first. Returns its exit code.
#[pyfunction]
fn main(py: Python<'_>, arguments: Vec<String>) -> u8 {
    py.detach(|| {
        let code = quorate_server::run(quorate_server::Registry::built_in(), arguments);
        // `ExitCode` shows its number in no other way than this.
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
