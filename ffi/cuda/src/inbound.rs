//! Into a GPU.

use std::{
    collections::VecDeque,
    fmt,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use kvferry_memory::HostMemory;

use crate::{
    CopyError, GpuMemory, PendingCopy, PinnedRange, Rows, Staging, StagingError,
    plan::{Cutter, plan_rows},
};

/// A transfer into a GPU. Take buffers ([`Inbound::next_buffer`]) until there is None, several at a time where
/// that helps, fill each and hand it in ([`Inbound::submit`]), in any order; then [`Inbound::finish`].
///
/// It has *settled*, so that nothing writes to the GPU memory any more, when [`Inbound::finish`] or [`Inbound::settle`] gave `Ok`.
/// Dropped before, copies that were started may still write, for the fraction of a millisecond they take.
#[must_use = "nothing is copied before buffers are submitted"]
pub struct Inbound {
    staging: Arc<Staging>,
    gpu: Arc<GpuMemory>,
    cutter: Cutter,
    id: u64,
    /// Bytes in buffers that were given out and not handed in.
    open: u64,
    under_way: VecDeque<PendingCopy>,
    failed: bool,
}

/// A buffer to fill. Dropped unsubmitted it is free again, and the transfer cannot be complete.
pub struct Fill {
    buffer: PinnedRange,
    len: u64,
    rows: Vec<Rows>,
    transfer: u64,
}

impl Fill {
    /// The memory it is in: what the transports' local spans take.
    #[must_use]
    pub fn memory(&self) -> &Arc<HostMemory> {
        self.buffer.memory()
    }

    /// The bytes to fill, all of them.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        let start = self.buffer.range().start;
        start..start + self.len
    }
}

impl Inbound {
    pub(crate) fn new(staging: &Arc<Staging>, gpu: &Arc<GpuMemory>, cutter: Cutter) -> Self {
        static TRANSFERS: AtomicU64 = AtomicU64::new(0);
        Self {
            staging: Arc::clone(staging),
            gpu: Arc::clone(gpu),
            cutter,
            id: TRANSFERS.fetch_add(1, Ordering::Relaxed),
            open: 0,
            under_way: VecDeque::new(),
            failed: false,
        }
    }

    /// A buffer for the next bytes, or None when all were given out. Blocks the thread until one is free.
    ///
    /// # Errors
    /// [`StagingError::NoBuffer`] where none is free until the deadline, also since the caller holds them all: may be
    /// tried again. Any other ends the transfer.
    pub fn next_buffer(&mut self, deadline: Instant) -> Result<Option<Fill>, StagingError> {
        self.usable()?;
        if self.cutter.left() == 0 {
            return Ok(None);
        }
        let under_way = &mut self.under_way;
        let buffer = match self.staging.wait_for_buffer(deadline, || reap(under_way)) {
            Err(error @ StagingError::Copy(_)) => return Err(self.fail(error)),
            other => other?,
        };
        let Some((ranges, len)) = self.cutter.next(buffer.len()) else {
            return Ok(None);
        };
        self.open += len;
        let rows = plan_rows(&ranges, self.gpu.context().device().max_pitch());
        Ok(Some(Fill {
            buffer,
            len,
            rows,
            transfer: self.id,
        }))
    }

    /// Starts copying a buffer that was filled.
    ///
    /// # Errors
    /// [`StagingError::ForeignBuffer`]; any other ends the transfer.
    pub fn submit(&mut self, fill: Fill) -> Result<(), StagingError> {
        if fill.transfer != self.id {
            return Err(StagingError::ForeignBuffer);
        }
        self.usable()?;
        match self
            .staging
            .to_device
            .copy_to_device(&self.gpu, fill.buffer, &fill.rows)
        {
            Ok(copy) => self.under_way.push_back(copy),
            Err(error) => return Err(self.fail(error.into())),
        }
        self.open -= fill.len;
        Ok(())
    }

    /// Waits until every byte is in the GPU's memory. Settles first, whatever it answers but [`StagingError::Copy`].
    ///
    /// # Errors
    /// [`StagingError::Incomplete`], [`StagingError::Ended`] or [`StagingError::Copy`].
    pub fn finish(mut self, deadline: Instant) -> Result<(), StagingError> {
        let missing = self.cutter.left() + self.open;
        let failed = self.failed;
        self.settle(deadline)?;
        if failed {
            return Err(StagingError::Ended);
        }
        if missing > 0 {
            return Err(StagingError::Incomplete { bytes: missing });
        }
        Ok(())
    }

    /// Gives the transfer up where it is not complete, and waits until nothing writes to the GPU memory any more.
    ///
    /// # Errors
    /// [`CopyError::TimedOut`]: something may still write; call it again. Any other: the GPU does not say.
    pub fn settle(&mut self, deadline: Instant) -> Result<(), CopyError> {
        self.failed = true;
        while let Some(oldest) = self.under_way.front() {
            if oldest.is_done()? {
                self.under_way.pop_front();
            } else if Instant::now() >= deadline {
                return Err(CopyError::TimedOut);
            } else {
                std::thread::sleep(crate::pending::NAP);
            }
        }
        // Those of a submit that failed half-way went to the stream.
        self.staging.to_device.wait_abandoned(deadline)
    }

    fn usable(&self) -> Result<(), StagingError> {
        if self.failed {
            Err(StagingError::Ended)
        } else {
            Ok(())
        }
    }

    fn fail(&mut self, error: StagingError) -> StagingError {
        self.failed = true;
        error
    }
}

/// Gives back the buffers of copies that are done.
fn reap(under_way: &mut VecDeque<PendingCopy>) -> Result<(), CopyError> {
    while let Some(oldest) = under_way.front() {
        if !oldest.is_done()? {
            break;
        }
        under_way.pop_front();
    }
    Ok(())
}

impl fmt::Debug for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbound")
            .field("left", &self.cutter.left())
            .field("open", &self.open)
            .field("under_way", &self.under_way.len())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fill").field(&self.range()).finish()
    }
}
