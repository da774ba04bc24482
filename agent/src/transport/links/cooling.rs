//! Ways to one peer that failed, and until when each is left alone. Pure: time is an argument.

use std::time::{Duration, Instant};

use crate::transport::TransportKind;

/// After a first failure: a transfer that goes on another way must not wait for this one again.
const FIRST: Duration = Duration::from_secs(1);
/// Most time between two tries: what a way that is well again may go unused.
const LAST: Duration = Duration::from_secs(30);
/// After wrong bytes. They come from a device or a driver, which do not mend within seconds.
const WRONG_BYTES: Duration = Duration::from_secs(60);
/// A failure so long after the one before is a first one again.
const FORGOTTEN: Duration = Duration::from_secs(120);

/// What failed, and how often of late.
#[derive(Debug, Default)]
pub(super) struct Cooling {
    /// At most one per kind.
    ways: Vec<Way>,
}

#[derive(Debug)]
struct Way {
    kind: TransportKind,
    failed: Instant,
    pause: Duration,
}

impl Cooling {
    /// It did not connect, or its link was lost.
    pub(super) fn failed(&mut self, now: Instant, kind: TransportKind) {
        let pause = match self.way(kind) {
            Some(way) if now.saturating_duration_since(way.failed) < FORGOTTEN => {
                (way.pause * 2).min(LAST.max(way.pause))
            }
            _ => FIRST,
        };
        self.set(now, kind, pause);
    }

    /// It brought bytes that were not those that were sealed.
    pub(super) fn brought_wrong_bytes(&mut self, now: Instant, kind: TransportKind) {
        self.set(now, kind, WRONG_BYTES);
    }

    /// Is it to be left alone?
    pub(super) fn is_cooling(&self, now: Instant, kind: TransportKind) -> bool {
        self.way(kind)
            .is_some_and(|way| now < way.failed + way.pause)
    }

    fn way(&self, kind: TransportKind) -> Option<&Way> {
        self.ways.iter().find(|way| way.kind == kind)
    }

    fn set(&mut self, now: Instant, kind: TransportKind, pause: Duration) {
        self.ways.retain(|way| way.kind != kind);
        self.ways.push(Way {
            kind,
            failed: now,
            pause,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_again_is_left_alone_for_longer_and_others_are_not() {
        let mut cooling = Cooling::default();
        let start = Instant::now();
        let mut now = start;
        let mut waited = Vec::new();
        for _ in 0..7 {
            cooling.failed(now, TransportKind::Rdma);
            assert!(!cooling.is_cooling(now, TransportKind::Tcp));
            let since = now;
            while cooling.is_cooling(now, TransportKind::Rdma) {
                now += Duration::from_millis(500);
            }
            waited.push((now - since).as_secs());
        }
        assert_eq!(waited, [1, 2, 4, 8, 16, 30, 30]);
        now += FORGOTTEN;
        cooling.failed(now, TransportKind::Rdma);
        assert!(!cooling.is_cooling(now + FIRST, TransportKind::Rdma));
    }

    #[test]
    fn wrong_bytes_are_worse_than_a_failure() {
        let mut cooling = Cooling::default();
        let now = Instant::now();
        cooling.brought_wrong_bytes(now, TransportKind::Rdma);
        let almost = now + WRONG_BYTES - Duration::from_millis(1);
        assert!(cooling.is_cooling(almost, TransportKind::Rdma));
        // Nor is the pause cut short by what follows.
        cooling.failed(now, TransportKind::Rdma);
        assert!(cooling.is_cooling(almost, TransportKind::Rdma));
    }
}
