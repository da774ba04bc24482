//! Registering memory.

use std::{
    ffi::{c_char, c_int},
    os::fd::BorrowedFd,
    time::Duration,
};

use kvferry_client::{Cause, Connection, Failure};
use kvferry_proto::pb::{self, register_region_request::Source};

use crate::{
    agent::{handle, kvf_agent},
    boundary::{self, guard},
    error::to_c_text,
    kvf_error, kvf_status,
    words::{
        KVF_HUGEPAGES, KVF_KEEP_ON_DISCONNECT, flags, geometry, kvf_geometry, kvf_namespace,
        kvf_plane, namespace,
    },
};

/// Registering maps and clears memory, which takes as long as there is memory.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(120);
/// The agent waits up to 10 seconds for reads to settle.
const UNREGISTER_TIMEOUT: Duration = Duration::from_secs(12);

/// A region as the agent has it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_region {
    /// Its number, for other calls.
    pub region: u32,
    /// How many slots it has.
    pub slots: u32,
    /// True where the agent chooses slots and evicts (a pool); false where the engine does.
    pub pool: bool,
    /// How many planes it has; a pool has one.
    pub plane_count: u32,
    /// The first plane: where the blocks of a pool lie.
    pub first_plane: kvf_plane,
    /// The agent's lifetime.
    pub incarnation: u64,
    /// Of the namespace's layout; ends with a NUL.
    pub fingerprint: [c_char; 80],
}

fn to_c(info: &pb::RegionInfo) -> kvf_region {
    let geometry = info.geometry.clone().unwrap_or_default();
    let first = geometry.planes.first().copied().unwrap_or_default();
    kvf_region {
        region: info.region,
        slots: geometry.slots,
        pool: info.pool,
        plane_count: geometry.planes.len() as u32, // at most MAX_PLANES
        first_plane: kvf_plane {
            base: first.base,
            stride: first.stride,
            len: first.len,
        },
        incarnation: info.incarnation,
        fingerprint: to_c_text(&info.fingerprint),
    }
}

pub(crate) fn register(
    connection: &Connection,
    request: pb::RegisterRegionRequest,
) -> Result<kvf_region, Failure> {
    let info = connection.call(REGISTER_TIMEOUT, |mut api| async move {
        api.register_region(request).await
    })?;
    Ok(to_c(&info))
}

/// Registers a file that the caller mapped, by its absolute path (in /dev/shm, say), as a region of a
/// namespace. Flags: KVF_KEEP_ON_DISCONNECT. Within 120 seconds: memory is mapped.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_register_path(
    agent: *const kvf_agent,
    namespace_of: *const kvf_namespace,
    path: *const c_char,
    geometry_of: *const kvf_geometry,
    flags_given: u32,
    region: *mut kvf_region,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let agent = handle(agent)?;
            let place = boundary::out(region, "the place for the region")?;
            let given = flags(flags_given, KVF_KEEP_ON_DISCONNECT)?;
            let path = boundary::text(path, "the path")?;
            let request = pb::RegisterRegionRequest {
                namespace: Some(namespace(namespace_of)?),
                source: Some(Source::Path(pb::PathSource { path })),
                geometry: Some(geometry(geometry_of)?),
                keep_on_disconnect: given & KVF_KEEP_ON_DISCONNECT != 0,
            };
            place.set(register(agent.connection(), request)?);
            Ok(())
        })
    }
}

/// As kvf_register_path, for memory that has no name: a memfd, or an unlinked file. The descriptor stays the
/// caller's; the agent gets one of its own.
///
/// # Safety
/// The rules at the top; `descriptor` is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_register_fd(
    agent: *const kvf_agent,
    namespace_of: *const kvf_namespace,
    descriptor: c_int,
    geometry_of: *const kvf_geometry,
    flags_given: u32,
    region: *mut kvf_region,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let agent = handle(agent)?;
            let place = boundary::out(region, "the place for the region")?;
            let given = flags(flags_given, KVF_KEEP_ON_DISCONNECT)?;
            let request = pb::RegisterRegionRequest {
                namespace: Some(namespace(namespace_of)?),
                source: None,
                geometry: Some(geometry(geometry_of)?),
                keep_on_disconnect: given & KVF_KEEP_ON_DISCONNECT != 0,
            };
            if descriptor < 0 {
                return Err(Failure::invalid("the descriptor is negative"));
            }
            let descriptor = BorrowedFd::borrow_raw(descriptor)
                .try_clone_to_owned()
                .map_err(|error| Failure::system("the descriptor cannot be duplicated", error))?;
            let own = agent.connection().clone();
            let registering = async move { own.register_descriptor(descriptor, request).await };
            let info = agent.connection().run(REGISTER_TIMEOUT, registering)?;
            place.set(to_c(&info));
            Ok(())
        })
    }
}

/// Makes the namespace's pool: the agent's own memory, which it fills and evicts by itself. `bytes` 0: as
/// the agent is configured. KVF_POOL_EXISTS where there is one. Flags: KVF_HUGEPAGES. Within 120 seconds:
/// memory is cleared.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_register_pool(
    agent: *const kvf_agent,
    namespace_of: *const kvf_namespace,
    bytes: u64,
    flags_given: u32,
    region: *mut kvf_region,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let agent = handle(agent)?;
            let place = boundary::out(region, "the place for the region")?;
            let hugepages = flags(flags_given, KVF_HUGEPAGES)? & KVF_HUGEPAGES != 0;
            let request = pb::RegisterRegionRequest {
                namespace: Some(namespace(namespace_of)?),
                source: Some(Source::Pool(pb::PoolSource { bytes, hugepages })),
                geometry: None,
                keep_on_disconnect: false,
            };
            place.set(register(agent.connection(), request)?);
            Ok(())
        })
    }
}

/// A region as the agent has it: for one that an outcome names, a pool, say. KVF_REGION_UNKNOWN: it has
/// ended. Within call_timeout_ms.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_region_describe(
    agent: *const kvf_agent,
    region: u32,
    description: *mut kvf_region,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let connection = handle(agent)?.connection();
            let place = boundary::out(description, "the place for the description")?;
            let stats = connection.call(connection.timeout, |mut api| async move {
                api.stats(pb::StatsRequest {}).await
            })?;
            let found = stats
                .regions
                .iter()
                .filter_map(|it| it.region.as_ref())
                .find(|it| it.region == region)
                .ok_or_else(|| {
                    Failure::new(
                        Cause::RegionUnknown,
                        format!("agent {} has no region {region}", connection.agent),
                    )
                })?;
            place.set(to_c(found));
            Ok(())
        })
    }
}

/// Ends a region: its blocks are gone at once, and with KVF_OK nothing writes to its memory any more. With
/// KVF_MEMORY_IN_USE or KVF_DEADLINE something may still do: call it again before the memory is reused.
/// `*blocks_removed` may be NULL. Within 12 seconds.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_unregister(
    agent: *const kvf_agent,
    region: u32,
    blocks_removed: *mut u64,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let agent = handle(agent)?;
            let place = boundary::optional_out(blocks_removed, "blocks_removed")?;
            let request = pb::UnregisterRegionRequest { region };
            let answer = agent
                .connection()
                .call(UNREGISTER_TIMEOUT, |mut api| async move {
                    api.unregister_region(request).await
                })?;
            if let Some(place) = place {
                place.set(answer.blocks_removed);
            }
            Ok(())
        })
    }
}
