//! Virtual time: events in the order of their moments, and of their making where those are equal.

use std::{cmp::Reverse, collections::BTreeMap};

/// Microseconds since the world began.
pub(crate) type Micros = u64;

/// One millisecond.
pub(crate) const MS: Micros = 1_000;
/// One second.
pub(crate) const SECOND: Micros = 1_000_000;

/// Events that are to happen.
#[derive(Debug)]
pub(crate) struct Queue<E> {
    /// By moment and number; the numbers make the order total.
    order: std::collections::BinaryHeap<Reverse<(Micros, u64)>>,
    events: BTreeMap<u64, E>,
    made: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self {
            order: std::collections::BinaryHeap::new(),
            events: BTreeMap::new(),
            made: 0,
        }
    }
}

impl<E> Queue<E> {
    /// Lets an event happen.
    pub(crate) fn at(&mut self, when: Micros, event: E) {
        self.made += 1;
        self.order.push(Reverse((when, self.made)));
        self.events.insert(self.made, event);
    }

    /// The next event that happens by `until`.
    pub(crate) fn next(&mut self, until: Micros) -> Option<(Micros, E)> {
        let &Reverse((when, number)) = self.order.peek()?;
        if when > until {
            return None;
        }
        self.order.pop();
        Some((when, self.events.remove(&number)?))
    }
}
