//! Which buffers of a staging ring are free.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use crate::lock;

/// The free buffers, by number.
pub(crate) struct Ring {
    free: Mutex<Vec<u32>>,
    given_back: Condvar,
}

impl Ring {
    pub(crate) fn new(buffers: u32) -> Arc<Self> {
        Arc::new(Self {
            free: Mutex::new((0..buffers).rev().collect()),
            given_back: Condvar::new(),
        })
    }

    /// A free buffer, where there is one now.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Slot> {
        let number = lock(&self.free).pop()?;
        Some(Slot {
            number,
            ring: Arc::clone(self),
        })
    }

    /// Waits until a buffer may be free, at most so long.
    pub(crate) fn wait(&self, limit: Duration) {
        let free = lock(&self.free);
        let waited = self
            .given_back
            .wait_timeout_while(free, limit, |free| free.is_empty());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn free(&self) -> usize {
        lock(&self.free).len()
    }
}

/// A buffer that is taken. Free again on drop.
pub(crate) struct Slot {
    pub(crate) number: u32,
    ring: Arc<Ring>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.ring.free).push(self.number);
        self.ring.given_back.notify_one();
    }
}
