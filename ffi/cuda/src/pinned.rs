//! Host memory that a GPU reaches by itself.
//!
//! Pinned memory is [`HostMemory`] that was registered with the driver, not memory of the driver's own: so all that
//! takes host memory takes it: sockets, RDMA registration, the transports' local spans.

use std::{fmt, ops::Range, sync::Arc};

use kvferry_memory::{HostMemory, HugePages, MemoryError};

use crate::{CallError, Context, Status, ring::Slot, sys::CU_MEMHOSTREGISTER_PORTABLE};

/// Memory cannot be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// There is no memory to pin.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// It is pinned already; one [`PinnedMemory`] is to be shared.
    #[error("the memory is pinned already: {0}")]
    AlreadyPinned(CallError),
    /// Too much: pin less, or give the container more memory.
    #[error("cannot pin {bytes} bytes of host memory: {source}")]
    OutOfMemory {
        /// As asked for.
        bytes: u64,
        /// What the driver said.
        source: CallError,
    },
    /// Anything else: memory mapped read-only, for one.
    #[error("cannot pin host memory: {0}")]
    Failed(#[from] CallError),
}

/// Host memory, pinned for all GPUs of this process until it is dropped.
pub struct PinnedMemory {
    memory: Arc<HostMemory>,
    context: Arc<Context>,
}

impl PinnedMemory {
    /// New memory, of its own. It is in shared memory, so that hugepages can back it.
    ///
    /// # Errors
    /// [`PinError`].
    pub fn allocate(
        context: &Arc<Context>,
        bytes: u64,
        hugepages: HugePages,
    ) -> Result<Arc<Self>, PinError> {
        let memory = HostMemory::pool("kvferry-staging", bytes, hugepages)?;
        Self::register(context, Arc::new(memory))
    }

    /// Memory that is there already: an agent's pool, say, so that copies go to it without staging. All of it is made
    /// resident and stays so.
    ///
    /// # Errors
    /// [`PinError`].
    pub fn register(
        context: &Arc<Context>,
        memory: Arc<HostMemory>,
    ) -> Result<Arc<Self>, PinError> {
        let (start, len) = memory.as_raw_parts();
        let _current = context.enter()?;
        // SAFETY: the range is one living mapping, which `memory` keeps until it was unregistered; no reference to its
        // bytes exists, as HostMemory promises, so the GPU may change them at any time.
        let result = unsafe {
            (context.device().library.driver.cuMemHostRegister_v2)(
                start.cast(),
                len,
                CU_MEMHOSTREGISTER_PORTABLE,
            )
        };
        context
            .check("cuMemHostRegister", result)
            .map_err(|source| match source.status {
                Status::HostMemoryAlreadyRegistered => PinError::AlreadyPinned(source),
                Status::OutOfMemory => PinError::OutOfMemory {
                    bytes: len as u64,
                    source,
                },
                _ => PinError::Failed(source),
            })?;
        Ok(Arc::new(Self {
            memory,
            context: Arc::clone(context),
        }))
    }

    /// The memory, for whoever sends from it or receives into it.
    #[must_use]
    pub fn memory(&self) -> &Arc<HostMemory> {
        &self.memory
    }

    /// A range of it to copy to or from. That nothing else uses the range meanwhile is the caller's to see to; bytes
    /// may be wrong otherwise, and memory is not.
    #[must_use]
    pub fn part(self: &Arc<Self>, range: Range<u64>) -> Option<PinnedRange> {
        (range.start < range.end && range.end <= self.memory.len()).then(|| PinnedRange {
            memory: Arc::clone(self),
            range,
            _slot: None,
        })
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else {
            return; // a lost context lets go of it when the process ends
        };
        let (start, _) = self.memory.as_raw_parts();
        // SAFETY: registered by this value, unregistered once; copies that use it held an `Arc` of it.
        let result =
            unsafe { (self.context.device().library.driver.cuMemHostUnregister)(start.cast()) };
        // Nobody is there to be told.
        let _ = self.context.check("cuMemHostUnregister", result);
    }
}

impl fmt::Debug for PinnedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedMemory")
            .field("len", &self.memory.len())
            .finish_non_exhaustive()
    }
}

/// A range of pinned memory that one copy at a time uses: one of the caller's, or a buffer of a [`Staging`](crate::Staging), to
/// which it goes back on drop.
pub struct PinnedRange {
    memory: Arc<PinnedMemory>,
    range: Range<u64>,
    _slot: Option<Slot>,
}

impl PinnedRange {
    pub(crate) fn of_slot(memory: &Arc<PinnedMemory>, range: Range<u64>, slot: Slot) -> Self {
        Self {
            memory: Arc::clone(memory),
            range,
            _slot: Some(slot),
        }
    }

    /// The host memory it is a part of.
    #[must_use]
    pub fn memory(&self) -> &Arc<HostMemory> {
        &self.memory.memory
    }

    /// Which bytes of it.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// How many bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // none is empty
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Where its first byte is, for the driver.
    pub(crate) fn start(&self) -> *mut u8 {
        let (start, _) = self.memory.memory.as_raw_parts();
        // It was within the mapping when it was made.
        start.wrapping_add(self.range.start as usize)
    }
}

impl fmt::Debug for PinnedRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PinnedRange").field(&self.range).finish()
    }
}
