//! Regions with something to sweep out of the index, and how far that is. A slice at a time: no
//! look-up ever waits for a node's worth of removals.

use std::collections::VecDeque;

use parking_lot::Mutex;

/// The queue of sweeps.
#[derive(Debug, Default)]
pub(super) struct Sweeps(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    /// At most one a region.
    waiting: VecDeque<Sweep>,
    done: Vec<u32>,
}

/// A region whose slots before `from` are swept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sweep {
    pub(super) region: u32,
    pub(super) from: u32,
}

impl Sweeps {
    /// Sweeps a region from its first slot on.
    pub(super) fn start(&self, region: u32) {
        let mut queue = self.0.lock();
        queue.waiting.retain(|sweep| sweep.region != region);
        // An earlier sweep's end is not this one's.
        queue.done.retain(|done| *done != region);
        queue.waiting.push_back(Sweep { region, from: 0 });
    }

    /// Drops sweeps; the regions that were in the queue come back.
    pub(super) fn forget(&self, which: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut queue = self.0.lock();
        let all = queue.waiting.iter().map(|sweep| sweep.region);
        let gone: Vec<u32> = all
            .chain(queue.done.iter().copied())
            .filter(|r| which(*r))
            .collect();
        queue.waiting.retain(|sweep| !which(sweep.region));
        queue.done.retain(|region| !which(*region));
        gone
    }

    /// The sweep to go on with. It stays in the queue.
    pub(super) fn next(&self) -> Option<Sweep> {
        self.0.lock().waiting.front().copied()
    }

    /// A region is swept up to here.
    pub(super) fn go_on(&self, region: u32, from: u32) {
        let mut queue = self.0.lock();
        if let Some(sweep) = queue.waiting.iter_mut().find(|s| s.region == region) {
            sweep.from = from;
        }
    }

    /// A region is swept.
    pub(super) fn done(&self, region: u32) {
        let mut queue = self.0.lock();
        queue.waiting.retain(|sweep| sweep.region != region);
        queue.done.push(region);
    }

    /// Regions that are swept, for their handles to be freed.
    pub(super) fn take_done(&self) -> Vec<u32> {
        std::mem::take(&mut self.0.lock().done)
    }

    /// Is there anything to sweep?
    pub(super) fn pending(&self) -> bool {
        !self.0.lock().waiting.is_empty()
    }

    /// Are there handles to be freed?
    pub(super) fn any_done(&self) -> bool {
        !self.0.lock().done.is_empty()
    }
}
