//! Publishing: reserve, write, seal.

use std::{ffi::c_int, time::Duration};

use kvferry_client::{Cause, Failure};
use kvferry_proto::pb;

use crate::{
    agent::{handle, kvf_agent},
    boundary::{self, Growing, guard},
    kvf_error, kvf_status,
    words::{KVF_CHAINED, KVF_MAX_HASHES, count, flags, hashes, kvf_hashes, parent},
};

/// Longest wait for the coordinator's word.
const MAX_WAIT_ANNOUNCED_MS: u32 = 60_000;

/// Wait for an announcement, within its bound.
pub(crate) fn wait_announced(ms: u32) -> Result<Duration, Failure> {
    if ms > MAX_WAIT_ANNOUNCED_MS {
        return Err(Failure::invalid(format!(
            "wait_announced_ms is {ms}; at most {MAX_WAIT_ANNOUNCED_MS} is allowed"
        )));
    }
    Ok(Duration::from_millis(ms.into()))
}

/// Reserves these slots of the caller's region for writing. Blocks that are sealed in them are removed first,
/// and nobody takes their bytes for blocks when this returns. All or none. Within call_timeout_ms.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_reserve(
    agent: *const kvf_agent,
    region: u32,
    slots: *const u32,
    slot_count: usize,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let connection = handle(agent)?.connection();
            let slots = boundary::slice(slots, slot_count, KVF_MAX_HASHES, "slots")?.to_vec();
            if slots.is_empty() {
                return Ok(());
            }
            let request = pb::ReserveRequest {
                region,
                count: 0,
                slots,
            };
            connection.call(connection.timeout, |mut api| async move {
                api.reserve(request).await
            })?;
            Ok(())
        })
    }
}

/// Takes `slot_count` slots of a pool for writing, into `slots`; the agent chooses them, and evicts to make
/// room. All or none. Write to them through kvf_region_open. Within call_timeout_ms.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_reserve_pool(
    agent: *const kvf_agent,
    region: u32,
    slots: *mut u32,
    slot_count: usize,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let connection = handle(agent)?.connection();
            if slot_count > KVF_MAX_HASHES {
                return Err(Failure::new(
                    Cause::BoundReached,
                    format!("{slot_count} slots; at most {KVF_MAX_HASHES} are allowed in one call"),
                ));
            }
            let place = boundary::out_slice(slots, slot_count, "slots")?;
            if place.len() == 0 {
                return Ok(());
            }
            let request = pb::ReserveRequest {
                region,
                count: slot_count as u32, // at most KVF_MAX_HASHES
                slots: Vec::new(),
            };
            let answer = connection.call(connection.timeout, |mut api| async move {
                api.reserve(request).await
            })?;
            if answer.slots.len() != slot_count {
                return Err(Failure::new(
                    Cause::UnknownReason,
                    format!(
                        "agent {} gave {} slots for {slot_count}",
                        connection.agent,
                        answer.slots.len()
                    ),
                ));
            }
            place.fill(answer.slots);
            Ok(())
        })
    }
}

/// How to seal, and what came of it. All bits zero but `size` is a plain seal.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_sealed {
    /// sizeof(kvf_sealed).
    pub size: usize,
    /// In: wait at most this long for the coordinators to confirm; 0: do not wait; at most 60,000.
    pub wait_announced_ms: u32,
    /// In: KVF_CHAINED.
    pub flags: u32,
    /// In: with KVF_CHAINED the first hash's parent, `hash_len` bytes, or NULL.
    pub parent: *const u8,
    /// In: room for as many generations as there are slots, or NULL.
    pub generations: *mut u64,
    /// In: room for as many slots as there are slots, or NULL. Out: those freed, because the pool had their
    /// block already.
    pub duplicates: *mut u32,
    /// Out: how many were duplicates.
    pub duplicate_count: usize,
    /// Out: 1 where every coordinator lists the blocks, 0 where one had not confirmed in time.
    pub announced: c_int,
}

// SAFETY: repr(C), begins with its size, pointers and integers only.
unsafe impl Growing for kvf_sealed {
    const FIRST_SIZE: usize = size_of::<Self>();
}

/// Declares reserved slots complete: slot i holds the block with hash i. Peers can read them when this
/// returns. `sealed` may be NULL. Within call_timeout_ms and wait_announced_ms.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_seal(
    agent: *const kvf_agent,
    region: u32,
    slots: *const u32,
    hashes_of: *const kvf_hashes,
    sealed: *mut kvf_sealed,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let connection = handle(agent)?.connection();
            let hashes = hashes(hashes_of)?;
            let blocks = count(&hashes);
            let slots = boundary::slice(slots, blocks, KVF_MAX_HASHES, "slots")?.to_vec();
            let options = match sealed.is_null() {
                true => None,
                false => Some(boundary::sized(sealed.cast_const(), "kvf_sealed")?),
            };
            let wait_ms = options.map_or(0, |it| it.wait_announced_ms);
            let wait = wait_announced(wait_ms)?;
            let given = flags(options.map_or(0, |it| it.flags), KVF_CHAINED)?;
            let parent = match options {
                Some(it) => parent(it.parent, hashes.hash_len)?,
                None => bytes::Bytes::new(),
            };
            let request = pb::SealRequest {
                region,
                slots,
                hashes: Some(hashes),
                chained: given & KVF_CHAINED != 0,
                parent,
                wait_announced_ms: wait_ms,
            };
            let answer = connection.call(connection.timeout + wait, |mut api| async move {
                api.seal(request).await
            })?;
            let Some(mut told) = options else {
                return Ok(());
            };
            told.announced = c_int::from(answer.announced);
            told.duplicate_count = answer.duplicate_slots.len().min(blocks);
            if !told.generations.is_null() {
                boundary::out_slice(told.generations, blocks, "generations")?
                    .fill(answer.generations);
            }
            if !told.duplicates.is_null() {
                boundary::out_slice(told.duplicates, blocks, "duplicates")?
                    .fill(answer.duplicate_slots);
            }
            boundary::write_sized(sealed, &told, "kvf_sealed")
        })
    }
}

/// Gives reserved slots back unsealed. Within call_timeout_ms.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_abort(
    agent: *const kvf_agent,
    region: u32,
    slots: *const u32,
    slot_count: usize,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let connection = handle(agent)?.connection();
            let slots = boundary::slice(slots, slot_count, KVF_MAX_HASHES, "slots")?.to_vec();
            let request = pb::AbortRequest { region, slots };
            connection.call(connection.timeout, |mut api| async move {
                api.abort(request).await
            })?;
            Ok(())
        })
    }
}
