//! Virtual time: events in the order of their moments, and of their making where those are equal.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

/// Events that are to happen.
#[derive(Debug)]
pub(super) struct Queue<E> {
    order: BinaryHeap<Reverse<(Duration, u64)>>,
    events: BTreeMap<u64, E>,
    pub(super) made: u64,
}

impl<E> Queue<E> {
    pub(super) fn new() -> Self {
        Self {
            order: BinaryHeap::new(),
            events: BTreeMap::new(),
            made: 0,
        }
    }

    /// Lets an event happen.
    pub(super) fn at(&mut self, when: Duration, event: E) {
        self.made += 1;
        self.order.push(Reverse((when, self.made)));
        self.events.insert(self.made, event);
    }

    /// The next event there is.
    pub(super) fn next(&mut self) -> Option<(Duration, E)> {
        let Reverse((when, number)) = self.order.pop()?;
        Some((when, self.events.remove(&number)?))
    }
}
