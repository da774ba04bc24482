//! Memory of a GPU, and the ways in and out of it.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use kvferry_cuda::{Context, CopyError, Outbound, Staging, StagingError, StagingOptions};
use kvferry_memory::{AccessError, HostMemory, HugePages, copy_ranges};
use kvferry_observe::{ByLabel, Counter};

use super::{GpuError, GpuReads, Ticker};

kvferry_observe::label! {
    /// Which way bytes are staged.
    pub enum StagedWay("ring") {
        /// To readers.
        Serve = "serve",
        /// Into the GPU.
        Land = "land",
    }
}

/// Bytes that were staged, over all GPUs.
pub type StagedBytes = ByLabel<StagedWay, Counter>;

/// Buffers of the rings for readers and for reads: a megabyte is 40 us over PCIe, several times what starting its
/// copy takes, and this many let as many small reads wait for their owners at once.
const RING_BUFFERS: u32 = 32;
/// Bytes of each.
const RING_BUFFER_BYTES: u64 = 1 << 20;
/// Buffers one transfer takes ahead: one is sent while the next are copied.
const RING_AHEAD: u32 = 4;
/// Buffers of the ring for copies within the agent, which never wait for a peer.
const LOCAL_BUFFERS: u32 = 4;
/// Copies ahead in it: one is looked at while the next is copied.
const LOCAL_AHEAD: u32 = 2;
/// Longest that a copy within the agent may wait for its GPU: a thousand times what a block takes. A GPU that takes
/// longer hangs.
const LOCAL_BOUND: Duration = Duration::from_secs(5);

/// A GPU that is open, with its rings.
#[derive(Debug)]
pub struct Gpu {
    context: Arc<Context>,
    serve: Arc<Staging>,
    land: Arc<Staging>,
    local: Arc<Staging>,
    ticker: Ticker,
    reads: Arc<GpuReads>,
    staged: Arc<StagedBytes>,
}

impl Gpu {
    /// Pins the rings: 68 MiB of host memory.
    ///
    /// # Errors
    /// [`GpuError::Staging`] or [`GpuError::Thread`].
    pub fn new(context: &Arc<Context>) -> Result<Arc<Self>, GpuError> {
        Self::counted(context, &Arc::default(), Arc::default())
    }

    /// As [`Gpu::new`], with counters that others share.
    ///
    /// # Errors
    /// As [`Gpu::new`].
    pub fn counted(
        context: &Arc<Context>,
        reads: &Arc<GpuReads>,
        staged: Arc<StagedBytes>,
    ) -> Result<Arc<Self>, GpuError> {
        let ring = |buffers, ahead| {
            let options = StagingOptions {
                buffers,
                buffer_bytes: RING_BUFFER_BYTES,
                ahead,
                hugepages: HugePages::Off,
            };
            Staging::new(context, options)
        };
        Ok(Arc::new(Self {
            serve: ring(RING_BUFFERS, RING_AHEAD)?,
            land: ring(RING_BUFFERS, RING_AHEAD)?,
            local: ring(LOCAL_BUFFERS, LOCAL_AHEAD)?,
            context: Arc::clone(context),
            ticker: Ticker::new().map_err(GpuError::Thread)?,
            reads: Arc::clone(reads),
            staged,
        }))
    }

    /// What copies are done in.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Lets go of what copies hold that are done and that nobody waited for.
    pub fn sweep(&self) {
        for ring in [&self.serve, &self.land, &self.local] {
            ring.sweep();
        }
    }

    /// For what readers ask for.
    #[must_use]
    pub fn serve(&self) -> &Arc<Staging> {
        &self.serve
    }

    /// For what reads bring.
    #[must_use]
    pub fn land(&self) -> &Arc<Staging> {
        &self.land
    }

    /// How reads get into it.
    #[must_use]
    pub fn reads(&self) -> &Arc<GpuReads> {
        &self.reads
    }

    /// So many bytes were staged.
    pub(crate) fn count(&self, way: StagedWay, bytes: u64) {
        self.staged.of(way).add(bytes);
    }

    /// For waiting on copies.
    #[must_use]
    pub fn ticker(&self) -> &Ticker {
        &self.ticker
    }
}

/// Memory of a GPU, an engine's or the agent's own. Closed when the last that uses it is done.
#[derive(Debug)]
pub struct GpuMemory {
    // Before the rings, so that nothing of the GPU outlives its context.
    memory: Arc<kvferry_cuda::GpuMemory>,
    gpu: Arc<Gpu>,
}

impl GpuMemory {
    /// Memory of this GPU.
    #[must_use]
    pub fn new(gpu: &Arc<Gpu>, memory: Arc<kvferry_cuda::GpuMemory>) -> Arc<Self> {
        Arc::new(Self {
            memory,
            gpu: Arc::clone(gpu),
        })
    }

    /// The memory itself, to be registered with RDMA devices.
    #[must_use]
    pub fn device_memory(&self) -> &Arc<kvferry_cuda::GpuMemory> {
        &self.memory
    }

    /// Its GPU.
    #[must_use]
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Bytes there are.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // memory of zero bytes cannot be made
    pub fn len(&self) -> u64 {
        self.memory.len()
    }

    /// Shows the bytes of `ranges`, in order and in pieces of host memory. Waits for the GPU: for threads that may
    /// block.
    ///
    /// # Errors
    /// [`StagingError`], and what `look` answers.
    pub fn read<E: From<StagingError>>(
        &self,
        ranges: Vec<Range<u64>>,
        mut look: impl FnMut(&HostMemory, Range<u64>) -> Result<(), E>,
    ) -> Result<(), E> {
        if ranges.iter().all(Range::is_empty) {
            return Ok(());
        }
        let mut outbound: Outbound = self.gpu.local.read(&self.memory, ranges)?;
        while let Some(chunk) = outbound.next(Instant::now() + LOCAL_BOUND)? {
            look(chunk.memory(), chunk.range())?;
        }
        Ok(())
    }

    /// Writes `ranges`, in order, with what `fill` puts into pieces of host memory. When it returns nothing writes to
    /// the GPU's memory any more, unless it says [`NotSettled`]. Waits for the GPU: for threads that may block.
    ///
    /// # Errors
    /// [`StagingError`], [`NotSettled`], and what `fill` answers.
    pub fn write<E: From<StagingError> + From<NotSettled>>(
        &self,
        ranges: Vec<Range<u64>>,
        mut fill: impl FnMut(&HostMemory, Range<u64>) -> Result<(), E>,
    ) -> Result<(), E> {
        if ranges.iter().all(Range::is_empty) {
            return Ok(());
        }
        let mut inbound = self.gpu.land.write(&self.memory, ranges)?;
        let filled = (|| {
            while let Some(buffer) = inbound.next_buffer(Instant::now() + LOCAL_BOUND)? {
                let range = buffer.range();
                let bytes = range.end - range.start;
                fill(buffer.memory(), range)?;
                inbound.submit(buffer)?;
                self.gpu.count(StagedWay::Land, bytes);
            }
            Ok(())
        })();
        let deadline = Instant::now() + LOCAL_BOUND;
        match filled {
            Ok(()) => Ok(inbound.finish(deadline).map_err(|error| match error {
                StagingError::Copy(error) => NotSettled(error).into(),
                other => E::from(other),
            })?),
            Err(error) => {
                inbound.settle(deadline).map_err(NotSettled)?;
                Err(error)
            }
        }
    }

    /// Copies host memory in.
    ///
    /// # Errors
    /// As [`GpuMemory::write`].
    pub(crate) fn fill_from<E: From<StagingError> + From<NotSettled> + From<AccessError>>(
        &self,
        ranges: Vec<Range<u64>>,
        from: &HostMemory,
        from_ranges: Vec<Range<u64>>,
    ) -> Result<(), E> {
        let mut source = Cursor::new(from_ranges);
        self.write(ranges, |memory, range| {
            let part = source.take(range.end - range.start);
            Ok(copy_ranges(from, part, memory, std::iter::once(range))?)
        })
    }
}

/// Copies into a GPU were started, and it does not say that it is done with them: its memory must not be used for
/// anything else.
#[derive(Debug, thiserror::Error)]
#[error("the GPU does not say whether it is done with copies into its memory: {0}")]
pub struct NotSettled(pub CopyError);

/// Ranges, taken off the front by length.
#[derive(Debug)]
pub(crate) struct Cursor {
    ranges: std::vec::IntoIter<Range<u64>>,
    current: Range<u64>,
}

impl Cursor {
    pub(crate) fn new(ranges: Vec<Range<u64>>) -> Self {
        Self {
            ranges: ranges.into_iter(),
            current: 0..0,
        }
    }

    /// The next `bytes` bytes; fewer where there are no more.
    pub(crate) fn take(&mut self, mut bytes: u64) -> Vec<Range<u64>> {
        let mut taken = Vec::new();
        while bytes > 0 {
            if self.current.is_empty() {
                match self.ranges.next() {
                    Some(next) => self.current = next,
                    None => break,
                }
                continue;
            }
            let step = bytes.min(self.current.end - self.current.start);
            taken.push(self.current.start..self.current.start + step);
            self.current.start += step;
            bytes -= step;
        }
        taken
    }
}
