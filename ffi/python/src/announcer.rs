//! The thread that calls back: it takes the GIL, so that no thread that moves messages ever waits for it.

use std::{
    process,
    sync::mpsc::{Sender, channel},
    thread,
};

use kvferry_client::Failure;
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::failure::raise;

/// A call to Python.
pub(crate) struct Announcement {
    /// Whom to call.
    pub(crate) function: Py<PyAny>,
    /// With what.
    pub(crate) about: Py<PyAny>,
}

/// Not bounded: it holds what callers have registered, once each.
static QUEUE: Mutex<Option<(u32, Sender<Announcement>)>> = Mutex::new(None);

/// Starts the thread where it is not there yet.
fn start() -> Result<(), Failure> {
    let mut queue = QUEUE.lock();
    let me = process::id();
    if queue.as_ref().is_some_and(|(process, _)| *process == me) {
        return Ok(());
    }
    #[allow(clippy::disallowed_methods)] // bounded by what is registered: see QUEUE
    let (sender, receiver) = channel::<Announcement>();
    thread::Builder::new()
        .name("kvferry-call".to_owned())
        .spawn(move || {
            while let Ok(first) = receiver.recv() {
                // None: the interpreter ends, and nobody is to be told any more.
                Python::try_attach(|py| {
                    call(py, &first);
                    while let Ok(next) = receiver.try_recv() {
                        call(py, &next);
                    }
                });
            }
        })
        .map_err(|error| Failure::system("cannot start a thread", error))?;
    *queue = Some((me, sender));
    Ok(())
}

/// Has `function` called with `about`: now where `keep` gives the call back, since what it is to tell of has been; later, by
/// [`announce`], where `keep` keeps it.
pub(crate) fn subscribe(
    py: Python<'_>,
    function: Py<PyAny>,
    about: Py<PyAny>,
    keep: impl FnOnce(Announcement) -> Option<Announcement>,
) -> PyResult<()> {
    start().map_err(|failure| raise(py, &failure))?;
    if let Some(due) = keep(Announcement { function, about }) {
        call(py, &due);
    }
    Ok(())
}

/// Has it called.
pub(crate) fn announce(announcement: Announcement) {
    if let Some((_, sender)) = &*QUEUE.lock() {
        // The thread does not end.
        let _ = sender.send(announcement);
    }
}

/// Calls now, on the caller's thread. What it raises is nobody's, so that it is written where such things are written.
pub(crate) fn call(py: Python<'_>, announcement: &Announcement) {
    let about = announcement.about.bind(py);
    if let Err(error) = announcement.function.bind(py).call1((about,)) {
        error.write_unraisable(py, Some(announcement.function.bind(py)));
    }
}
