//! Memory that another process hands over.
//!
//! An engine calls `cuIpcGetMemHandle` (`cudaIpcGetMemHandle`) for the allocation its KV cache lies in and sends the
//! 64 bytes, where its span begins within the allocation, how long it is, and the UUID of its device. The engine must live and keep the
//! allocation until the importer has dropped it: the reference calls anything else undefined.

use std::{fmt, sync::Arc};

use crate::{
    CallError, Context, GpuMemory, Status,
    memory::Backing,
    sys::{
        CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, CUdeviceptr,
        CUipcMemHandle,
    },
};

/// Bytes of a handle (`CU_IPC_HANDLE_SIZE`).
pub const IPC_HANDLE_BYTES: usize = 64;

/// What a process sends so that another can open its memory. Whoever has it can write to that memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IpcHandle(pub [u8; IPC_HANDLE_BYTES]);

/// Not a handle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a CUDA IPC handle has {IPC_HANDLE_BYTES} bytes, not {len}")]
pub struct InvalidHandle {
    /// Bytes there were.
    pub len: usize,
}

impl TryFrom<&[u8]> for IpcHandle {
    type Error = InvalidHandle;

    fn try_from(bytes: &[u8]) -> Result<Self, InvalidHandle> {
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| InvalidHandle { len: bytes.len() })
    }
}

impl fmt::Debug for IpcHandle {
    /// Without its bytes: it is a right.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IpcHandle(..)")
    }
}

/// An engine's memory cannot be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImportError {
    /// Zero bytes, or an end that cannot be counted.
    #[error("bytes {offset}+{len} of an allocation are no range")]
    NoRange {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// The handle is void: the engine has to send a new one.
    #[error(
        "the IPC handle is void: the engine's process is gone, has freed the memory, or its memory is not of the kind that can be shared (cudaMalloc can; cudaMallocAsync, managed memory and expandable segments of PyTorch cannot): {0}"
    )]
    HandleVoid(CallError),
    /// The driver refuses the context. That is its answer to a handle of the same process.
    #[error(
        "the IPC handle cannot be opened in this context; a process cannot open its own handle, so engine and agent must be two processes: {0}"
    )]
    OwnProcess(CallError),
    /// The handle is open already, and this driver opens it once per process. Newer ones count.
    #[error(
        "the memory is open in this process already, and this driver opens it once: register one region for the whole allocation, or update the driver: {0}"
    )]
    AlreadyOpen(CallError),
    /// The two cannot share: containers.
    #[error(
        "the memory cannot be mapped: engine and agent must see the same GPUs and each other (in containers: one IPC and one PID namespace): {0}"
    )]
    CannotMap(CallError),
    /// The memory lies on a GPU that this one does not reach.
    #[error(
        "the memory is on a GPU that {device} does not reach; open it by the UUID of the engine's device: {source}"
    )]
    NoPeerAccess {
        /// Where it was to be opened.
        device: String,
        /// What the driver said.
        source: CallError,
    },
    /// The memory lies on another GPU than the engine said.
    #[error(
        "the memory is on GPU {found} of this process, not on {device}: the engine named the wrong device"
    )]
    OtherDevice {
        /// Where it was to be opened.
        device: String,
        /// Where it is: an ordinal.
        found: i32,
    },
    /// The span is not within the allocation.
    #[error("bytes {offset}+{len} are outside the allocation of {allocation} bytes")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
        /// Bytes of the allocation.
        allocation: u64,
    },
    /// Anything else.
    #[error("cannot open the engine's GPU memory: {0}")]
    Failed(#[from] CallError),
}

/// Memory cannot be handed to another process.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ExportError {
    /// It is another process's: ask that one.
    #[error("memory that was imported cannot be handed on; its owner can")]
    Imported,
    /// The driver refuses.
    #[error("cannot hand the GPU memory to other processes: {0}")]
    Failed(#[from] CallError),
}

impl GpuMemory {
    /// Opens an engine's memory: `len` bytes from `offset` on, counted from the beginning of the allocation
    /// behind the handle. `context` is one on the engine's device.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn import(
        context: &Arc<Context>,
        handle: &IpcHandle,
        offset: u64,
        len: u64,
    ) -> Result<Arc<Self>, ImportError> {
        let end = offset
            .checked_add(len)
            .filter(|_| len > 0)
            .ok_or(ImportError::NoRange { offset, len })?;
        let _current = context.enter()?;
        let driver = context.device().library.driver;
        let mut base: CUdeviceptr = 0;
        let raw = CUipcMemHandle { reserved: handle.0 };
        // SAFETY: the pointer is valid for the write of one device pointer; the driver checks the handle.
        let result = unsafe {
            (driver.cuIpcOpenMemHandle_v2)(&raw mut base, raw, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS)
        };
        context
            .check("cuIpcOpenMemHandle", result)
            .map_err(|error| refused(context, error))?;
        // From here on it is closed again, whatever happens.
        let opened = Self::new(context, Backing::Imported, base, end, offset..end);

        let (mut start, mut size): (CUdeviceptr, usize) = (0, 0);
        // SAFETY: the pointers are valid for the write of one value each.
        let result =
            unsafe { (driver.cuMemGetAddressRange_v2)(&raw mut start, &raw mut size, base) };
        context.check("cuMemGetAddressRange", result)?;
        // What lies behind the opened address.
        let allocation = (size as u64).saturating_sub(base.saturating_sub(start));
        if end > allocation {
            return Err(ImportError::OutOfRange {
                offset,
                len,
                allocation,
            });
        }
        let mut found: i32 = -1;
        // SAFETY: this attribute is an int, for which there is room.
        let result = unsafe {
            (driver.cuPointerGetAttribute)(
                (&raw mut found).cast(),
                CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
                base,
            )
        };
        context.check("cuPointerGetAttribute", result)?;
        if u32::try_from(found) != Ok(context.device().ordinal()) {
            return Err(ImportError::OtherDevice {
                device: name(context),
                found,
            });
        }
        Ok(Arc::new(opened.with_allocation(allocation)))
    }

    /// What another process needs to open this memory: a handle, and where this memory begins in what the
    /// handle opens.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn export(&self) -> Result<(IpcHandle, u64), ExportError> {
        if self.is_imported() {
            return Err(ExportError::Imported);
        }
        let context = self.context();
        let _current = context.enter()?;
        let mut raw = CUipcMemHandle {
            reserved: [0; IPC_HANDLE_BYTES],
        };
        // SAFETY: the pointer is valid for the write of one handle, and the memory is alive.
        let result = unsafe {
            (context.device().library.driver.cuIpcGetMemHandle)(&raw mut raw, self.base())
        };
        context.check("cuIpcGetMemHandle", result)?;
        let (_, offset) = self.within();
        Ok((IpcHandle(raw.reserved), offset))
    }
}

fn name(context: &Context) -> String {
    format!(
        "GPU {} ({})",
        context.device().ordinal(),
        context.device().uuid()
    )
}

fn refused(context: &Context, error: CallError) -> ImportError {
    match error.status {
        Status::InvalidHandle | Status::InvalidValue => ImportError::HandleVoid(error),
        Status::AlreadyMapped => ImportError::AlreadyOpen(error),
        Status::InvalidContext => ImportError::OwnProcess(error),
        Status::MapFailed | Status::OperatingSystem => ImportError::CannotMap(error),
        Status::PeerAccessUnsupported | Status::TooManyPeers => ImportError::NoPeerAccess {
            device: name(context),
            source: error,
        },
        _ => ImportError::Failed(error),
    }
}
