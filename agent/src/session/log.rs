//! The numbered history of what this agent holds, as far back as its bound reaches.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::Delta;
use crate::{
    region::{Change, ChangeSink},
    sabotage::{self, Bug},
};

/// Most things one delta says: about 200 KB of message, applied in well under a millisecond.
const MAX_DELTA_LEN: usize = 4096;
/// Most regions one delta adds or removes: with 1,024 planes each, well within a message.
const MAX_DELTA_REGIONS: usize = 64;
/// Deltas kept for coordinators that come back: with full deltas over a million slots, which is
/// about where a full inventory is cheaper than the history.
const MAX_DELTAS: usize = 256;

/// What a reader of the log finds at its position.
#[derive(Debug, Clone)]
pub enum LogEntry {
    /// The delta of that number.
    Delta(Arc<Delta>),
    /// Nothing yet.
    UpToDate,
    /// That far back the log does not reach: send an inventory.
    Forgotten,
}

/// What lies in the batch that is still being filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// Nothing.
    Nothing,
    /// Changes that nobody waits for: more of the same may be told with them.
    Changes,
    /// Changes that others should hear of soon.
    News,
}

/// Every change, batched and numbered from 1, in the order of truth. Shared by all sessions.
#[derive(Debug)]
pub struct ChangeLog {
    inner: Mutex<Inner>,
    /// Wakes sessions; the value is of no meaning.
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    /// Number of `closed[0]`.
    first: u64,
    closed: VecDeque<Arc<Delta>>,
    /// Grows until somebody reads it; then it is closed, so that all readers get the same batches.
    open: Delta,
    /// It is to be told soon.
    urgent: bool,
}

impl Inner {
    /// Number the open batch will have.
    fn next(&self) -> u64 {
        self.first + self.closed.len() as u64
    }

    /// Ends the open batch; false where there is nothing in it.
    fn close(&mut self) -> bool {
        if self.open.is_empty() {
            return false;
        }
        self.urgent = false;
        let mut closed = std::mem::take(&mut self.open);
        closed.shrink();
        self.closed.push_back(Arc::new(closed));
        if self.closed.len() > MAX_DELTAS && !sabotage::is(Bug::LogUnbounded) {
            self.closed.pop_front();
            self.first += 1;
        }
        true
    }
}

impl Default for ChangeLog {
    fn default() -> Self {
        Self::new()
    }
}

impl ChangeLog {
    /// An empty log; the first delta will be number 1.
    #[must_use]
    pub fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                first: 1,
                closed: VecDeque::new(),
                open: Delta::default(),
                urgent: false,
            }),
            changed: watch::Sender::new(0),
        }
    }

    /// The delta of that number. Closes the open batch where it is the one asked for.
    #[must_use]
    pub fn read(&self, seq: u64) -> LogEntry {
        let mut inner = self.inner.lock();
        if seq == inner.next() {
            inner.close();
        }
        if seq < inner.first {
            return LogEntry::Forgotten;
        }
        match inner.closed.get((seq - inner.first) as usize) {
            Some(delta) => LogEntry::Delta(Arc::clone(delta)),
            None => LogEntry::UpToDate,
        }
    }

    /// The oldest delta there is, and the number the next new one will have.
    #[must_use]
    pub fn bounds(&self) -> (u64, u64) {
        let inner = self.inner.lock();
        (inner.first, inner.next())
    }

    /// Is there something in the open batch?
    #[must_use]
    pub fn has_open(&self) -> bool {
        self.open() != Open::Nothing
    }

    /// What is in the open batch.
    #[must_use]
    pub fn open(&self) -> Open {
        self.filling().1
    }

    /// The number that the open batch will have, and what is in it. Asked for apart they may be of two batches: another session
    /// reads one, and so closes it, without a word.
    #[must_use]
    pub fn filling(&self) -> (u64, Open) {
        let inner = self.inner.lock();
        let open = match (inner.open.is_empty(), inner.urgent) {
            (true, _) => Open::Nothing,
            (false, false) => Open::Changes,
            (false, true) => Open::News,
        };
        (inner.next(), open)
    }

    /// The number of the delta that has, or will have, the last thing that was recorded.
    #[must_use]
    pub fn last(&self) -> u64 {
        match self.filling() {
            (filling, Open::Nothing) => filling - 1,
            (filling, _) => filling,
        }
    }

    /// What was recorded is to be told soon: a pull has ended, say.
    pub fn hurry(&self) {
        let mut inner = self.inner.lock();
        let news = !inner.open.is_empty() && !std::mem::replace(&mut inner.urgent, true);
        drop(inner);
        if news {
            self.wake();
        }
    }

    /// The number of the last delta that has everything recorded so far, which is told at once. Called under the store's
    /// lock it says which deltas an inventory contains.
    pub fn seal_position(&self) -> u64 {
        let mut inner = self.inner.lock();
        let closed = inner.close();
        let position = inner.next() - 1;
        drop(inner);
        if closed {
            self.wake();
        }
        position
    }

    fn wake(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Wakes when a batch was begun, when it has become urgent, and when it is complete.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl ChangeSink for ChangeLog {
    fn record(&self, change: Change) {
        let mut inner = self.inner.lock();
        let begins = inner.open.is_empty();
        // Nothing is found in a region that is not known, and everything in one that is gone is lost.
        let region = matches!(change, Change::RegionAdded(_) | Change::RegionRemoved(_));
        // What was urgent may have been undone within its batch.
        let was = inner.urgent && !begins;
        inner.urgent = was || region;
        let hurries = region && !was;
        inner.open.fold(change);
        let full = inner.open.len() >= MAX_DELTA_LEN || inner.open.regions() >= MAX_DELTA_REGIONS;
        let closed = full && inner.close();
        drop(inner);
        // Once per batch: a session that was woken finds everything that is recorded until it reads.
        if begins || hurries || closed {
            self.wake();
        }
    }
}
