//! What was told of late.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;

use super::{super::Counts, Change, LINGER, WatchEnd};
use crate::sabotage::{self, Bug};

/// The last changes of one namespace. Its lock is taken after a slot table's, and alone.
#[derive(Debug)]
pub(in super::super) struct Log {
    ring: Mutex<Ring>,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Ring {
    changes: VecDeque<Arc<Change>>,
    /// The number of the newest; they have no gaps.
    last: u64,
    bytes: usize,
    max_bytes: usize,
    /// The namespace is gone.
    ended: bool,
    watchers: usize,
    /// Since when nobody watches, as far as was looked.
    idle_since: Option<Duration>,
    /// Those who wait for the next change.
    waiting: Vec<Waker>,
}

/// Changes, and the number of the last of them.
type Next = (Vec<Arc<Change>>, u64);

impl Log {
    /// An empty one whose first change will have the number after `last`.
    pub(super) fn new(last: u64, max_bytes: usize, counts: Arc<Counts>) -> Self {
        counts.watch_logs.add(1);
        let ring = Ring {
            changes: VecDeque::new(),
            last,
            bytes: 0,
            max_bytes,
            ended: false,
            watchers: 0,
            idle_since: None,
            waiting: Vec::new(),
        };
        Self {
            ring: Mutex::new(ring),
            counts,
        }
    }

    pub(super) fn last(&self) -> u64 {
        self.ring.lock().last
    }

    /// Can one go on after this number?
    pub(super) fn reaches(&self, seq: u64) -> bool {
        let ring = self.ring.lock();
        (ring.oldest()..=ring.last).contains(&seq)
    }

    pub(super) fn append(&self, change: Change) {
        let mut ring = self.ring.lock();
        let before = ring.bytes;
        ring.last += 1;
        ring.bytes += change.bytes();
        ring.changes.push_back(Arc::new(change));
        let mut dropped = Vec::new();
        while ring.bytes > ring.max_bytes
            && let Some(oldest) = ring.changes.pop_front()
        {
            ring.bytes -= oldest.bytes();
            dropped.push(oldest);
        }
        let waiting = std::mem::take(&mut ring.waiting);
        let more = ring.bytes as i64 - before as i64;
        self.counts.watch_log_bytes.add(more);
        drop(ring);
        if sabotage::is(Bug::WatchersNotWoken) {
            return;
        }
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Changes after a number, as many as take at most so many bytes, but one at least if there is
    /// one.
    pub(super) fn after(&self, seq: u64, max_bytes: usize) -> Result<Next, WatchEnd> {
        self.ring.lock().after(seq, max_bytes)
    }

    /// As [`after`](Self::after), and wakes when there are some.
    pub(super) fn poll_after(
        &self,
        cx: &mut Context<'_>,
        seq: u64,
        max_bytes: usize,
    ) -> Poll<Result<Next, WatchEnd>> {
        let mut ring = self.ring.lock();
        match ring.after(seq, max_bytes) {
            Ok((changes, _)) if changes.is_empty() => {
                let mut left = Vec::new();
                if !ring.waiting.iter().any(|w| w.will_wake(cx.waker())) {
                    // Where nothing changes, those of watchers that left pile up. Who still waits comes back.
                    if ring.waiting.len() >= 2 * ring.watchers.max(1) {
                        left = std::mem::take(&mut ring.waiting);
                    }
                    ring.waiting.push(cx.waker().clone());
                }
                drop(ring);
                left.into_iter().for_each(Waker::wake);
                Poll::Pending
            }
            other => Poll::Ready(other),
        }
    }

    /// The namespace is gone, and watchers are told that and nothing more. One who reads nothing keeps the log, and
    /// would keep its changes, while another of that name has one of its own.
    pub(super) fn end(&self) {
        let mut ring = self.ring.lock();
        ring.ended = true;
        let moot = std::mem::take(&mut ring.changes);
        let bytes = std::mem::take(&mut ring.bytes);
        self.counts.watch_log_bytes.add(-(bytes as i64));
        let waiting = std::mem::take(&mut ring.waiting);
        drop(ring);
        drop(moot);
        waiting.into_iter().for_each(Waker::wake);
    }

    /// One more watches; false where `most` do already.
    pub(super) fn join(&self, most: usize) -> bool {
        let mut ring = self.ring.lock();
        let room = ring.watchers < most;
        if room {
            ring.watchers += 1;
            ring.idle_since = None;
            self.counts.watchers.add(1);
        }
        room
    }

    pub(super) fn leave(&self) {
        let mut ring = self.ring.lock();
        self.counts.watchers.add(-1);
        ring.watchers = ring.watchers.saturating_sub(1);
        if ring.watchers == 0 {
            ring.waiting.clear();
        }
    }

    /// Would [`idle`](Self::idle) do or find anything?
    pub(super) fn idle_is_due(&self, now: Duration) -> bool {
        let ring = self.ring.lock();
        ring.watchers == 0 && ring.idle_since.is_none_or(|since| now >= since + LINGER)
    }

    /// Has nobody watched for so long that it may go?
    pub(super) fn idle(&self, now: Duration) -> bool {
        let mut ring = self.ring.lock();
        if ring.watchers > 0 {
            return false;
        }
        now >= *ring.idle_since.get_or_insert(now) + LINGER
    }

    #[cfg(test)]
    pub(in super::super) fn shorten(&self, max_bytes: usize) {
        self.ring.lock().max_bytes = max_bytes;
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let bytes = self.ring.get_mut().bytes;
        self.counts.watch_log_bytes.add(-(bytes as i64));
        self.counts.watch_logs.add(-1);
    }
}

impl Ring {
    /// The number before the oldest change that is kept.
    fn oldest(&self) -> u64 {
        self.last - self.changes.len() as u64
    }

    fn after(&self, seq: u64, max_bytes: usize) -> Result<Next, WatchEnd> {
        if self.ended {
            return Err(WatchEnd::Deleted);
        }
        let skipped = match seq.checked_sub(self.oldest()) {
            Some(skipped) => skipped,
            None if sabotage::is(Bug::WatchGapUntold) => 0,
            None => return Err(WatchEnd::TooSlow),
        };
        let mut bytes = 0;
        let changes = self.changes.iter().skip(skipped as usize);
        let changes: Vec<_> = changes
            .take_while(|change| {
                let first = bytes == 0;
                bytes += change.bytes();
                first || bytes <= max_bytes
            })
            .cloned()
            .collect();
        let last = seq + changes.len() as u64;
        Ok((changes, last))
    }
}
