//! One read under way, and who may write to its local spans.

use std::{
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use kvferry_memory::{AccessError, HostMemory, MAX_PIECES, PieceMut, copy_ranges};
use parking_lot::{Mutex, MutexGuard};

use super::{
    CancelRead, Capabilities, Completion, LocalSpans, PendingRead, ReadError, ReadRequest,
    spans::coalesce_local,
};

/// Where a read's bytes go and who waits for them. Whoever takes it out settles the read: the lock is
/// held around every write to the local spans, so from then on there is none.
pub(in crate::transport) struct Operation {
    target: Mutex<Option<Target>>,
    /// The caller gave it up and its payload is still to come.
    abandoned: AtomicBool,
    /// Payload bytes in all.
    pub(in crate::transport) bytes: u64,
}

/// The local spans that are still to be filled.
pub(in crate::transport) struct Target {
    memory: Arc<HostMemory>,
    ranges: Vec<Range<u64>>,
    next: usize,
    /// Filled when the ones above are.
    then: Option<LocalSpans>,
    completion: Completion,
}

impl Operation {
    /// A read of `bytes` bytes, which `local` has room for.
    pub(in crate::transport) fn new(local: LocalSpans, bytes: u64) -> (Arc<Self>, PendingRead) {
        Self::with_cancel(local, bytes, |operation| operation)
    }

    /// A read of `bytes` bytes, which `local` has room for and, for the last of them, `then`.
    pub(in crate::transport) fn in_order(
        local: LocalSpans,
        then: LocalSpans,
        bytes: u64,
    ) -> (Arc<Self>, PendingRead) {
        let (operation, pending) = Self::new(local, bytes);
        if let Some(target) = operation.target().as_mut() {
            target.then = Some(then);
        }
        (operation, pending)
    }

    /// As [`Operation::new`], where a cancel must do more: `cancel` is given the operation, whose own
    /// cancel it must call.
    pub(in crate::transport) fn with_cancel(
        local: LocalSpans,
        bytes: u64,
        cancel: impl FnOnce(Arc<Self>) -> Arc<dyn CancelRead>,
    ) -> (Arc<Self>, PendingRead) {
        let operation = Arc::new(Self {
            target: Mutex::new(None),
            abandoned: AtomicBool::new(false),
            bytes,
        });
        let pending = operation.arm(local, cancel(Arc::clone(&operation)));
        (operation, pending)
    }

    fn arm(&self, local: LocalSpans, cancel: Arc<dyn CancelRead>) -> PendingRead {
        let (pending, completion) = PendingRead::new(cancel);
        *self.target.lock() = Some(Target {
            memory: local.memory,
            ranges: coalesce_local(local.ranges),
            next: 0,
            then: None,
            completion,
        });
        pending
    }

    /// The right to write to the local spans, while the guard is held; None once settled.
    pub(in crate::transport) fn target(&self) -> MutexGuard<'_, Option<Target>> {
        self.target.lock()
    }

    /// Settles it, unless that has happened.
    pub(in crate::transport) fn settle(&self, result: Result<(), ReadError>) {
        let target = self.target.lock().take();
        if let Some(target) = target {
            target.completion.settle(result);
        }
    }

    pub(in crate::transport) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }
}

impl CancelRead for Operation {
    fn cancel(&self) {
        let target = self.target.lock().take();
        if let Some(target) = target {
            self.abandoned.store(true, Ordering::Relaxed);
            target.completion.settle(Err(ReadError::Cancelled));
        }
    }
}

impl Target {
    /// Pieces for up to `limit` bytes that come next, and how many bytes they hold.
    pub(in crate::transport) fn pieces(&self, limit: u64) -> io::Result<(Vec<PieceMut<'_>>, u64)> {
        let rest = &self.ranges[self.next..];
        let then = self.then.iter();
        let then = then.flat_map(|then| then.ranges.iter().map(|range| (&then.memory, range)));
        // One is left for the caller's own.
        let most = MAX_PIECES - 1;
        let mut pieces = Vec::with_capacity((rest.len() + 2).min(MAX_PIECES));
        let mut bytes = 0;
        for (memory, range) in rest.iter().map(|range| (&self.memory, range)).chain(then) {
            if pieces.len() == most || bytes == limit {
                break;
            }
            let len = (range.end - range.start).min(limit - bytes);
            let piece =
                PieceMut::new(memory, range.start, len).map_err(|_| io::ErrorKind::InvalidInput)?;
            pieces.push(piece);
            bytes += len;
        }
        Ok((pieces, bytes))
    }

    /// The range that comes next, in `memory` by then.
    fn range(&mut self) -> Option<&mut Range<u64>> {
        if self.next == self.ranges.len()
            && let Some(then) = self.then.take()
        {
            (self.memory, self.ranges, self.next) = (then.memory, then.ranges, 0);
        }
        self.ranges.get_mut(self.next)
    }

    /// That many bytes have been put where [`Target::pieces`] said.
    pub(in crate::transport) fn advance(&mut self, mut bytes: u64) {
        while bytes > 0
            && let Some(range) = self.range()
        {
            let step = bytes.min(range.end - range.start);
            range.start += step;
            bytes -= step;
            if range.is_empty() {
                self.next += 1;
            }
        }
    }

    /// Copies bytes that were received elsewhere.
    pub(in crate::transport) fn fill(
        &mut self,
        from: &HostMemory,
        mut range: Range<u64>,
    ) -> Result<(), AccessError> {
        while !range.is_empty() {
            let into = self.range().ok_or(AccessError::LengthMismatch)?;
            let len = (range.end - range.start).min(into.end - into.start);
            let into = into.start..into.start + len;
            let now = range.start..range.start + len;
            copy_ranges(from, [now], &self.memory, [into])?;
            self.advance(len);
            range.start += len;
        }
        Ok(())
    }

    /// Copies bytes out of a buffer.
    pub(in crate::transport) fn fill_bytes(&mut self, mut from: &[u8]) -> Result<(), AccessError> {
        while !from.is_empty() {
            let range = self.range().ok_or(AccessError::LengthMismatch)?;
            let at = range.start;
            let len = from.len().min((range.end - range.start) as usize);
            let (now, later) = from.split_at(len);
            self.memory.write_at(at, now)?;
            self.advance(len as u64);
            from = later;
        }
        Ok(())
    }
}

/// As [`check_request`], of data and words that are one read.
pub(in crate::transport) fn check_with_words(
    data: &ReadRequest,
    words: &ReadRequest,
    capabilities: &Capabilities,
) -> Result<u64, ReadError> {
    let bytes = check_request(data, capabilities)?;
    let left = Capabilities {
        max_spans: capabilities.max_spans.saturating_sub(data.remote.len()),
        max_bytes: capabilities.max_bytes - bytes,
        ..*capabilities
    };
    Ok(bytes + check_request(words, &left)?)
}

/// What can be known to be wrong with a request before anything is done. Gives its bytes.
pub(in crate::transport) fn check_request(
    request: &ReadRequest,
    capabilities: &Capabilities,
) -> Result<u64, ReadError> {
    let bytes = request.check(capabilities)?;
    // An empty piece is refused only where the memory cannot be written to.
    PieceMut::new(&request.local.memory, 0, 0).map_err(ReadError::Local)?;
    Ok(bytes)
}
