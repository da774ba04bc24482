//! Out of a GPU.

use std::{collections::VecDeque, fmt, ops::Range, sync::Arc, task::Poll, time::Instant};

use kvferry_memory::HostMemory;

use crate::{
    GpuMemory, PendingCopy, PinnedRange, Staging, StagingError,
    plan::{Cutter, plan_rows},
};

/// A transfer out of a GPU. Call [`Outbound::next`] until it gives None, and do with each chunk what is to be done;
/// the copies of the following ones go on meanwhile. After an error it gives nothing more.
#[must_use = "nothing is copied before next is called"]
pub struct Outbound {
    staging: Arc<Staging>,
    gpu: Arc<GpuMemory>,
    cutter: Cutter,
    /// In order, with the bytes of each.
    under_way: VecDeque<(PendingCopy, u64)>,
    failed: bool,
}

/// Bytes that arrived in host memory. The buffer is free again when this is dropped.
pub struct Chunk {
    buffer: PinnedRange,
    len: u64,
}

impl Chunk {
    /// The memory the bytes are in.
    #[must_use]
    pub fn memory(&self) -> &Arc<HostMemory> {
        self.buffer.memory()
    }

    /// Where in it they are.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        let start = self.buffer.range().start;
        start..start + self.len
    }
}

impl Outbound {
    pub(crate) fn new(staging: &Arc<Staging>, gpu: &Arc<GpuMemory>, cutter: Cutter) -> Self {
        Self {
            staging: Arc::clone(staging),
            gpu: Arc::clone(gpu),
            cutter,
            under_way: VecDeque::new(),
            failed: false,
        }
    }

    /// The next bytes, or None at the end. Blocks the thread until they have arrived.
    ///
    /// # Errors
    /// [`StagingError::NoBuffer`] where others hold all buffers until the deadline: may be tried again. Any other ends
    /// the transfer.
    pub fn next(&mut self, deadline: Instant) -> Result<Option<Chunk>, StagingError> {
        if self.failed {
            return Err(StagingError::Ended);
        }
        let result = self.advance(deadline);
        self.failed =
            matches!(&result, Err(error) if !matches!(error, StagingError::NoBuffer { .. }));
        result
    }

    /// As [`Outbound::next`], without waiting: `Pending` where the copy is not done, or no buffer is free. Nobody is
    /// woken then; ask again.
    ///
    /// # Errors
    /// As [`Outbound::next`], but never [`StagingError::NoBuffer`].
    pub fn poll_next(&mut self) -> Result<Poll<Option<Chunk>>, StagingError> {
        if self.failed {
            return Err(StagingError::Ended);
        }
        let result = self.poll_advance();
        self.failed = result.is_err();
        result
    }

    /// Bytes that [`Outbound::next`] has still to give.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.cutter.left() + self.under_way.iter().map(|(_, len)| len).sum::<u64>()
    }

    fn advance(&mut self, deadline: Instant) -> Result<Option<Chunk>, StagingError> {
        if self.under_way.is_empty() && self.cutter.left() > 0 {
            // None of its own to wait for: one must be had.
            let buffer = self.staging.wait_for_buffer(deadline, || Ok(()))?;
            self.start(buffer)?;
        }
        self.run_ahead()?;
        let Some((oldest, len)) = self.under_way.pop_front() else {
            return Ok(None);
        };
        let buffer = oldest.wait(deadline)?;
        Ok(Some(Chunk { buffer, len }))
    }

    fn poll_advance(&mut self) -> Result<Poll<Option<Chunk>>, StagingError> {
        self.run_ahead()?;
        let Some((oldest, _)) = self.under_way.front() else {
            return Ok(match self.cutter.left() {
                0 => Poll::Ready(None),
                _ => Poll::Pending,
            });
        };
        if !oldest.is_done()? {
            return Ok(Poll::Pending);
        }
        let Some((oldest, len)) = self.under_way.pop_front() else {
            return Ok(Poll::Pending);
        };
        // It is done, so this does not wait.
        let buffer = oldest.wait(Instant::now())?;
        Ok(Poll::Ready(Some(Chunk { buffer, len })))
    }

    /// Starts as many copies as may be ahead of the consumer and have a buffer.
    fn run_ahead(&mut self) -> Result<(), StagingError> {
        while self.cutter.left() > 0 && self.under_way.len() < self.staging.options().ahead as usize
        {
            let Some(buffer) = self.staging.take() else {
                break;
            };
            self.start(buffer)?;
        }
        Ok(())
    }

    fn start(&mut self, buffer: PinnedRange) -> Result<(), StagingError> {
        let Some((ranges, len)) = self.cutter.next(buffer.len()) else {
            return Ok(());
        };
        let rows = plan_rows(&ranges, self.gpu.context().device().max_pitch());
        let copy = self
            .staging
            .from_device
            .copy_from_device(&self.gpu, buffer, &rows)?;
        self.under_way.push_back((copy, len));
        Ok(())
    }
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound")
            .field("left", &self.left())
            .field("under_way", &self.under_way.len())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Chunk").field(&self.range()).finish()
    }
}
