//! How many stages of a pull have landed, and who waits for which.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use pyo3::prelude::*;

use crate::{
    announcer::{self, Announcement},
    ended::patiently,
};

#[derive(Default)]
struct Inner {
    landed: u32,
    /// The pull has ended: none is waited for any more.
    ended: bool,
    callbacks: Vec<(u32, Announcement)>,
}

impl Inner {
    fn has(&self, stages: u32) -> bool {
        self.ended || self.landed >= stages
    }
}

/// See the module's page.
#[derive(Default)]
pub(crate) struct Stages {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Stages {
    /// So many have landed of every block without an outcome.
    pub(crate) fn land(&self, stages: u32) {
        self.change(|inner| inner.landed = inner.landed.max(stages));
    }

    /// Every block has its outcome.
    pub(crate) fn end(&self) {
        self.change(|inner| inner.ended = true);
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.inner.lock();
        change(&mut inner);
        let due: Vec<_> = {
            let Inner {
                landed,
                ended,
                callbacks,
            } = &mut *inner;
            callbacks
                .extract_if(.., |(stages, _)| *ended || landed >= stages)
                .collect()
        };
        drop(inner);
        self.changed.notify_all();
        for (_, announcement) in due {
            announcer::announce(announcement);
        }
    }

    pub(crate) fn landed(&self) -> u32 {
        self.inner.lock().landed
    }

    /// Waits without the GIL until so many have landed or the pull has ended; whether that is so.
    pub(crate) fn wait(&self, py: Python<'_>, stages: u32, timeout: Option<f64>) -> PyResult<bool> {
        patiently(py, timeout, |until: Instant| {
            let mut inner = self.inner.lock();
            let waits = |inner: &mut Inner| !inner.has(stages);
            self.changed.wait_while_until(&mut inner, waits, until);
            inner.has(stages)
        })
    }

    /// Has `function` called with `about` when that is so, at once where it is.
    pub(crate) fn subscribe(
        &self,
        py: Python<'_>,
        stages: u32,
        function: Py<PyAny>,
        about: Py<PyAny>,
    ) -> PyResult<()> {
        announcer::subscribe(py, function, about, |announcement| {
            let mut inner = self.inner.lock();
            if inner.has(stages) {
                return Some(announcement);
            }
            inner.callbacks.push((stages, announcement));
            None
        })
    }
}
