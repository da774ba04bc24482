//! Bringing tensors here.

use std::{
    ffi::{CString, c_char},
    mem::offset_of,
    time::Duration,
};

use kvferry_client::{Cause, Connection, Failure};
use kvferry_proto::pb::{self, pull_tensors_event::Event, pull_tensors_request::Destination};
use tokio::select;
use tokio_util::sync::CancellationToken;

use super::{
    beyond,
    texts::{Tensor, lent},
    words::{
        KVF_MAX_TENSORS, digest, digest_bytes, digest_or_none, kvf_digest, kvf_source_id,
        kvf_tensor, source_bytes,
    },
};
use crate::{
    agent::{handle, kvf_agent, timeout},
    boundary::{self, Growing, guard},
    cancel::{kvf_canceller, token},
    kvf_error, kvf_outcome_kind, kvf_status,
    words::{
        KVF_FRESH_MEMORY, KVF_KEEP_ON_DISCONNECT, KVF_NO_REPLICA, KVF_PACKED, KVF_SERVE, flags,
    },
};

/// A pull that names no timeout.
const DEFAULT_TIMEOUT_MS: u32 = 10_000;
/// The agent gives every outcome by the pull's timeout; this long after it, it has stopped.
const GRACE: Duration = Duration::from_secs(2);
/// Most names that are taken; the agent takes fewer.
const MAX_NAMES: usize = KVF_MAX_TENSORS;

/// Which tensors to pull, and where to.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_tensor_request {
    /// sizeof(kvf_tensor_request).
    pub size: usize,
    /// Of which source.
    pub source: kvf_source_id,
    /// Which set, where workers differ; NULL: the one with most ready workers. A pull that goes on from an earlier one names
    /// the earlier one's.
    pub digest: *const kvf_digest,
    /// Tensors wanted, by name.
    pub names: *const *const c_char,
    /// How many names there are.
    pub name_count: usize,
    /// Tensors wanted, by what their names begin with. No names and no prefixes: all.
    pub prefixes: *const *const c_char,
    /// How many prefixes there are.
    pub prefix_count: usize,
    /// Of which rank.
    pub rank: u32,
    /// The caller's region to land in, of one plane; not with KVF_FRESH_MEMORY.
    pub region: u32,
    /// Where in it: chunk i goes to slot first_slot + i.
    pub first_slot: u32,
    /// KVF_PACKED, KVF_NO_REPLICA, KVF_SERVE, KVF_FRESH_MEMORY, and with that KVF_KEEP_ON_DISCONNECT.
    pub flags: u32,
    /// Every outcome is there by then; 0 means 10,000; at most KVF_MAX_TIMEOUT_MS.
    pub timeout_ms: u32,
    /// Gives it up; NULL: nothing does.
    pub canceller: *const kvf_canceller,
}

// SAFETY: repr(C), begins with its size, pointers, integers and arrays of them only.
unsafe impl Growing for kvf_tensor_request {
    const FIRST_SIZE: usize = offset_of!(Self, canceller);
}

/// What a pull of tensors came to.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_tensor_summary {
    /// sizeof(kvf_tensor_summary).
    pub size: usize,
    /// Which set it was.
    pub digest: kvf_digest,
    /// How many outcomes kvf_landed_at gives: one for each tensor wanted that the set has.
    pub count: usize,
    /// Where they landed: for kvf_region_describe and kvf_region_open.
    pub region: u32,
    /// Tensors whose bytes are here.
    pub tensors_here: u32,
    /// Tensors that are not.
    pub tensors_failed: u32,
    /// Names that the set does not have.
    pub names_unknown: u32,
    /// Chunks pulled by this call.
    pub chunks_pulled: u32,
    /// Chunks that were here before.
    pub chunks_here_before: u32,
    /// Times the rest was asked for anew.
    pub rounds: u32,
    /// 1: it is published here now.
    pub serving: u32,
    /// Bytes pulled by this call.
    pub bytes_pulled: u64,
    /// Microseconds in all.
    pub total_us: u64,
}

// SAFETY: repr(C), begins with its size, integers and arrays of them only.
unsafe impl Growing for kvf_tensor_summary {
    const FIRST_SIZE: usize = size_of::<Self>();
}

/// What became of one tensor. Its texts and its shape belong to the outcomes it came with.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_landed_tensor {
    /// sizeof(kvf_landed_tensor).
    pub size: usize,
    /// Which tensor.
    pub tensor: kvf_tensor,
    /// A kvf_outcome_kind: its bytes are here with KVF_OUTCOME_PULLED and KVF_OUTCOME_LOCAL.
    pub kind: u32,
    /// Of its first byte in the region's memory, where it is here.
    pub region_offset: u64,
    /// What happened, to whom, and what to do, for people. Empty on success.
    pub detail: *const c_char,
}

// SAFETY: repr(C), begins with its size, pointers and integers only.
unsafe impl Growing for kvf_landed_tensor {
    const FIRST_SIZE: usize = size_of::<Self>();
}

struct Landed {
    tensor: Tensor,
    kind: kvf_outcome_kind,
    region_offset: u64,
    detail: CString,
}

/// What became of the tensors of a pull.
pub struct kvf_landed(Vec<Landed>);

/// Brings tensors here, and waits for it. KVF_OK: each has its outcome in `*landed`, which is the caller's, to be given to
/// kvf_landed_free; `summary` (its size is to be set) says how many came. What has landed stays in the region's slots: call again
/// to go on with the rest. KVF_SOURCE_UNKNOWN, KVF_SOURCE_NOT_READY: there is nothing to pull. Within timeout_ms and 2
/// seconds.
///
/// KVF_CANCELLED, soon after kvf_cancel: there are no outcomes, and `summary` says of which set it was and where it was
/// landing; nothing but zeros where it had not begun. What has landed stays here, too. Slots of the rest may still be written
/// to: kvf_reserve says KVF_SLOT_BUSY until they are free. With KVF_FRESH_MEMORY the region is there: pull on into it, or
/// kvf_unregister it.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_tensors_pull(
    agent: *const kvf_agent,
    request: *const kvf_tensor_request,
    summary: *mut kvf_tensor_summary,
    landed: *mut *mut kvf_landed,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let connection = handle(agent)?.connection();
            let place = boundary::out(landed, "the place for the outcomes")?;
            let it = boundary::sized(request, "kvf_tensor_request")?;
            let bound = timeout(it.timeout_ms, DEFAULT_TIMEOUT_MS, "timeout_ms")?;
            let given_up = token(it.canceller)?;
            let fresh = it.flags & KVF_FRESH_MEMORY != 0;
            let kept = if fresh { KVF_KEEP_ON_DISCONNECT } else { 0 };
            let known = KVF_PACKED | KVF_NO_REPLICA | KVF_SERVE | KVF_FRESH_MEMORY | kept;
            let given = flags(it.flags, known)?;
            let packed = given & KVF_PACKED != 0;
            let request = pb::PullTensorsRequest {
                source: source_bytes(&raw const it.source)?,
                rank: it.rank,
                digest: digest_bytes(it.digest)?,
                names: texts(it.names, it.name_count, "names")?,
                name_prefixes: texts(it.prefixes, it.prefix_count, "prefixes")?,
                destination: Some(match fresh {
                    true => Destination::Fresh(pb::FreshMemory {
                        packed,
                        keep_on_disconnect: given & KVF_KEEP_ON_DISCONNECT != 0,
                    }),
                    false => Destination::Slots(pb::TensorSlots {
                        region: it.region,
                        first_slot: it.first_slot,
                        packed,
                    }),
                }),
                timeout_ms: bound.as_millis() as u32, // at most KVF_MAX_TIMEOUT_MS
                no_replica: given & KVF_NO_REPLICA != 0,
                serve: given & KVF_SERVE != 0,
            };
            let own = connection.clone();
            let work = async move { bring(&own, request, &given_up).await };
            let pulled = connection.run(bound + GRACE, work)?;
            boundary::write_sized(summary, &pulled.to_c(), "kvf_tensor_summary")?;
            if pulled.given_up {
                return Err(Failure::new(Cause::Cancelled, "the pull was given up"));
            }
            place.set(Box::into_raw(Box::new(kvf_landed(pulled.landed))));
            Ok(())
        })
    }
}

/// # Safety
/// `given` is NULL or points to `count` texts that end with a NUL.
unsafe fn texts(
    given: *const *const c_char,
    count: usize,
    what: &str,
) -> Result<Vec<String>, Failure> {
    // SAFETY: the caller's promise.
    let given = unsafe { boundary::slice(given, count, MAX_NAMES, what) }?;
    let texts = given.iter();
    texts
        // SAFETY: the caller's promise.
        .map(|text| unsafe { boundary::text(*text, what) })
        .collect()
}

#[derive(Default)]
struct Pulled {
    begun: pb::PullTensorsBegun,
    landed: Vec<Landed>,
    summary: pb::PullTensorsSummary,
    given_up: bool,
}

impl Pulled {
    fn to_c(&self) -> kvf_tensor_summary {
        kvf_tensor_summary {
            size: size_of::<kvf_tensor_summary>(),
            digest: digest_or_none(&self.begun.digest),
            count: self.landed.len(),
            region: self.begun.region.as_ref().map_or(0, |it| it.region),
            tensors_here: self.summary.tensors_here,
            tensors_failed: self.summary.tensors_failed,
            names_unknown: self.begun.names_unknown.len() as u32, // at most as many as were given
            chunks_pulled: self.summary.chunks_pulled,
            chunks_here_before: self.summary.chunks_here_before,
            rounds: self.summary.rounds,
            serving: u32::from(self.summary.serving),
            bytes_pulled: self.summary.bytes_pulled,
            total_us: self.summary.total_us,
        }
    }
}

/// Until it has ended, or is given up: the agent learns of that by the stream's end.
async fn bring(
    connection: &Connection,
    request: pb::PullTensorsRequest,
    given_up: &CancellationToken,
) -> Result<Pulled, Failure> {
    let mut pulled = Pulled::default();
    let mut tensors = connection.tensors();
    let asked = select! {
        biased;
        () = given_up.cancelled() => {
            pulled.given_up = true;
            return Ok(pulled);
        }
        asked = tensors.pull_tensors(request) => asked,
    };
    let refused = |status| connection.refused(&status);
    let mut stream = asked.map_err(refused)?.into_inner();
    loop {
        // What has come is taken first: it may be the end.
        let event = select! {
            biased;
            event = stream.message() => event.map_err(refused)?,
            () = given_up.cancelled() => {
                pulled.given_up = true;
                return Ok(pulled);
            }
        };
        let Some(event) = event else {
            break;
        };
        match event.event {
            Some(Event::Begun(begun)) => pulled.begun = begun,
            Some(Event::Outcomes(outcomes)) => {
                let landed = outcomes.outcomes.into_iter().map(|it| Landed {
                    kind: it.kind().into(),
                    tensor: it.tensor.unwrap_or_default().into(),
                    region_offset: it.region_offset,
                    detail: lent(it.detail),
                });
                pulled.landed.extend(landed);
                if pulled.landed.len() > KVF_MAX_TENSORS {
                    let text = "the agent gave more outcomes than a set has tensors";
                    return Err(Failure::new(Cause::UnknownReason, text));
                }
            }
            Some(Event::Summary(summary)) => {
                // Which set it was must be known of what has landed.
                digest(&pulled.begun.digest)?;
                pulled.summary = summary;
                return Ok(pulled);
            }
            Some(Event::Progress(_)) | None => {}
        }
    }
    Err(Failure::lost(
        &connection.agent,
        "the pull's outcomes broke off",
    ))
}

/// What became of one of the tensors, from 0 on. `tensor.size` is to be set.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_landed_at(
    landed: *const kvf_landed,
    index: usize,
    tensor: *mut kvf_landed_tensor,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let all = &boundary::reference(landed, "the outcomes")?.0;
            let it = all.get(index).ok_or_else(|| beyond(index, all.len()))?;
            let told = kvf_landed_tensor {
                size: size_of::<kvf_landed_tensor>(),
                tensor: it.tensor.to_c(),
                kind: it.kind as u32,
                region_offset: it.region_offset,
                detail: it.detail.as_ptr(),
            };
            boundary::write_sized(tensor, &told, "kvf_landed_tensor")
        })
    }
}

/// Frees outcomes, with their texts. NULL is nothing to free.
///
/// # Safety
/// The rules at the top; the last call with these.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_landed_free(landed: *mut kvf_landed) {
    // SAFETY: they came from Box::into_raw, and this is the last call with them.
    unsafe { boundary::free(landed) };
}
