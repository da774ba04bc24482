//! Failures as exceptions: the classes are Python's, in `kvferry.errors`.

use kvferry_client::Failure;
use pyo3::{prelude::*, types::PyTuple};

/// The exception for a failure.
pub(crate) fn raise(py: Python<'_>, failure: &Failure) -> PyErr {
    match make(py, failure) {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

fn make<'py>(py: Python<'py>, failure: &Failure) -> PyResult<Bound<'py, PyAny>> {
    let of = py.import("kvferry.errors")?.getattr("of")?;
    let arguments = PyTuple::new(py, [failure.cause.name(), &failure.message])?;
    of.call1(arguments)
}
