//! Conversion of client errors into the exceptions of the Python package (`quorate._errors`).

use pyo3::prelude::*;
use quorate_client::ClientError;
use quorate_client::core::RequestError;

/// Returns the Python exception for an error, ready to be raised.
pub(crate) fn raise(py: Python<'_>, error: &ClientError) -> PyErr {
    match instance(py, error) {
        Ok(exception) => PyErr::from_value(exception),
        Err(broken) => broken,
    }
}

/// Returns the exception object for an error. A `*_many` call puts it into its list of results.
pub(crate) fn instance<'py>(py: Python<'py>, error: &ClientError) -> PyResult<Bound<'py, PyAny>> {
    let (name, needed, received) = match error {
        ClientError::Unreachable { .. } => ("Unavailable", 0, 0),
        ClientError::Request(request) => {
            let (needed, received) = match request {
                RequestError::Unavailable { needed, reachable } => (*needed, *reachable),
                RequestError::Indeterminate { needed, received }
                | RequestError::DeadlineExceeded { needed, received, .. } => (*needed, *received),
                _ => (0, 0),
            };
            (request.name(), needed, received)
        }
    };
    let make = py.import("quorate._errors")?.getattr("from_native")?;
    make.call1((name, error.to_string(), needed, received))
}
