//! GPU memory and RDMA devices without host memory between (GPUDirect RDMA): peers read out of a GPU, and our own READs
//! land in one.

use std::{os::fd::AsFd, sync::Arc};

use kvferry_cuda::{DmaBufError, FlushError, peer_memory_loaded};
use kvferry_ibverbs::{
    DeviceMemory, DmaBuf, LocalRegion, ProtectionDomain, ReadableRegion, RegionCache, RegisterError,
};

use super::{device::Device, memory::LocalMemory};
use crate::gpu::GpuMemory;

/// A GPU's memory is not registered with a device: what goes there, and what comes from there, is staged through pinned
/// host memory.
#[derive(Debug, thiserror::Error)]
pub(super) enum GpuRegisterError {
    /// The driver exports no dma-buf, and there is no peer-memory module to do without.
    #[error("{0}")]
    Export(#[from] DmaBufError),
    /// The device takes neither.
    #[error("{0}")]
    Register(#[from] RegisterError),
}

/// READs cannot land in a GPU's memory: they are staged through pinned host memory.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotStraight {
    /// What devices write there cannot be made visible to the GPU's own work.
    #[error(transparent)]
    Flush(#[from] FlushError),
    /// No device takes it; the last one's reason.
    #[error(transparent)]
    Register(#[from] GpuRegisterError),
    /// There is no device.
    #[error("there is no RDMA device")]
    NoDevice,
}

/// Lets peers read all of it.
pub(super) fn readable(
    device: &Device,
    (domain, cache): (&Arc<ProtectionDomain>, &RegionCache),
    memory: &Arc<GpuMemory>,
) -> Result<Arc<ReadableRegion>, GpuRegisterError> {
    let (own, all) = (memory.device_memory(), whole(memory));
    register(
        device,
        memory,
        |buffer| ReadableRegion::register_dmabuf(domain, buffer),
        || cache.readable(own, all),
    )
}

/// Makes all of it a place for READs, on every device that takes it. The flush that they will need is tried here: one that
/// does not work must not be found out with bytes under way.
pub(super) fn landing(
    devices: &[Arc<Device>],
    memory: &Arc<GpuMemory>,
) -> Result<LocalMemory, NotStraight> {
    memory.gpu().context().flush_rdma_writes()?;
    let mut failure = NotStraight::NoDevice;
    let mut regions: Vec<Option<Arc<LocalRegion>>> = Vec::with_capacity(devices.len());
    for device in devices {
        let (own, all) = (memory.device_memory(), whole(memory));
        let registered = register(
            device,
            memory,
            |buffer| LocalRegion::register_dmabuf(&device.domain, buffer),
            || device.cache.local(own, all),
        );
        regions.push(registered.map_err(|error| failure = error.into()).ok());
    }
    if regions.iter().all(Option::is_none) {
        return Err(failure);
    }
    Ok(LocalMemory {
        regions,
        numa_node: memory.gpu().context().device().numa_node(),
    })
}

fn whole(memory: &GpuMemory) -> std::ops::Range<u64> {
    let (_, len) = memory.device_memory().as_raw_parts();
    0..len as u64
}

/// By dma-buf where the driver exports one (`cuMemGetHandleForAddressRange`), else by its address, which the peer-memory
/// module (`nvidia_peermem`) makes sense of. An engine's memory, opened by its IPC handle, is of the second kind with today's
/// drivers: they export what `cuMemAlloc` or `cuMemCreate` gave to the same process.
fn register<R>(
    device: &Device,
    memory: &Arc<GpuMemory>,
    by_dmabuf: impl FnOnce(&DmaBuf<'_>) -> Result<R, RegisterError>,
    by_address: impl FnOnce() -> Result<R, RegisterError>,
) -> Result<R, GpuRegisterError> {
    let own = memory.device_memory();
    let exported = own
        .export_dmabuf(0..own.len())
        .map_err(GpuRegisterError::from)
        .and_then(|export| {
            Ok(by_dmabuf(&DmaBuf {
                fd: export.fd.as_fd(),
                offset: export.offset,
                len: export.len,
                address: export.address,
                owner: Arc::clone(own) as _,
            })?)
        });
    match exported {
        Err(why) if peer_memory_loaded() => {
            tracing::debug!(device = device.name(), "no dma-buf, so peer memory: {why}");
            Ok(by_address()?)
        }
        other => other,
    }
}
