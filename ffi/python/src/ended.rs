//! Something that ends once: waiting for it without the GIL, a descriptor that can be watched, and whom to call.

use std::{
    os::fd::{AsRawFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use kvferry_client::{Cause, Failure};
use parking_lot::{Condvar, Mutex};
use pyo3::prelude::*;
use rustix::event::{EventfdFlags, eventfd};

use crate::{
    announcer::{self, Announcement},
    failure::raise,
};

/// How long a wait goes on without looking whether Ctrl-C was pressed. The end itself is heard at once.
const SIGNALS: Duration = Duration::from_millis(100);

struct Inner<T> {
    end: Option<Result<T, Failure>>,
    callbacks: Vec<Announcement>,
    event: Option<OwnedFd>,
    readable: bool,
}

/// See the module's page.
pub(crate) struct Ended<T> {
    inner: Mutex<Inner<T>>,
    changed: Condvar,
}

impl<T: Clone + Send> Ended<T> {
    pub(crate) fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                end: None,
                callbacks: Vec::new(),
                event: None,
                readable: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Ends it. Only the first end counts.
    pub(crate) fn finish(&self, end: Result<T, Failure>) {
        let mut inner = self.inner.lock();
        if inner.end.is_some() {
            return;
        }
        inner.end = Some(end);
        inner.set_readable(true);
        let callbacks = std::mem::take(&mut inner.callbacks);
        drop(inner);
        self.changed.notify_all();
        callbacks.into_iter().for_each(announcer::announce);
    }

    /// Whether the descriptor can be read.
    pub(crate) fn set_readable(&self, readable: bool) {
        self.inner.lock().set_readable(readable);
    }

    pub(crate) fn done(&self) -> bool {
        self.inner.lock().end.is_some()
    }

    /// Waits without the GIL; whether it has ended.
    pub(crate) fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        if self.done() {
            return Ok(true);
        }
        patiently(py, timeout, |until| {
            let mut inner = self.inner.lock();
            let waits = |inner: &mut Inner<T>| inner.end.is_none();
            self.changed.wait_while_until(&mut inner, waits, until);
            inner.end.is_some()
        })
    }

    /// What it came to, waiting for it.
    pub(crate) fn result(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<T> {
        self.wait(py, timeout)?;
        let end = self.inner.lock().end.clone();
        match end {
            Some(Ok(value)) => Ok(value),
            Some(Err(failure)) => Err(raise(py, &failure)),
            None => Err(raise(
                py,
                &Failure::new(Cause::NotDone, "it has not ended yet: wait on"),
            )),
        }
    }

    /// Has `function` called with `about` at the end, at once where that has been.
    pub(crate) fn subscribe(
        &self,
        py: Python<'_>,
        function: Py<PyAny>,
        about: Py<PyAny>,
    ) -> PyResult<()> {
        announcer::subscribe(py, function, about, |announcement| {
            let mut inner = self.inner.lock();
            if inner.end.is_some() {
                return Some(announcement);
            }
            inner.callbacks.push(announcement);
            None
        })
    }

    /// A descriptor that can be read while there is something to say. It stays this value's.
    pub(crate) fn event(&self) -> Result<RawFd, Failure> {
        let mut inner = self.inner.lock();
        if inner.event.is_none() {
            let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(|error| Failure::system("cannot make an eventfd", error))?;
            inner.event = Some(event);
            let readable = inner.readable;
            inner.set_readable(readable);
        }
        let event = inner.event.as_ref().map(AsRawFd::as_raw_fd);
        event.ok_or_else(|| Failure::system("cannot make an eventfd", "none"))
    }
}

/// Waits without the GIL, in slices between which Ctrl-C is looked for: `wait` waits until a moment and says whether what it
/// waits for is so.
pub(crate) fn patiently(
    py: Python<'_>,
    timeout: Option<f64>,
    wait: impl Fn(Instant) -> bool + Sync,
) -> PyResult<bool> {
    let patience = timeout.map(|seconds| {
        // Longer than anybody waits is for ever; less than nothing, or no number, only asks.
        Duration::try_from_secs_f64(seconds.clamp(0.0, 1e9)).unwrap_or_default()
    });
    let deadline = patience.map(|patience| Instant::now() + patience);
    loop {
        let slice = Instant::now() + SIGNALS;
        let until = deadline.map_or(slice, |deadline| deadline.min(slice));
        let is_so = py.detach(|| wait(until));
        if is_so || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(is_so);
        }
        py.check_signals()?;
    }
}

impl<T> Inner<T> {
    fn set_readable(&mut self, readable: bool) {
        self.readable = readable;
        let Some(event) = &self.event else {
            return;
        };
        // Neither can fail in a way that matters: a full counter can be read, an empty one cannot.
        let mut counter = [0; 8];
        let _ = rustix::io::read(event, &mut counter);
        if readable {
            let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
        }
    }
}
