//! The agent's memory in the engine's hands: descriptors of a region.

use std::{ffi::c_int, os::fd::IntoRawFd};

use kvferry_proto::RegionId;

use crate::{
    agent::{handle, kvf_agent},
    boundary::{self, guard},
    kvf_error, kvf_status,
};

/// Descriptors of a region's memory: mmap() them. Both are the caller's, to be closed.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_region_map {
    /// The blocks.
    pub data: c_int,
    /// The generation words, one of 64 bits per slot; never writable.
    pub generations: c_int,
    /// Bytes of `data`.
    pub data_bytes: u64,
    /// Words of `generations`.
    pub slots: u32,
}

/// Opens a region's memory: to read blocks in a pool that are pinned, or, with `writable` not 0, to write to
/// slots that kvf_reserve_pool gave. Nothing but pinned or reserved slots may be relied on. Within
/// call_timeout_ms.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_region_open(
    agent: *const kvf_agent,
    region: u32,
    writable: c_int,
    map: *mut kvf_region_map,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let connection = handle(agent)?.connection();
            let place = boundary::out(map, "the place for the descriptors")?;
            let own = connection.clone();
            let opened = connection.run(connection.timeout, async move {
                own.open_region(RegionId(region), writable != 0).await
            })?;
            place.set(kvf_region_map {
                data: opened.data.into_raw_fd(),
                generations: opened.generations.into_raw_fd(),
                data_bytes: opened.data_bytes,
                slots: opened.slots,
            });
            Ok(())
        })
    }
}
