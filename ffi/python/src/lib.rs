//! `kvferry._native`: what Python cannot do itself. Calls to an agent that wait without the GIL, pulls, memory that is
//! shared, and buffers that are revoked. What people use is made of this in `python/kvferry`, with its documentation.

mod announcer;
mod call;
mod connection;
mod ended;
mod failure;
mod memory;
mod place;
mod pull;
mod runtime;
mod span;
mod stages;
mod told;
mod words;

use kvferry_client::Cause;
use pyo3::prelude::*;

/// The native half of `kvferry`.
#[pymodule]
#[pyo3(name = "_native")]
fn native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    // Every status that `kvferry.errors` must have a class for.
    module.add("CAUSES", Cause::ALL.map(Cause::name).to_vec())?;
    module.add_class::<connection::Connection>()?;
    module.add_class::<call::Call>()?;
    module.add_class::<pull::Pull>()?;
    module.add_class::<memory::Mapping>()?;
    module.add_class::<memory::Window>()?;
    module.add_class::<memory::SharedMemory>()?;
    module.add_class::<span::Span>()?;
    module.add_function(wrap_pyfunction!(connection::connect, module)?)?;
    module.add_function(wrap_pyfunction!(place::share_in_place, module)?)?;
    Ok(())
}
