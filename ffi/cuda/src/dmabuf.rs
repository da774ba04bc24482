//! Descriptors by which an RDMA device reaches GPU memory.

use std::{
    ffi::c_int,
    ops::Range,
    os::fd::{FromRawFd, OwnedFd},
};

use crate::{
    CallError, GpuMemory, Status, peer_memory_loaded,
    sys::{CU_MEM_RANGE_FLAG_DMA_BUF_MAPPING_TYPE_PCIE, CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD},
};

/// A descriptor, and where the asked-for range lies behind it. `fd`, `offset`, `len` and `address` are what
/// `kvferry_ibverbs::DmaBuf` is to be given, with the [`GpuMemory`] as owner.
#[derive(Debug)]
pub struct DmaBufExport {
    /// The descriptor; it keeps the memory's pages, not the mapping.
    pub fd: OwnedFd,
    /// First byte of the range behind the descriptor: exports begin on a page.
    pub offset: u64,
    /// Bytes of the range.
    pub len: u64,
    /// The device address of the range's first byte.
    pub address: u64,
}

/// Memory cannot be exported. The caller registers it by its address where [`peer_memory_loaded`], else stages
/// it through host memory.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DmaBufError {
    /// The range is empty or not within the memory.
    #[error("bytes {start}..{end} are no range of GPU memory of {memory} bytes")]
    OutOfRange {
        /// First byte.
        start: u64,
        /// One past the last.
        end: u64,
        /// Bytes there are.
        memory: u64,
    },
    /// libcuda has no such function.
    #[error(
        "this libcuda cannot export dma-bufs: it needs CUDA 11.7 (driver 515) or later{}",
        instead()
    )]
    OldDriver,
    /// The device does not do it.
    #[error(
        "GPU {device} does not export dma-bufs: that needs NVIDIA's open kernel modules and Linux 5.12 or later{}",
        instead()
    )]
    Unsupported {
        /// Which.
        device: String,
    },
    /// The driver does it, and not for this memory.
    #[error("the driver exports no dma-buf for this memory{}: {source}", kind(*imported))]
    Refused {
        /// Is it another process's memory?
        imported: bool,
        /// What the driver said.
        source: CallError,
    },
    /// Anything else.
    #[error("cannot export a dma-buf: {0}")]
    Failed(#[from] CallError),
}

fn instead() -> &'static str {
    if peer_memory_loaded() {
        "; the peer-memory module is loaded and serves instead"
    } else {
        "; the nvidia_peermem module would serve instead (modprobe nvidia_peermem)"
    }
}

fn kind(imported: bool) -> &'static str {
    if imported {
        " (it is an engine's; the engine can export it itself and hand over the descriptor)"
    } else {
        ""
    }
}

impl GpuMemory {
    /// Exports a range of it. Exports cover whole pages of the host, so bytes before and after the range may be
    /// behind the descriptor too; register `offset` and `len` only.
    ///
    /// # Errors
    /// [`DmaBufError`] says what is lacking.
    pub fn export_dmabuf(&self, range: Range<u64>) -> Result<DmaBufExport, DmaBufError> {
        let (start, end) = (range.start, range.end);
        if start >= end || end > self.len() {
            return Err(DmaBufError::OutOfRange {
                start,
                end,
                memory: self.len(),
            });
        }
        let context = self.context();
        let Some(export) = context
            .device()
            .library
            .driver
            .cuMemGetHandleForAddressRange
        else {
            return Err(DmaBufError::OldDriver);
        };
        if !context.device().tells_dmabuf() {
            return Err(DmaBufError::Unsupported {
                device: context.device().uuid().to_string(),
            });
        }
        let page = rustix::param::page_size() as u64;
        let address = self.device_address() + start;
        let first = address / page * page;
        let last = (self.device_address() + end).next_multiple_of(page);
        let size = usize::try_from(last - first).map_err(|_| DmaBufError::OutOfRange {
            start,
            end,
            memory: self.len(),
        })?;
        let _current = context.enter()?;
        let mut fd: c_int = -1;
        let mut attempt = |flags| {
            // SAFETY: for this type of handle the driver writes one int; the range is of living memory.
            let result = unsafe {
                export(
                    (&raw mut fd).cast(),
                    first,
                    size,
                    CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD,
                    flags,
                )
            };
            context.check("cuMemGetHandleForAddressRange", result)
        };
        // Where GPU and CPU share a coherent link (Grace), the default mapping is one that network cards do not reach. Elsewhere, and on
        // older drivers, the flag is refused.
        attempt(CU_MEM_RANGE_FLAG_DMA_BUF_MAPPING_TYPE_PCIE)
            .or_else(|error| match error.status {
                Status::NotSupported | Status::InvalidValue => attempt(0),
                _ => Err(error),
            })
            .map_err(|source| match source.status {
                Status::NotSupported | Status::InvalidValue | Status::NotPermitted => {
                    DmaBufError::Refused {
                        imported: self.is_imported(),
                        source,
                    }
                }
                _ => DmaBufError::Failed(source),
            })?;
        // SAFETY: the driver just opened it for this caller, who closes it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(DmaBufExport {
            fd,
            offset: address - first,
            len: end - start,
            address,
        })
    }
}
