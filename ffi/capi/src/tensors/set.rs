//! What a source's rank consists of.

use kvferry_client::{Cause, Connection, Failure};
use kvferry_proto::pb;

use super::{
    beyond,
    texts::Tensor,
    words::{
        KVF_MAX_TENSORS, digest, digest_bytes, kvf_digest, kvf_source_id, kvf_tensor, source_bytes,
    },
};
use crate::{
    agent::{handle, kvf_agent},
    boundary::{self, Growing, guard},
    kvf_error, kvf_status,
};

/// A set of tensors of a rank.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_tensor_set {
    /// sizeof(kvf_tensor_set).
    pub size: usize,
    /// Which set: for pulls that are to get this one.
    pub digest: kvf_digest,
    /// Bytes of a chunk: a block of the namespace.
    pub chunk_bytes: u64,
    /// Chunks it lies in.
    pub chunks: u32,
    /// How many tensors there are.
    pub count: usize,
}

// SAFETY: repr(C), begins with its size, integers and arrays of them only.
unsafe impl Growing for kvf_tensor_set {
    const FIRST_SIZE: usize = size_of::<Self>();
}

/// Tensors of a set, by name.
pub struct kvf_tensors(Vec<Tensor>);

/// The tensors of a source's rank: `*set` says what there is (its size is to be set), and `*tensors` are the caller's, to be given
/// to kvf_tensors_free. `digest`: of the set wanted where workers differ; NULL: the one with most ready workers.
/// KVF_SOURCE_UNKNOWN: there is none. Within call_timeout_ms for each 8,192 tensors.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_source_tensors(
    agent: *const kvf_agent,
    source: *const kvf_source_id,
    rank: u32,
    digest_of: *const kvf_digest,
    set: *mut kvf_tensor_set,
    tensors: *mut *mut kvf_tensors,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let connection = handle(agent)?.connection();
            let place = boundary::out(tensors, "the place for the tensors")?;
            let request = pb::GetSourceRequest {
                source: source_bytes(source)?,
                rank,
                digest: digest_bytes(digest_of)?,
                ..pb::GetSourceRequest::default()
            };
            let got = pages(connection, request)?;
            let told = kvf_tensor_set {
                size: size_of::<kvf_tensor_set>(),
                digest: digest(&got.digest)?,
                chunk_bytes: got.chunk_bytes,
                chunks: got.chunks,
                count: got.tensors.len(),
            };
            boundary::write_sized(set, &told, "kvf_tensor_set")?;
            let tensors = got.tensors.into_iter().map(Tensor::from).collect();
            place.set(Box::into_raw(Box::new(kvf_tensors(tensors))));
            Ok(())
        })
    }
}

/// All pages of one set.
fn pages(
    connection: &Connection,
    mut request: pb::GetSourceRequest,
) -> Result<pb::GetSourceResponse, Failure> {
    let ask = |request: pb::GetSourceRequest| {
        connection.call_tensors(connection.timeout, |mut api| async move {
            api.get_source(request).await
        })
    };
    let mut got = ask(request.clone())?;
    request.digest = got.digest.clone();
    while got.tensors.len() < (got.tensor_count as usize).min(KVF_MAX_TENSORS) {
        request.first = got.tensors.len() as u32; // at most KVF_MAX_TENSORS
        let page = ask(request.clone())?;
        if page.tensors.is_empty() {
            return Err(Failure::new(
                Cause::UnknownReason,
                "the coordinator named more tensors than it gives",
            ));
        }
        got.tensors.extend(page.tensors);
    }
    Ok(got)
}

/// One of the tensors, from 0 on. Its texts and its shape belong to the tensors.
///
/// # Safety
/// The rules at the top.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_tensors_at(
    tensors: *const kvf_tensors,
    index: usize,
    tensor: *mut kvf_tensor,
    error: *mut kvf_error,
) -> kvf_status {
    // SAFETY: what the header demands of the caller is what these demand.
    unsafe {
        guard(error, || {
            let all = &boundary::reference(tensors, "the tensors")?.0;
            let place = boundary::out(tensor, "the place for the tensor")?;
            let it = all.get(index).ok_or_else(|| beyond(index, all.len()))?;
            place.set(it.to_c());
            Ok(())
        })
    }
}

/// Frees tensors, with their texts. NULL is nothing to free.
///
/// # Safety
/// The rules at the top; the last call with these.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvf_tensors_free(tensors: *mut kvf_tensors) {
    // SAFETY: they came from Box::into_raw, and this is the last call with them.
    unsafe { boundary::free(tensors) };
}
