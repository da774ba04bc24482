//! Numbers.

use std::ffi::c_char;

use kvferry_client::{Connection, Failure};
use kvferry_proto::pb;

use crate::{
    agent::{handle, kvf_agent},
    boundary::{self, Growing, guard},
    error::to_c_text,
    kvf_error, kvf_status,
};

/// Numbers of an agent, counted since it started.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_stats {
    /// sizeof(kvf_stats).
    pub size: usize,
    /// The agent's node name; ends with a NUL.
    pub node: [c_char; 136],
    /// Its lifetime.
    pub incarnation: u64,
    /// Regions registered now.
    pub regions: u64,
    /// Coordinators it is configured with.
    pub coordinators: u64,
    /// Those it has a session with now.
    pub coordinators_connected: u64,
    /// Slots reserved now.
    pub reservations: u64,
    /// Pins held now.
    pub pins: u64,
    /// Pulls under way now.
    pub pulls_in_flight: u64,
    /// Blocks pulled.
    pub blocks_pulled: u64,
    /// Bytes pulled.
    pub bytes_pulled: u64,
    /// Blocks that every owner had overwritten.
    pub blocks_stale: u64,
    /// Blocks that could not be pulled for other reasons than that nobody has them.
    pub blocks_failed: u64,
    /// Bytes that peers read here.
    pub bytes_served: u64,
    /// Peers that are not trusted with reads at the moment.
    pub peers_suspect: u64,
}

// SAFETY: repr(C), begins with its size, integers only.
unsafe impl Growing for kvf_stats {
    const FIRST_SIZE: usize = size_of::<Self>();
}

/// Slots of a region.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_region_stats {
    /// Which region.
    pub region: u32,
    /// True for a pool.
    pub pool: bool,
    /// Slots with nothing in them.
    pub free: u32,
    /// Slots being written.
    pub reserved: u32,
    /// Slots with a block.
    pub sealed: u32,
    /// Those of them that are pinned.
    pub pinned: u32,
    /// Slots that a read which has not settled may still write to.
    pub quarantined: u32,
    /// Blocks evicted.
    pub evictions: u64,
}

fn ask(connection: &Connection) -> Result<pb::StatsResponse, Failure> {
    connection.call(connection.timeout, |mut api| async move {
        api.stats(pb::StatsRequest {}).await
    })
}

/// The agent's numbers. `stats.size` is to be set. Within call_timeout_ms.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_stats_get(
    agent: *const kvf_agent,
    stats: *mut kvf_stats,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let answer = ask(handle(agent)?.connection())?;
            let connected = answer.coordinators.iter().filter(|it| it.connected).count();
            let told = kvf_stats {
                size: size_of::<kvf_stats>(),
                node: to_c_text(&answer.node),
                incarnation: answer.incarnation,
                regions: answer.regions.len() as u64,
                coordinators: answer.coordinators.len() as u64,
                coordinators_connected: connected as u64,
                reservations: answer.reservations,
                pins: answer.pins,
                pulls_in_flight: answer.pulls_in_flight,
                blocks_pulled: answer.blocks_pulled,
                bytes_pulled: answer.bytes_pulled,
                blocks_stale: answer.blocks_stale,
                blocks_failed: answer.blocks_failed,
                bytes_served: answer.bytes_served,
                peers_suspect: answer.peers_suspect,
            };
            boundary::write_sized(stats, &told, "kvf_stats")
        })
    }
}

/// The regions' numbers: at most `room` of them into `regions`; `*count` is how many there are. Within
/// call_timeout_ms.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_stats_regions(
    agent: *const kvf_agent,
    regions: *mut kvf_region_stats,
    room: usize,
    count: *mut usize,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let connection = handle(agent)?.connection();
            let place = boundary::out_slice(regions, room, "regions")?;
            let total = boundary::out(count, "count")?;
            let answer = ask(connection)?;
            total.set(answer.regions.len());
            place.fill(answer.regions.iter().map(|it| {
                let info = it.region.as_ref();
                kvf_region_stats {
                    region: info.map_or(0, |info| info.region),
                    pool: info.is_some_and(|info| info.pool),
                    free: it.free,
                    reserved: it.reserved,
                    sealed: it.sealed,
                    pinned: it.pinned,
                    quarantined: it.quarantined,
                    evictions: it.evictions,
                }
            }));
            Ok(())
        })
    }
}
