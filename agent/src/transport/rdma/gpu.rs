//! GPU memory that peers may read straight out of the GPU (GPUDirect RDMA).

use std::{os::fd::AsFd, sync::Arc};

use kvferry_cuda::{DmaBufError, peer_memory_loaded};
use kvferry_ibverbs::{DeviceMemory, DmaBuf, ReadableRegion, RegisterError};

use super::device::Device;
use crate::gpu::GpuMemory;

/// A GPU's memory is not registered with a device: it is served through pinned host memory, over sockets.
#[derive(Debug, thiserror::Error)]
pub(super) enum GpuRegisterError {
    /// The driver exports no dma-buf, and there is no peer-memory module to do without.
    #[error("{0}")]
    Export(#[from] DmaBufError),
    /// The device takes neither.
    #[error("{0}")]
    Register(#[from] RegisterError),
}

/// Lets peers read all of it: by dma-buf where the driver exports one, else by its address, which the peer-memory module
/// (`nvidia_peermem`) makes sense of. An engine's memory, opened by its IPC handle, is of the second kind with today's
/// drivers: they export what `cuMemAlloc` or `cuMemCreate` gave to the same process.
pub(super) fn readable(
    device: &Device,
    memory: &Arc<GpuMemory>,
) -> Result<Arc<ReadableRegion>, GpuRegisterError> {
    let own = memory.device_memory();
    let by_dmabuf = own
        .export_dmabuf(0..own.len())
        .map_err(GpuRegisterError::from)
        .and_then(|export| {
            let buffer = DmaBuf {
                fd: export.fd.as_fd(),
                offset: export.offset,
                len: export.len,
                address: export.address,
                owner: Arc::clone(own) as _,
            };
            Ok(ReadableRegion::register_dmabuf(&device.domain, &buffer)?)
        });
    match by_dmabuf {
        Err(why) if peer_memory_loaded() => {
            tracing::debug!(device = device.name(), "no dma-buf, so peer memory: {why}");
            let (_, len) = own.as_raw_parts();
            Ok(device.cache.readable(own, 0..len as u64)?)
        }
        other => other,
    }
}
