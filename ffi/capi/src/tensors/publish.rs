//! Publishing a set of tensors that lies in the caller's regions.

use std::{ffi::c_int, time::Duration};

use kvferry_proto::pb;

use super::words::{
    digest, identity, kvf_chunk_run, kvf_digest, kvf_source, kvf_source_id, kvf_tensor,
    source_bytes, source_id, tensors,
};
use crate::{
    agent::{handle, kvf_agent},
    boundary::{self, Growing, guard},
    kvf_error, kvf_status,
    slots::wait_announced,
    words::{KVF_UNREGISTER_WITH_IT, flags},
};

/// Sealing reads every byte of a set where its namespace wants checksums.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(120);
/// Most runs that are taken; the agent takes fewer.
const MAX_RUNS: usize = 4096;
/// Tensors in a message: some 100 bytes each, far below what a message may have.
const TENSORS_PER_MESSAGE: usize = 1024;

/// A set of tensors of one rank, and what came of publishing it. All bits zero but `size` and what is needed.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_publication {
    /// sizeof(kvf_publication).
    pub size: usize,
    /// In: where the chunks lie.
    pub runs: *const kvf_chunk_run,
    /// In: at most 64.
    pub run_count: usize,
    /// In: the tensors.
    pub tensors: *const kvf_tensor,
    /// In: 1 to KVF_MAX_TENSORS.
    pub tensor_count: usize,
    /// In: which rank.
    pub rank: u32,
    /// In: 0 only announces the set; 1 seals its chunks, so that others can pull it. The memory must not be written to from
    /// then on until it is withdrawn.
    pub ready: u32,
    /// In: KVF_UNREGISTER_WITH_IT.
    pub flags: u32,
    /// In: wait at most this long until every coordinator lists it; 0: do not wait; at most 60,000.
    pub wait_announced_ms: u32,
    /// Out: its id.
    pub source: kvf_source_id,
    /// Out: of the tensors.
    pub digest: kvf_digest,
    /// Out: 1 where every coordinator lists it, 0 where one had not confirmed in time.
    pub announced: c_int,
}

// SAFETY: repr(C), begins with its size, pointers, integers and arrays of them only.
unsafe impl Growing for kvf_publication {
    const FIRST_SIZE: usize = size_of::<Self>();
}

/// Publishes a set of tensors that lies in regions of the caller's. Again with `ready` 1 moves it from announced to ready.
/// KVF_SOURCE_EXISTS: other tensors are published under that name here. Within 120 seconds and wait_announced_ms: where
/// the namespace has checksums, every byte is read.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_tensors_publish(
    agent: *const kvf_agent,
    source: *const kvf_source,
    publication: *mut kvf_publication,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let connection = handle(agent)?.connection();
            let given = boundary::sized(publication.cast_const(), "kvf_publication")?;
            let runs = boundary::slice(given.runs, given.run_count, MAX_RUNS, "runs")?;
            let wait = wait_announced(given.wait_announced_ms)?;
            let header = pb::PublishTensorsHeader {
                identity: Some(identity(source)?),
                rank: given.rank,
                runs: runs.iter().map(run).collect(),
                ready: given.ready != 0,
                unregister_with_it: flags(given.flags, KVF_UNREGISTER_WITH_IT)? != 0,
                wait_announced_ms: given.wait_announced_ms,
            };
            let messages = messages(header, tensors(given.tensors, given.tensor_count)?);
            let answer = connection.call_tensors(PUBLISH_TIMEOUT + wait, |mut api| async move {
                api.publish(tokio_stream::iter(messages)).await
            })?;
            let told = kvf_publication {
                source: source_id(&answer.source)?,
                digest: digest(&answer.digest)?,
                announced: c_int::from(answer.announced),
                ..given
            };
            boundary::write_sized(publication, &told, "kvf_publication")
        })
    }
}

fn run(run: &kvf_chunk_run) -> pb::ChunkRun {
    pb::ChunkRun {
        region: run.region,
        first_slot: run.first_slot,
        slots: run.slots,
    }
}

fn messages(
    header: pb::PublishTensorsHeader,
    mut tensors: Vec<pb::TensorDescriptor>,
) -> Vec<pb::PublishTensorsRequest> {
    let mut messages = vec![pb::PublishTensorsRequest {
        header: Some(header),
        tensors: Vec::new(),
    }];
    while !tensors.is_empty() {
        let rest = tensors.split_off(TENSORS_PER_MESSAGE.min(tensors.len()));
        messages.push(pb::PublishTensorsRequest {
            header: None,
            tensors,
        });
        tensors = rest;
    }
    messages
}

/// Ends a publication of this agent's: its chunks are gone at once, and others are told. `*withdrawn` (may be NULL) is 0 where
/// nothing of that name was published. Within call_timeout_ms.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_tensors_withdraw(
    agent: *const kvf_agent,
    source: *const kvf_source_id,
    rank: u32,
    withdrawn: *mut c_int,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let connection = handle(agent)?.connection();
            let place = boundary::optional_out(withdrawn, "withdrawn")?;
            let source = source_bytes(source)?;
            let request = pb::WithdrawTensorsRequest { source, rank };
            let answer = connection.call_tensors(connection.timeout, |mut api| async move {
                api.withdraw(request).await
            })?;
            if let Some(place) = place {
                place.set(c_int::from(answer.withdrawn));
            }
            Ok(())
        })
    }
}
