//! A queue of copies that a GPU works through in order.

use std::{
    ffi::c_uint,
    fmt, ptr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::{
    CallError, Context, CopyError, GpuMemory, PendingCopy, PinnedRange, Rows, Status,
    copy::check,
    event::Event,
    lock,
    pending::{InFlight, NAP},
    sys::{
        CU_MEMORYTYPE_DEVICE, CU_MEMORYTYPE_HOST, CU_STREAM_NON_BLOCKING, CUDA_MEMCPY2D, CUstream,
    },
};

/// How long a stream that is dropped waits for copies that nobody waited for. A GPU copies a whole staging ring in
/// milliseconds; one that takes longer hangs, and what it uses is then never freed.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// A stream cannot be made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StreamError {
    /// The GPU's memory is full.
    #[error("no room for a stream on the GPU: {0}")]
    OutOfMemory(CallError),
    /// Anything else.
    #[error("cannot make a stream: {0}")]
    Failed(#[from] CallError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    FromDevice,
    ToDevice,
}

/// Copies are done in the order in which they were started; those of two streams in any.
pub struct Stream {
    raw: CUstream,
    context: Arc<Context>,
    /// Copies that were dropped before the GPU was done with them.
    abandoned: Mutex<Vec<InFlight>>,
}

// SAFETY: the driver's calls on streams may come from any thread; the pointer is only handed to the driver.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new one, which waits for no other.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn new(context: &Arc<Context>) -> Result<Arc<Self>, StreamError> {
        let _current = context.enter()?;
        let mut raw: CUstream = ptr::null_mut();
        // SAFETY: the pointer is valid for the write of one pointer.
        let result = unsafe {
            (context.device().library.driver.cuStreamCreate)(&raw mut raw, CU_STREAM_NON_BLOCKING)
        };
        context
            .check("cuStreamCreate", result)
            .map_err(|error| match error.status {
                Status::OutOfMemory => StreamError::OutOfMemory(error),
                _ => StreamError::Failed(error),
            })?;
        Ok(Arc::new(Self {
            raw,
            context: Arc::clone(context),
            abandoned: Mutex::new(Vec::new()),
        }))
    }

    /// The context it is of.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Starts copying from a GPU to host memory.
    ///
    /// # Errors
    /// [`CopyError`]. Pieces that were started before the one that failed are waited for by the stream, which
    /// owns both sides until then.
    pub fn copy_from_device(
        self: &Arc<Self>,
        gpu: &Arc<GpuMemory>,
        host: PinnedRange,
        rows: &[Rows],
    ) -> Result<PendingCopy, CopyError> {
        self.start(Direction::FromDevice, gpu, host, rows)
    }

    /// Starts copying from host memory to a GPU.
    ///
    /// # Errors
    /// As [`Stream::copy_from_device`].
    pub fn copy_to_device(
        self: &Arc<Self>,
        gpu: &Arc<GpuMemory>,
        host: PinnedRange,
        rows: &[Rows],
    ) -> Result<PendingCopy, CopyError> {
        self.start(Direction::ToDevice, gpu, host, rows)
    }

    fn start(
        self: &Arc<Self>,
        direction: Direction,
        gpu: &Arc<GpuMemory>,
        host: PinnedRange,
        rows: &[Rows],
    ) -> Result<PendingCopy, CopyError> {
        self.sweep();
        if !Arc::ptr_eq(gpu.context(), &self.context) {
            return Err(CopyError::Invalid(
                "the memory is of another context than the stream",
            ));
        }
        check(gpu, &host, rows)?;
        let _current = self.context.enter()?;
        let event = Event::new(&self.context)?;
        let first_bad = rows
            .iter()
            .find_map(|piece| self.enqueue(direction, gpu, &host, piece).err());
        // Also after a failure: what was enqueued before it is under way.
        let recorded = event.record(self.raw);
        let mut flight = InFlight::new(event, Arc::clone(gpu), host);
        if recorded.is_err() {
            flight.never_ends();
        }
        if let Some(error) = first_bad.or(recorded.err()) {
            self.abandon(flight);
            return Err(error.into());
        }
        Ok(PendingCopy::new(flight, Arc::clone(self)))
    }

    /// The context is current, and the piece was checked against both sides.
    fn enqueue(
        &self,
        direction: Direction,
        gpu: &GpuMemory,
        host: &PinnedRange,
        piece: &Rows,
    ) -> Result<(), CallError> {
        let driver = self.context.device().library.driver;
        let device = gpu.device_address() + piece.device_offset;
        // All of these are within memory that is mapped, and so fit.
        let start = host.start().wrapping_add(piece.host_offset as usize);
        let row_bytes = piece.row_bytes as usize;
        if piece.rows == 1 {
            let (call, result) = match direction {
                Direction::FromDevice => {
                    // SAFETY: the piece is within both sides, which live until the event that follows has passed; to
                    // the host's bytes no reference exists.
                    ("cuMemcpyDtoHAsync", unsafe {
                        (driver.cuMemcpyDtoHAsync_v2)(start.cast(), device, row_bytes, self.raw)
                    })
                }
                Direction::ToDevice => {
                    // SAFETY: as above.
                    ("cuMemcpyHtoDAsync", unsafe {
                        (driver.cuMemcpyHtoDAsync_v2)(
                            device,
                            start.cast_const().cast(),
                            row_bytes,
                            self.raw,
                        )
                    })
                }
            };
            return self.context.check(call, result);
        }
        let from_device = direction == Direction::FromDevice;
        let kind = |of_device: bool| -> c_uint {
            if of_device {
                CU_MEMORYTYPE_DEVICE
            } else {
                CU_MEMORYTYPE_HOST
            }
        };
        let pitch = |of_device: bool| if of_device { piece.device_stride } else { piece.host_stride } as usize;
        let copy = CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: kind(from_device),
            srcHost: if from_device {
                ptr::null()
            } else {
                start.cast_const().cast()
            },
            srcDevice: if from_device { device } else { 0 },
            srcArray: ptr::null_mut(),
            srcPitch: pitch(from_device),
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: kind(!from_device),
            dstHost: if from_device {
                start.cast()
            } else {
                ptr::null_mut()
            },
            dstDevice: if from_device { 0 } else { device },
            dstArray: ptr::null_mut(),
            dstPitch: pitch(!from_device),
            WidthInBytes: row_bytes,
            Height: piece.rows as usize,
        };
        // SAFETY: the description is read during the call; all its rows are within both sides, as above.
        let result = unsafe { (driver.cuMemcpy2DAsync_v2)(&raw const copy, self.raw) };
        self.context.check("cuMemcpy2DAsync", result)
    }

    /// Takes over a copy that nobody waits for.
    pub(crate) fn abandon(&self, flight: InFlight) {
        lock(&self.abandoned).push(flight);
    }

    /// Waits until the GPU is done with copies that were dropped.
    pub(crate) fn wait_abandoned(&self, deadline: Instant) -> Result<(), CopyError> {
        while self.sweep() > 0 {
            // One that fails would never go away.
            lock(&self.abandoned)
                .iter()
                .try_for_each(|flight| flight.is_done().map(drop))?;
            if Instant::now() >= deadline {
                return Err(CopyError::TimedOut);
            }
            std::thread::sleep(NAP);
        }
        Ok(())
    }

    /// Frees what abandoned copies are done with. Gives how many are left.
    pub(crate) fn sweep(&self) -> usize {
        let mut abandoned = lock(&self.abandoned);
        let (left, done): (Vec<_>, Vec<_>) =
            abandoned.drain(..).partition(|flight| !flight.is_over());
        *abandoned = left;
        let count = abandoned.len();
        // Freeing calls the driver: not under the lock.
        drop(abandoned);
        drop(done);
        count
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let deadline = Instant::now() + DRAIN_LIMIT;
        while self.sweep() > 0 && !self.context.is_lost() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(100));
        }
        // What is left is dropped with the list, and lost: see `InFlight`.
        let Ok(_current) = self.context.enter() else {
            return;
        };
        // SAFETY: created by this value, destroyed once. Pending copies hold an `Arc` of it.
        unsafe { (self.context.device().library.driver.cuStreamDestroy_v2)(self.raw) };
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("abandoned", &lock(&self.abandoned).len())
            .finish_non_exhaustive()
    }
}
