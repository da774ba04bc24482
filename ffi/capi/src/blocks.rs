//! Questions about blocks, pins, and giving blocks up.

use std::ffi::{c_char, c_int};

use kvferry_client::{Cause, Failure};
use kvferry_proto::pb;

use crate::{
    agent::{handle, kvf_agent, timeout},
    boundary::{self, guard},
    kvf_error, kvf_status,
    words::{count, hashes, kvf_hashes},
};

/// A look-up that names no timeout, and the longest one.
const LOOKUP_TIMEOUT_MS: u32 = 2_000;
const MAX_LOOKUP_TIMEOUT_MS: u32 = 60_000;

/// Where a block could be had.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum kvf_place {
    /// The agent said something that this library does not know.
    KVF_PLACE_UNKNOWN = 0,
    /// Nowhere.
    KVF_PLACE_MISSING = 1,
    /// On this agent.
    KVF_PLACE_LOCAL = 2,
    /// On another node.
    KVF_PLACE_REMOTE = 3,
}

fn place(number: i32) -> kvf_place {
    match pb::BlockPlace::try_from(number) {
        Ok(pb::BlockPlace::Missing) => kvf_place::KVF_PLACE_MISSING,
        Ok(pb::BlockPlace::Local) => kvf_place::KVF_PLACE_LOCAL,
        Ok(pb::BlockPlace::Remote) => kvf_place::KVF_PLACE_REMOTE,
        Ok(pb::BlockPlace::Unspecified) | Err(_) => kvf_place::KVF_PLACE_UNKNOWN,
    }
}

/// Which blocks could be had, and from where: `places` has room for one per hash, `*answered` is how many were
/// written. With `prefix` not 0 only the longest run from the first hash on is answered. An error is never
/// a miss. Within timeout_ms (0 means 2,000; at most 60,000) and call_timeout_ms.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_lookup(
    agent: *const kvf_agent,
    namespace_name: *const c_char,
    hashes_of: *const kvf_hashes,
    prefix: c_int,
    timeout_ms: u32,
    places: *mut kvf_place,
    answered: *mut usize,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let connection = handle(agent)?.connection();
            let hashes = hashes(hashes_of)?;
            let room = boundary::out_slice(places, count(&hashes), "places")?;
            let told = boundary::out(answered, "answered")?;
            if timeout_ms > MAX_LOOKUP_TIMEOUT_MS {
                return Err(Failure::invalid(format!(
                    "timeout_ms is {timeout_ms}; at most {MAX_LOOKUP_TIMEOUT_MS} is allowed"
                )));
            }
            let bound = timeout(timeout_ms, LOOKUP_TIMEOUT_MS, "timeout_ms")? + connection.timeout;
            let request = pb::LookupRequest {
                namespace: boundary::text(namespace_name, "namespace_name")?,
                hashes: Some(hashes),
                prefix: prefix != 0,
                timeout_ms,
            };
            let answer =
                connection.call(bound, |mut api| async move { api.lookup(request).await })?;
            told.set(room.fill(answer.places.into_iter().map(place)));
            Ok(())
        })
    }
}

/// Where a pinned block lies.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_pinned {
    /// False: the block is not here, and the rest means nothing.
    pub pinned: bool,
    /// The region.
    pub region: u32,
    /// The slot there.
    pub slot: u32,
    /// That slot's generation.
    pub generation: u64,
}

/// Promises not to reuse the slots of these blocks of this agent for ttl_ms (0 means 30,000; at most 600,000).
/// `blocks` has room for one per hash; `*pin` is for kvf_release. Within call_timeout_ms.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_pin(
    agent: *const kvf_agent,
    namespace_name: *const c_char,
    hashes_of: *const kvf_hashes,
    ttl_ms: u32,
    blocks: *mut kvf_pinned,
    pin: *mut u64,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let connection = handle(agent)?.connection();
            let hashes = hashes(hashes_of)?;
            let wanted = count(&hashes);
            let room = boundary::out_slice(blocks, wanted, "blocks")?;
            let token = boundary::out(pin, "pin")?;
            let request = pb::PinRequest {
                namespace: boundary::text(namespace_name, "namespace_name")?,
                hashes: Some(hashes),
                ttl_ms,
            };
            let answer = connection.call(connection.timeout, |mut api| async move {
                api.pin(request).await
            })?;
            if answer.blocks.len() != wanted {
                return Err(Failure::new(
                    Cause::UnknownReason,
                    format!(
                        "agent {} answered for {} blocks of {wanted}",
                        connection.agent,
                        answer.blocks.len()
                    ),
                ));
            }
            room.fill(answer.blocks.into_iter().map(|block| kvf_pinned {
                pinned: block.pinned,
                region: block.region,
                slot: block.slot,
                generation: block.generation,
            }));
            token.set(answer.pin);
            Ok(())
        })
    }
}

/// Releases a pin: of kvf_pin, or of a pull's summary. KVF_PIN_UNKNOWN where it has expired. Within
/// call_timeout_ms.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_release(
    agent: *const kvf_agent,
    pin: u64,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let connection = handle(agent)?.connection();
            let request = pb::ReleaseRequest { pin };
            connection.call(connection.timeout, |mut api| async move {
                api.release(request).await
            })?;
            Ok(())
        })
    }
}

/// What an eviction did.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_evicted {
    /// Blocks dropped.
    pub evicted: u64,
    /// Blocks that stayed, because they are pinned.
    pub kept_pinned: u64,
}

/// Drops blocks of this agent; pinned ones stay. `hashes_of` NULL: all of the namespace. `evicted` may be
/// NULL. Within call_timeout_ms.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_evict(
    agent: *const kvf_agent,
    namespace_name: *const c_char,
    hashes_of: *const kvf_hashes,
    evicted: *mut kvf_evicted,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let connection = handle(agent)?.connection();
            let told = boundary::optional_out(evicted, "evicted")?;
            let hashes = match hashes_of.is_null() {
                true => None,
                false => Some(hashes(hashes_of)?),
            };
            // No hashes mean all of them to the agent; here they mean none.
            if hashes.as_ref().is_some_and(|hashes| count(hashes) == 0) {
                if let Some(told) = told {
                    told.set(kvf_evicted {
                        evicted: 0,
                        kept_pinned: 0,
                    });
                }
                return Ok(());
            }
            let request = pb::EvictRequest {
                namespace: boundary::text(namespace_name, "namespace_name")?,
                hashes,
            };
            let answer = connection.call(connection.timeout, |mut api| async move {
                api.evict(request).await
            })?;
            if let Some(told) = told {
                told.set(kvf_evicted {
                    evicted: answer.evicted,
                    kept_pinned: answer.kept_pinned,
                });
            }
            Ok(())
        })
    }
}
