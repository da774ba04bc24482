//! Bringing blocks here, without waiting for them.

mod callbacks;
mod state;
mod words;

use std::{ffi::c_int, sync::Arc, time::Duration};

use kvferry_client::Failure;
use kvferry_proto::pb::{self, pull_request::Destination};

use crate::{
    agent::{handle, kvf_agent, timeout},
    boundary::{self, guard},
    kvf_error, kvf_status,
    words::{KVF_CHAINED, KVF_MAX_HASHES, KVF_NO_REPLICA, count, flags, hashes, parent},
};
pub use callbacks::KVF_MAX_PULLS;
pub(crate) use callbacks::Pulls;
use state::{Callback, Shared};
pub use words::{
    kvf_outcome, kvf_outcome_kind, kvf_pull_callback, kvf_pull_request, kvf_pull_summary,
};

/// A pull that names no timeout.
const DEFAULT_TIMEOUT_MS: u32 = 10_000;

/// A pull under way, or ended. It may outlive the handle it was started with.
pub struct kvf_pull {
    shared: Arc<Shared>,
}

/// # Safety
/// `pull` is NULL or a pull that is not freed during `'a`.
unsafe fn pull_of<'a>(pull: *const kvf_pull) -> Result<&'a Shared, Failure> {
    // SAFETY: the caller's promise.
    Ok(unsafe { &boundary::reference(pull, "the pull")?.shared })
}

/// How long to wait; 0 is not at all.
fn patience(timeout_ms: u32) -> Result<Duration, Failure> {
    match timeout_ms {
        0 => Ok(Duration::ZERO),
        ms => timeout(ms, 0, "timeout_ms"),
    }
}

/// The planes of each stage.
///
/// # Safety
/// `stages` is NULL or points to `count` numbers.
unsafe fn stages(stages: *const u32, count: usize) -> Result<Vec<u32>, Failure> {
    if stages.is_null() && count == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the caller's promise.
    let stages = unsafe { boundary::slice(stages, count, KVF_MAX_HASHES, "stages")? };
    if stages.is_empty() {
        return Err(Failure::invalid(
            "stages is not NULL and stage_count is 0: a pull has no stages or at least one",
        ));
    }
    Ok(stages.to_vec())
}

/// Starts a pull and returns at once. `*pull` is then the caller's, to be given to kvf_pull_free. Every hash
/// gets exactly one outcome, whatever happens; also where the agent refuses the pull. At most KVF_MAX_PULLS
/// of one handle exist at a time.
///
/// # Safety
/// The rules at the top. `request.user` is used from a thread of the library until the callback's last call
/// has returned, or kvf_pull_free has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_pull_start(
    agent: *const kvf_agent,
    request: *const kvf_pull_request,
    pull: *mut *mut kvf_pull,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let agent = handle(agent)?;
            let place = boundary::out(pull, "the place for the pull")?;
            let it = boundary::sized(request, "kvf_pull_request")?;
            let timeout = timeout(it.timeout_ms, DEFAULT_TIMEOUT_MS, "timeout_ms")?;
            let hashes = hashes(&raw const it.hashes)?;
            let blocks = count(&hashes);
            let given = flags(it.flags, KVF_NO_REPLICA | KVF_CHAINED)?;
            let destination = if it.slots.is_null() {
                Destination::Pool(pb::PoolDestination {
                    pin_ttl_ms: it.pin_ttl_ms,
                })
            } else {
                let slots = boundary::slice(it.slots, blocks, KVF_MAX_HASHES, "slots")?;
                Destination::Slots(pb::SlotDestination {
                    region: it.region,
                    slots: slots.to_vec(),
                })
            };
            let request = pb::PullRequest {
                namespace: boundary::text(it.namespace_name, "namespace_name")?,
                hashes: Some(hashes),
                timeout_ms: timeout.as_millis() as u32, // at most KVF_MAX_TIMEOUT_MS
                destination: Some(destination),
                no_replica: given & KVF_NO_REPLICA != 0,
                chained: given & KVF_CHAINED != 0,
                parent: parent(it.parent, it.hashes.hash_len)?,
                columns: false,
                stages: stages(it.stages, it.stage_count)?,
            };
            let callback = Callback {
                function: it.callback,
                user: it.user,
                handle: std::ptr::null_mut(),
            };
            let permit = agent.pulls().permit()?;
            let shared = Arc::new(Shared::new(blocks, callback, agent.pulls().queue(), permit));
            let made = Box::into_raw(Box::new(kvf_pull {
                shared: Arc::clone(&shared),
            }));
            shared.set_handle(made);
            // Before the task can call back, so that a callback finds the caller's variable filled.
            place.set(made);
            let connection = agent.connection().clone();
            let runtime = connection.runtime().clone();
            let cancel = shared.cancel.clone();
            runtime.spawn(kvferry_client::pull(
                connection, request, timeout, cancel, shared,
            ));
            Ok(())
        })
    }
}

/// Gives outcomes that were not given before, in the order in which they came: at most `room` of them into
/// `outcomes`, their number into `*given`. `*done` is 1 where all have been given and no more will come.
/// Never waits. NULL with a room of 0 only asks.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_pull_poll(
    pull: *const kvf_pull,
    outcomes: *mut kvf_outcome,
    room: usize,
    given: *mut usize,
    done: *mut c_int,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let pull = pull_of(pull)?;
            let place = boundary::out_slice(outcomes, room, "outcomes")?;
            let given = boundary::out(given, "given")?;
            let done = boundary::out(done, "done")?;
            let (fresh, ended) = pull.poll(place.len());
            given.set(place.fill(fresh));
            done.set(c_int::from(ended));
            Ok(())
        })
    }
}

/// Waits until the pull has ended, for at most timeout_ms (at most KVF_MAX_TIMEOUT_MS; 0 only asks).
/// KVF_OK: every block has its outcome, as kvf_pull_poll gives them; KVF_NOT_DONE: it has not ended yet; anything
/// else: it has ended, and why.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_pull_wait(
    pull: *const kvf_pull,
    timeout_ms: u32,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            pull_of(pull)?.wait(patience(timeout_ms)?).map(|_| ())
        })
    }
}

/// How many of the pull's stages have landed in the slots of every block that has no outcome yet; never fewer than it said
/// before. Planes that have landed are the block's and are not written to any more, whatever becomes of the later ones;
/// a block with an outcome is whole (pulled, local) or to be computed. Never waits.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_pull_stages_landed(
    pull: *const kvf_pull,
    landed: *mut u32,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let place = boundary::out(landed, "the place for the number")?;
            place.set(pull_of(pull)?.stages_landed());
            Ok(())
        })
    }
}

/// Waits until the first `stages` stages have landed (kvf_pull_stages_landed) or the pull has ended, for at most timeout_ms
/// (at most KVF_MAX_TIMEOUT_MS; 0 only asks). KVF_OK: every block has them, or its outcome: poll for the outcomes, a block
/// that failed is among them; KVF_NOT_DONE: not yet; anything else: the pull has ended before, and why.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_pull_wait_stages(
    pull: *const kvf_pull,
    stages: u32,
    timeout_ms: u32,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            pull_of(pull)?.wait_stages(stages, patience(timeout_ms)?)
        })
    }
}

/// An eventfd that can be read (by poll, epoll, an event loop) exactly while kvf_pull_poll has something new to
/// say: outcomes, or that the pull has ended; of a pull in stages also while kvf_pull_stages_landed has. It stays the
/// pull's: neither read nor close it; it is closed by kvf_pull_free. Made by the first call.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_pull_eventfd(
    pull: *const kvf_pull,
    descriptor: *mut c_int,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let place = boundary::out(descriptor, "the place for the descriptor")?;
            place.set(pull_of(pull)?.event()?);
            Ok(())
        })
    }
}

/// What a pull that has ended amounts to; otherwise as kvf_pull_wait with 0. `summary.size` is to be set.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_pull_summary_of(
    pull: *const kvf_pull,
    summary: *mut kvf_pull_summary,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let told = pull_of(pull)?.summary()?;
            boundary::write_sized(summary, &told, "kvf_pull_summary")
        })
    }
}

/// Gives a pull up: its remaining blocks get KVF_OUTCOME_CANCELLED soon. Nothing to do where it has ended.
/// Their slots may still be written to: kvf_reserve says KVF_SLOT_BUSY until they are free.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_pull_cancel(
    pull: *const kvf_pull,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            pull_of(pull)?.cancel.cancel();
            Ok(())
        })
    }
}

/// Frees a pull, in whatever state: one under way is given up first. Its texts and its eventfd end; its
/// callback is not called any more, and if it is running in another thread this waits for it. NULL is
/// nothing to free.
///
/// # Safety
/// The rules at the top; the last call with this pull.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_pull_free(pull: *mut kvf_pull) {
    // SAFETY: no error is to be told; the handle came from Box::into_raw, and this is the last call with it.
    unsafe {
        guard(std::ptr::null_mut(), || {
            if !pull.is_null() && pull.is_aligned() {
                Box::from_raw(pull).shared.free();
            }
            Ok(())
        });
    }
}
