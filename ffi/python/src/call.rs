//! A call to the agent under way.

use std::{os::fd::RawFd, sync::Arc, time::Duration};

use kvferry_client::{Cause, Connection, Failure};
use pyo3::prelude::*;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{ended::Ended, failure::raise};

/// An answer, to be made into objects by whoever asks for it.
pub(crate) type Answer = Arc<dyn Fn(Python<'_>) -> PyResult<Py<PyAny>> + Send + Sync>;

/// A call under way: `kvferry.Call` is made of it.
#[pyclass(frozen, module = "kvferry._native")]
pub(crate) struct Call {
    ended: Arc<Ended<Answer>>,
    cancel: CancellationToken,
}

/// Ends a call also where its task is dropped.
struct Ending(Arc<Ended<Answer>>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.finish(Err(given_up()));
    }
}

fn given_up() -> Failure {
    Failure::new(
        Cause::Cancelled,
        "it was given up; whether the agent did what was asked is unknown",
    )
}

impl Call {
    /// Starts `work`, to end by `bound`, cancelled with the parent.
    pub(crate) fn start<T: Send + Sync + 'static>(
        connection: &Connection,
        parent: &CancellationToken,
        bound: Duration,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
        tell: impl Fn(Python<'_>, &T) -> PyResult<Py<PyAny>> + Send + Sync + 'static,
    ) -> Self {
        let ended = Arc::new(Ended::new());
        let cancel = parent.child_token();
        let (ending, token) = (Ending(Arc::clone(&ended)), cancel.clone());
        let late = connection.clone();
        connection.runtime().spawn(async move {
            let end = tokio::select! {
                biased;
                () = token.cancelled() => Err(given_up()),
                end = timeout(bound, work) => end.unwrap_or_else(|_| Err(late.late())),
            };
            ending.0.finish(end.map(|value| {
                let answer: Answer = Arc::new(move |py: Python<'_>| tell(py, &value));
                answer
            }));
        });
        Self { ended, cancel }
    }
}

#[pymethods]
impl Call {
    fn done(&self) -> bool {
        self.ended.done()
    }

    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        self.ended.wait(py, timeout)
    }

    #[pyo3(signature = (timeout=None))]
    fn result(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        let answer = self.ended.result(py, timeout)?;
        answer(py)
    }

    fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Calls `function(about)` at the end.
    fn subscribe(&self, py: Python<'_>, function: Py<PyAny>, about: Py<PyAny>) -> PyResult<()> {
        self.ended.subscribe(py, function, about)
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.ended.event().map_err(|failure| raise(py, &failure))
    }
}
