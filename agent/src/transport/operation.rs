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
    completion: Completion,
}

impl Operation {
    /// A read of `bytes` bytes, which `local` has room for.
    pub(in crate::transport) fn new(local: LocalSpans, bytes: u64) -> (Arc<Self>, PendingRead) {
        Self::with_cancel(local, bytes, |operation| operation)
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
        // One is left for the caller's own.
        let most = MAX_PIECES - 1;
        let mut pieces = Vec::with_capacity((rest.len() + 1).min(MAX_PIECES));
        let mut bytes = 0;
        for range in rest {
            if pieces.len() == most || bytes == limit {
                break;
            }
            let len = (range.end - range.start).min(limit - bytes);
            let piece = PieceMut::new(&self.memory, range.start, len)
                .map_err(|_| io::ErrorKind::InvalidInput)?;
            pieces.push(piece);
            bytes += len;
        }
        Ok((pieces, bytes))
    }

    /// That many bytes have been put where [`Target::pieces`] said.
    pub(in crate::transport) fn advance(&mut self, mut bytes: u64) {
        while bytes > 0
            && let Some(range) = self.ranges.get_mut(self.next)
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
        range: Range<u64>,
    ) -> Result<(), AccessError> {
        let mut left = range.end - range.start;
        let into: Vec<Range<u64>> = self.ranges[self.next..]
            .iter()
            .map_while(|range| {
                let len = left.min(range.end - range.start);
                left -= len;
                (len > 0).then(|| range.start..range.start + len)
            })
            .collect();
        let len = range.end - range.start;
        copy_ranges(from, [range], &self.memory, into)?;
        self.advance(len);
        Ok(())
    }

    /// Copies bytes out of a buffer.
    pub(in crate::transport) fn fill_bytes(&mut self, mut from: &[u8]) -> Result<(), AccessError> {
        while !from.is_empty() {
            let range = self.ranges.get(self.next);
            let range = range.ok_or(AccessError::LengthMismatch)?;
            let len = from.len().min((range.end - range.start) as usize);
            let (now, later) = from.split_at(len);
            self.memory.write_at(range.start, now)?;
            self.advance(len as u64);
            from = later;
        }
        Ok(())
    }
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
