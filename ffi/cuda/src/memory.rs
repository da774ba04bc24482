//! Memory on a GPU: this process's own, or an engine's.

use std::{fmt, ops::Range, sync::Arc};

use kvferry_ibverbs::DeviceMemory;

use crate::{CallError, Context, Status, sys::CUdeviceptr};

/// Memory cannot be allocated.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AllocateError {
    /// Zero bytes were asked for.
    #[error("GPU memory of zero bytes")]
    Empty,
    /// More bytes than this machine can address.
    #[error("{bytes} bytes cannot be addressed on this machine")]
    TooLarge {
        /// As asked for.
        bytes: u64,
    },
    /// The GPU is full: ask for less, or make room.
    #[error("cannot allocate {bytes} bytes on the GPU: {source}")]
    OutOfMemory {
        /// As asked for.
        bytes: u64,
        /// What the driver said.
        source: CallError,
    },
    /// Anything else.
    #[error("cannot allocate GPU memory: {0}")]
    Failed(#[from] CallError),
}

/// Who gives it back, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backing {
    /// `cuMemFree`.
    Allocated,
    /// `cuIpcCloseMemHandle`.
    Imported,
}

/// A span of one allocation on a GPU. Given back on drop: own memory is freed, an engine's closed.
pub struct GpuMemory {
    context: Arc<Context>,
    backing: Backing,
    /// Where the allocation begins: what is freed or closed.
    base: CUdeviceptr,
    /// Bytes of the allocation.
    allocation_len: u64,
    /// The span's first byte within the allocation.
    offset: u64,
    /// The span's bytes.
    len: u64,
}

impl GpuMemory {
    /// Memory of this process's own.
    ///
    /// # Errors
    /// [`AllocateError`].
    pub fn allocate(context: &Arc<Context>, bytes: u64) -> Result<Arc<Self>, AllocateError> {
        let size = usize::try_from(bytes).map_err(|_| AllocateError::TooLarge { bytes })?;
        if size == 0 {
            return Err(AllocateError::Empty);
        }
        let _current = context.enter()?;
        let mut base: CUdeviceptr = 0;
        // SAFETY: the pointer is valid for the write of one device pointer.
        let result =
            unsafe { (context.device().library.driver.cuMemAlloc_v2)(&raw mut base, size) };
        context
            .check("cuMemAlloc", result)
            .map_err(|source| match source.status {
                Status::OutOfMemory => AllocateError::OutOfMemory { bytes, source },
                _ => AllocateError::Failed(source),
            })?;
        Ok(Arc::new(Self::new(
            context,
            Backing::Allocated,
            base,
            bytes,
            0..bytes,
        )))
    }

    /// Takes over an allocation; `span` is within it.
    pub(crate) fn new(
        context: &Arc<Context>,
        backing: Backing,
        base: CUdeviceptr,
        allocation_len: u64,
        span: Range<u64>,
    ) -> Self {
        Self {
            context: Arc::clone(context),
            backing,
            base,
            allocation_len,
            offset: span.start,
            len: span.end - span.start,
        }
    }

    /// Bytes there are.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // memory of zero bytes cannot be made
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The context in which it can be reached.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Is it another process's memory?
    #[must_use]
    pub fn is_imported(&self) -> bool {
        self.backing == Backing::Imported
    }

    /// The address of its first byte, as the driver and RDMA devices know it. Host code cannot follow it.
    #[must_use]
    pub fn device_address(&self) -> u64 {
        self.base + self.offset
    }

    /// Once the length of an opened allocation is known.
    pub(crate) fn with_allocation(mut self, bytes: u64) -> Self {
        self.allocation_len = bytes;
        self
    }

    pub(crate) fn base(&self) -> CUdeviceptr {
        self.base
    }

    /// Bytes of the whole allocation, and where this span begins in it.
    pub(crate) fn within(&self) -> (u64, u64) {
        (self.allocation_len, self.offset)
    }
}

// SAFETY: the device address stays mapped for the GPU until the value is dropped, and no reference to what it names is
// ever made. It is what the peer-memory module registers; without that module the kernel refuses the address.
unsafe impl DeviceMemory for GpuMemory {
    fn as_raw_parts(&self) -> (*mut u8, usize) {
        // It was a usize when it was allocated or imported.
        let len = usize::try_from(self.len).unwrap_or(usize::MAX);
        (
            std::ptr::without_provenance_mut(self.device_address() as usize),
            len,
        )
    }
}

impl Drop for GpuMemory {
    fn drop(&mut self) {
        // A context that cannot be entered is lost, and takes the memory with it when the process ends.
        let Ok(_current) = self.context.enter() else {
            return;
        };
        let driver = self.context.device().library.driver;
        let (call, result) = match self.backing {
            // SAFETY: allocated by this value, freed once; copies and registrations that use it held an `Arc` of it.
            Backing::Allocated => ("cuMemFree", unsafe { (driver.cuMemFree_v2)(self.base) }),
            // SAFETY: opened by this value, closed once; as above.
            Backing::Imported => ("cuIpcCloseMemHandle", unsafe {
                (driver.cuIpcCloseMemHandle)(self.base)
            }),
        };
        // Nobody is there to be told; a context that is lost by it is remembered.
        let _ = self.context.check(call, result);
    }
}

impl fmt::Debug for GpuMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuMemory")
            .field("device", &self.context.device().uuid())
            .field("len", &self.len)
            .field("backing", &self.backing)
            .finish_non_exhaustive()
    }
}
