//! Blocks by value.

use std::{
    ffi::{c_char, c_int},
    time::{Duration, Instant},
};

use bytes::Bytes;
use kvferry_client::{Cause, Connection, Failure};
use kvferry_proto::pb;
use tokio::sync::{mpsc, oneshot};

use crate::{
    agent::{handle, kvf_agent, timeout},
    boundary::{self, guard},
    kvf_error, kvf_status,
    slots::wait_announced,
    words::{KVF_CHAINED, flags, hashes, kvf_hashes, parent},
};

/// A put that names no timeout.
const DEFAULT_TIMEOUT_MS: u32 = 30_000;
/// Bytes of a message: large enough that messages cost little.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces copied ahead of the socket.
const PIECES_AHEAD: usize = 4;
/// Most bytes of one put: far more than anybody copies, and far below what a slice may be.
const MAX_PUT_BYTES: usize = 1 << 40;

/// What came of a put.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_put_result {
    /// Blocks that are there now and were not before.
    pub stored: u64,
    /// Blocks that were there already.
    pub present: u64,
    /// 1 where every coordinator lists the blocks, 0 where one had not confirmed in time.
    pub announced: c_int,
}

/// Copies blocks into the namespace's pool: reserve, write and seal in one. `data` holds the blocks back to
/// back, `data_bytes` in all. Flags: KVF_CHAINED, with `parent_of` the first hash's parent or NULL.
/// `result` may be NULL. Within timeout_ms (0 means 30,000; at most KVF_MAX_TIMEOUT_MS) and
/// wait_announced_ms (at most 60,000).
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_put(
    agent: *const kvf_agent,
    namespace_name: *const c_char,
    hashes_of: *const kvf_hashes,
    data: *const u8,
    data_bytes: usize,
    flags_given: u32,
    parent_of: *const u8,
    timeout_ms: u32,
    wait_announced_ms: u32,
    result: *mut kvf_put_result,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let agent = handle(agent)?;
            let hashes = hashes(hashes_of)?;
            let place = boundary::optional_out(result, "result")?;
            let given = flags(flags_given, KVF_CHAINED)?;
            let wait = wait_announced(wait_announced_ms)?;
            let bound = timeout(timeout_ms, DEFAULT_TIMEOUT_MS, "timeout_ms")? + wait;
            let first = pb::PutRequest {
                namespace: boundary::text(namespace_name, "namespace_name")?,
                chained: given & KVF_CHAINED != 0,
                parent: parent(parent_of, hashes.hash_len)?,
                hashes: Some(hashes),
                data: Bytes::new(),
                wait_announced_ms,
            };
            let data = boundary::slice(data, data_bytes, MAX_PUT_BYTES, "bytes of blocks")?;
            let answer = put(agent.connection(), first, data, bound)?;
            if let Some(place) = place {
                place.set(kvf_put_result {
                    stored: answer.blocks_stored,
                    present: answer.blocks_already_present,
                    announced: c_int::from(answer.announced),
                });
            }
            Ok(())
        })
    }
}

/// The caller's bytes are copied piece by piece on the caller's thread: nothing of the library's looks at them
/// after it has returned.
fn put(
    connection: &Connection,
    first: pb::PutRequest,
    data: &[u8],
    bound: Duration,
) -> Result<pb::PutResponse, Failure> {
    let deadline = Instant::now() + bound;
    let left = || deadline.saturating_duration_since(Instant::now());
    let (pieces, stream) = mpsc::channel(PIECES_AHEAD);
    let (done, answer) = oneshot::channel();
    let mut api = connection.api();
    let own = connection.clone();
    let call = connection.runtime().spawn(async move {
        let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
        let answer = api.put(stream).await;
        let answer = answer.map_err(|status| own.refused(&status));
        // Nobody waits any more where this cannot be sent.
        let _ = done.send(answer.map(tonic::Response::into_inner));
    });
    let rest = data.chunks(PIECE_BYTES).map(|piece| pb::PutRequest {
        data: Bytes::copy_from_slice(piece),
        ..pb::PutRequest::default()
    });
    let mut result = Ok(true);
    for piece in std::iter::once(first).chain(rest) {
        let pieces = pieces.clone();
        // Where nobody takes it, the call has ended, and its answer says why.
        result = connection.run(left(), async move { Ok(pieces.send(piece).await.is_ok()) });
        match result.as_ref() {
            Ok(true) => {}
            _ => break,
        }
    }
    drop(pieces);
    let answered = result.and_then(|_| {
        connection.run(left(), async move {
            answer.await.unwrap_or_else(|_| {
                Err(Failure::new(
                    Cause::Internal,
                    "a defect in libkvferry, please report it: a put ended without an answer",
                ))
            })
        })
    });
    // Ends it where it has not; half a put is none to the agent, except for whole blocks.
    call.abort();
    answered
}
