//! Work requests that the device has, in the order it got them, with what they must keep alive.
//!
//! A completion says that its request *and every earlier one of its queue pair* are over: what they
//! hold is let go of then, and not before. Only a completion's number, status and queue pair are
//! trusted, and a number that is not in flight changes nothing.

use std::collections::VecDeque;

use crate::WorkStatus;

/// Why a READ brought nothing that may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum WorkError {
    /// The device says why.
    #[error("{0}")]
    Failed(WorkStatus),
    /// It was before a request that failed, and nothing says that it was complete. Settled all the same.
    #[error("not confirmed before a later request failed; read again")]
    Unconfirmed,
    /// The device never said that it is over. The memory may still be written to: it stays registered for ever and
    /// must not be used again.
    #[error("the device did not give the request up in time; its memory is lost")]
    Unsettled,
}

struct Entry<K> {
    token: u64,
    keep: K,
}

/// The requests of one queue pair.
pub(crate) struct Flight<K> {
    entries: VecDeque<Entry<K>>,
    /// Number of the oldest entry. Numbers wrap, and far fewer are in flight than there are.
    oldest: u32,
    depth: usize,
    signal_every: usize,
    unsignalled: usize,
}

impl<K> Flight<K> {
    pub(crate) fn new(depth: u32, signal_every: u32) -> Self {
        let depth = depth.max(1) as usize;
        Self {
            entries: VecDeque::with_capacity(depth),
            oldest: 0,
            depth,
            signal_every: (signal_every.max(1) as usize).min(depth),
            unsignalled: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn free(&self) -> usize {
        self.depth - self.entries.len()
    }

    /// Takes a request in. `last`: no other follows at once. Gives its number, and whether it must
    /// be signalled. Must not be called without room.
    pub(crate) fn push(&mut self, token: u64, keep: K, last: bool) -> (u32, bool) {
        debug_assert!(self.free() > 0);
        let number = self.oldest.wrapping_add(self.entries.len() as u32);
        self.entries.push_back(Entry { token, keep });
        self.unsignalled += 1;
        let signalled = last || self.unsignalled >= self.signal_every;
        if signalled {
            self.unsignalled = 0;
        }
        (number, signalled)
    }

    /// Takes the newest `count` requests out again: the device did not take them.
    pub(crate) fn retract(&mut self, count: usize) {
        let keep = self.entries.len().saturating_sub(count);
        self.entries.truncate(keep);
    }

    /// A completion was polled. Hands out every request that is over now, oldest first, with what it
    /// kept alive. False where the number is not in flight.
    pub(crate) fn finish(
        &mut self,
        number: u32,
        status: Option<WorkStatus>,
        mut over: impl FnMut(u64, K, Result<(), WorkError>),
    ) -> bool {
        let place = number.wrapping_sub(self.oldest) as usize;
        if place >= self.entries.len() {
            return false;
        }
        for (at, Entry { token, keep }) in self.entries.drain(..=place).enumerate() {
            let result = match status {
                None => Ok(()),
                Some(status) if at == place => Err(WorkError::Failed(status)),
                Some(_) => Err(WorkError::Unconfirmed),
            };
            over(token, keep, result);
        }
        self.oldest = number.wrapping_add(1);
        true
    }

    /// Everything that is left, when the device does not settle it: nothing is let go of.
    pub(crate) fn abandon(&mut self, mut report: impl FnMut(u64, K)) {
        for Entry { token, keep } in self.entries.drain(..) {
            report(token, keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    type Seen = Vec<(u64, Result<(), WorkError>)>;

    fn finish(flight: &mut Flight<Arc<()>>, number: u32, status: Option<WorkStatus>) -> Seen {
        let mut seen = Vec::new();
        flight.finish(number, status, |token, _, result| {
            seen.push((token, result))
        });
        seen
    }

    #[test]
    fn memory_is_held_until_the_completion_and_no_longer() {
        let memory = Arc::new(());
        let mut flight = Flight::new(8, 4);
        let numbers: Vec<_> = (0..6)
            .map(|token| flight.push(token, Arc::clone(&memory), token == 5))
            .collect();
        let signals: Vec<_> = numbers.iter().map(|(_, signalled)| *signalled).collect();
        assert_eq!(signals, [false, false, false, true, false, true]);
        assert_eq!((flight.len(), flight.free()), (6, 2));
        assert_eq!(Arc::strong_count(&memory), 7);
        let seen = finish(&mut flight, numbers[3].0, None);
        assert_eq!(seen, [(0, Ok(())), (1, Ok(())), (2, Ok(())), (3, Ok(()))]);
        assert_eq!(Arc::strong_count(&memory), 3);
        finish(&mut flight, numbers[5].0, None);
        assert_eq!((flight.len(), Arc::strong_count(&memory)), (0, 1));
    }

    #[test]
    fn a_failure_confirms_nothing_before_it() {
        let mut flight = Flight::new(8, 8);
        for token in 0..4 {
            flight.push(token, Arc::new(()), token == 3);
        }
        let access = WorkStatus::RemoteAccess;
        let seen = finish(&mut flight, 1, Some(access));
        assert_eq!(
            seen,
            [
                (0, Err(WorkError::Unconfirmed)),
                (1, Err(WorkError::Failed(access)))
            ]
        );
        let flushed = WorkStatus::Flushed;
        assert_eq!(
            finish(&mut flight, 2, Some(flushed)),
            [(2, Err(WorkError::Failed(flushed)))]
        );
        assert_eq!(flight.len(), 1);
    }

    #[test]
    fn numbers_that_are_not_in_flight_change_nothing() {
        let mut flight = Flight::new(4, 1);
        assert!(finish(&mut flight, 0, None).is_empty());
        flight.push(7, Arc::new(()), true);
        for number in [1, 2, u32::MAX, 1 << 31] {
            assert!(finish(&mut flight, number, None).is_empty());
        }
        assert_eq!(finish(&mut flight, 0, None), [(7, Ok(()))]);
        assert!(finish(&mut flight, 0, None).is_empty());
    }

    #[test]
    fn numbers_wrap() {
        let mut flight = Flight::new(4, 4);
        flight.oldest = u32::MAX - 1;
        for token in 0..4 {
            flight.push(token, Arc::new(()), token == 3);
        }
        assert_eq!(finish(&mut flight, 0, None).len(), 3);
        assert_eq!(finish(&mut flight, 1, None), [(3, Ok(()))]);
    }

    #[test]
    fn what_the_device_did_not_take_is_taken_back() {
        let memory = Arc::new(());
        let mut flight = Flight::new(4, 4);
        for token in 0..3 {
            flight.push(token, Arc::clone(&memory), token == 2);
        }
        flight.retract(2);
        assert_eq!((flight.len(), Arc::strong_count(&memory)), (1, 2));
        let (number, signalled) = flight.push(9, Arc::clone(&memory), true);
        assert_eq!((number, signalled), (1, true));
    }

    #[test]
    fn abandoned_memory_is_handed_over_alive() {
        let memory = Arc::new(());
        let mut flight = Flight::new(4, 4);
        flight.push(1, Arc::clone(&memory), true);
        let mut kept = Vec::new();
        flight.abandon(|token, keep| kept.push((token, keep)));
        assert_eq!((kept.len(), Arc::strong_count(&memory)), (1, 2));
        assert_eq!(flight.len(), 0);
    }
}
