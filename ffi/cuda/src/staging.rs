//! A way for GPU memory through host memory: for sockets and shared memory, and for RDMA without GPUDirect.
//!
//! ```text
//!             copies, ahead of the consumer              transfers
//!   GPU  ------------------------------------> ring ------------------> peer     Outbound
//!   GPU  <------------------------------------ ring <------------------ peer     Inbound
//!             copies, behind the producer                transfers
//! ```

use std::{
    fmt,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use kvferry_memory::{HostMemory, HugePages};

use crate::{
    Context, CopyError, GpuMemory, Inbound, Outbound, PinError, PinnedMemory, PinnedRange, Stream,
    StreamError,
    plan::{Cutter, MAX_RANGES},
    ring::Ring,
};

/// Most buffers of a ring: more hide nothing that these do not hide, and pinned memory is taken from everybody.
pub const MAX_BUFFERS: u32 = 256;
/// Smallest buffer: below a page the start of a copy takes longer than the copy.
pub const MIN_BUFFER_BYTES: u64 = 4 << 10;
/// Largest buffer: a copy of this size takes a hundredth of a second, and nothing can be sent before it ends.
pub const MAX_BUFFER_BYTES: u64 = 256 << 20;

/// How long a wait for a buffer sleeps at most before it looks whether abandoned copies are done: they wake nobody.
const LOOK: Duration = Duration::from_micros(200);

/// How a ring is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StagingOptions {
    /// How many buffers; from 2 to [`MAX_BUFFERS`].
    pub buffers: u32,
    /// How large each is; from [`MIN_BUFFER_BYTES`] to [`MAX_BUFFER_BYTES`], in whole pages.
    pub buffer_bytes: u64,
    /// How many buffers one transfer takes ahead of its consumer; at least 1. Fewer than all, so that others get some.
    pub ahead: u32,
    /// What backs it.
    pub hugepages: HugePages,
}

impl Default for StagingOptions {
    /// 8 buffers of 4 MiB: at PCIe's 25 GB/s a buffer takes 160 us, twenty times what starting a copy
    /// takes; 8 of them last longer than a busy consumer stays away.
    fn default() -> Self {
        Self {
            buffers: 8,
            buffer_bytes: 4 << 20,
            ahead: 3,
            hugepages: HugePages::Off,
        }
    }
}

/// Staging cannot be had, or a transfer ended.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// Options outside their bounds.
    #[error("not a valid staging ring: {0}")]
    Options(&'static str),
    /// The ring's memory.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The ring's streams.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// Ranges that are too many, nothing, or not within the memory.
    #[error(
        "not a valid transfer: {count} ranges of GPU memory of {memory} bytes; they must be within it, not empty, and {MAX_RANGES} at most"
    )]
    Ranges {
        /// How many there were.
        count: usize,
        /// Bytes there are.
        memory: u64,
    },
    /// No buffer was free in time: others hold them. Try again, or make the ring larger.
    #[error("no staging buffer was free in time: all {buffers} are in use")]
    NoBuffer {
        /// How many there are.
        buffers: u32,
    },
    /// A copy failed, and the transfer with it.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The transfer failed before.
    #[error("the transfer failed before")]
    Ended,
    /// A buffer of another transfer.
    #[error("the buffer is another transfer's")]
    ForeignBuffer,
    /// Not all bytes were handed over.
    #[error("{bytes} bytes of the transfer were never filled in")]
    Incomplete {
        /// How many.
        bytes: u64,
    },
}

/// A ring of pinned buffers of one GPU, and a stream each way. Shared by all transfers.
pub struct Staging {
    context: Arc<Context>,
    memory: Arc<PinnedMemory>,
    ring: Arc<Ring>,
    options: StagingOptions,
    pub(crate) from_device: Arc<Stream>,
    pub(crate) to_device: Arc<Stream>,
}

impl Staging {
    /// Pins the buffers.
    ///
    /// # Errors
    /// [`StagingError::Options`], [`StagingError::Pin`] or [`StagingError::Stream`].
    pub fn new(context: &Arc<Context>, options: StagingOptions) -> Result<Arc<Self>, StagingError> {
        let page = rustix::param::page_size() as u64;
        let why = if !(2..=MAX_BUFFERS).contains(&options.buffers) {
            "2 to 256 buffers"
        } else if !(MIN_BUFFER_BYTES..=MAX_BUFFER_BYTES).contains(&options.buffer_bytes) {
            "a buffer has 4 KiB to 256 MiB"
        } else if !options.buffer_bytes.is_multiple_of(page) {
            "a buffer has whole pages"
        } else if !(1..=options.buffers).contains(&options.ahead) {
            "a transfer takes one buffer ahead or more, and no more than there are"
        } else {
            ""
        };
        if !why.is_empty() {
            return Err(StagingError::Options(why));
        }
        let bytes = u64::from(options.buffers) * options.buffer_bytes;
        Ok(Arc::new(Self {
            context: Arc::clone(context),
            memory: PinnedMemory::allocate(context, bytes, options.hugepages)?,
            ring: Ring::new(options.buffers),
            options,
            from_device: Stream::new(context)?,
            to_device: Stream::new(context)?,
        }))
    }

    /// The context it copies in; transfers are of memory of this one.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// All its buffers: to be registered once with an RDMA device.
    #[must_use]
    pub fn memory(&self) -> &Arc<HostMemory> {
        self.memory.memory()
    }

    /// How it was made.
    #[must_use]
    pub fn options(&self) -> &StagingOptions {
        &self.options
    }

    /// Buffers that are free now.
    #[must_use]
    pub fn free_buffers(&self) -> usize {
        self.sweep();
        self.ring.free()
    }

    /// Copies ranges of GPU memory out, in order, without gaps between them.
    ///
    /// # Errors
    /// [`StagingError::Ranges`], or [`StagingError::Copy`] where the GPU was lost before.
    pub fn read(
        self: &Arc<Self>,
        gpu: &Arc<GpuMemory>,
        ranges: Vec<Range<u64>>,
    ) -> Result<Outbound, StagingError> {
        Ok(Outbound::new(self, gpu, self.cutter(gpu, ranges)?))
    }

    /// Copies into ranges of GPU memory, in order, what comes without gaps.
    ///
    /// # Errors
    /// As [`Staging::read`].
    pub fn write(
        self: &Arc<Self>,
        gpu: &Arc<GpuMemory>,
        ranges: Vec<Range<u64>>,
    ) -> Result<Inbound, StagingError> {
        Ok(Inbound::new(self, gpu, self.cutter(gpu, ranges)?))
    }

    fn cutter(&self, gpu: &GpuMemory, ranges: Vec<Range<u64>>) -> Result<Cutter, StagingError> {
        if !Arc::ptr_eq(gpu.context(), &self.context) {
            return Err(
                CopyError::Invalid("the memory is of another context than the staging").into(),
            );
        }
        if let Some(error) = self.context.lost_by() {
            return Err(CopyError::GpuLost(error.clone()).into());
        }
        let count = ranges.len();
        Cutter::new(ranges, gpu.len()).ok_or(StagingError::Ranges {
            count,
            memory: gpu.len(),
        })
    }

    /// A free buffer, where there is one now.
    pub(crate) fn take(&self) -> Option<PinnedRange> {
        let slot = self.ring.take().or_else(|| {
            self.sweep();
            self.ring.take()
        })?;
        let start = u64::from(slot.number) * self.options.buffer_bytes;
        Some(PinnedRange::of_slot(
            &self.memory,
            start..start + self.options.buffer_bytes,
            slot,
        ))
    }

    /// A buffer, as soon as one is free. `settle` gives back what the caller's own copies are done with, before each look.
    pub(crate) fn wait_for_buffer(
        &self,
        deadline: Instant,
        mut settle: impl FnMut() -> Result<(), CopyError>,
    ) -> Result<PinnedRange, StagingError> {
        loop {
            settle()?;
            if let Some(buffer) = self.take() {
                return Ok(buffer);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(StagingError::NoBuffer {
                    buffers: self.options.buffers,
                });
            }
            self.ring.wait(LOOK.min(left));
        }
    }

    /// Lets go of what dropped copies hold that are done by now: nothing else does before the next copy.
    pub fn sweep(&self) {
        self.from_device.sweep();
        self.to_device.sweep();
    }
}

impl fmt::Debug for Staging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staging")
            .field("options", &self.options)
            .field("free", &self.ring.free())
            .finish_non_exhaustive()
    }
}
