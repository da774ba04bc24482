//! Sources and tensors as C sees them.

use std::ffi::c_char;

use bytes::Bytes;
use kvferry_client::{Cause, Failure};
use kvferry_proto::{MAX_TENSORS, pb};

use crate::boundary::{self, Growing};

/// Most tensors of one set.
pub const KVF_MAX_TENSORS: usize = 131_072;
const _: () = assert!(KVF_MAX_TENSORS == MAX_TENSORS);
/// Most dimensions of a tensor that are taken; the agent takes fewer.
const MAX_DIMENSIONS: usize = 64;
/// Most attributes that are taken; the agent takes fewer.
const MAX_ATTRIBUTES: usize = 256;
/// Most bytes of a content's digest that are taken; the agent takes fewer.
const MAX_CONTENT: usize = 1024;

/// Which source: what its identity hashes to.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct kvf_source_id {
    /// All of it.
    pub bytes: [u8; 16],
}

/// Which set of tensors of a source's rank.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct kvf_digest {
    /// All of it.
    pub bytes: [u8; 16],
}

fn sixteen(given: &Bytes, what: &str) -> Result<[u8; 16], Failure> {
    given[..].try_into().map_err(|_| {
        let text = format!("the agent gave {what} of {} bytes", given.len());
        Failure::new(Cause::UnknownReason, text)
    })
}

pub(super) fn source_id(given: &Bytes) -> Result<kvf_source_id, Failure> {
    sixteen(given, "a source's id").map(|bytes| kvf_source_id { bytes })
}

pub(super) fn digest(given: &Bytes) -> Result<kvf_digest, Failure> {
    sixteen(given, "a digest").map(|bytes| kvf_digest { bytes })
}

/// Of a worker that has not said, nothing but zeros.
pub(super) fn digest_or_none(given: &Bytes) -> kvf_digest {
    digest(given).unwrap_or_default()
}

/// # Safety
/// `source` is NULL or points to one.
pub(super) unsafe fn source_bytes(source: *const kvf_source_id) -> Result<Bytes, Failure> {
    // SAFETY: the caller's promise.
    let source = unsafe { boundary::reference(source, "the source") }?;
    Ok(Bytes::copy_from_slice(&source.bytes))
}

/// NULL: whichever.
///
/// # Safety
/// `digest` is NULL or points to one.
pub(super) unsafe fn digest_bytes(digest: *const kvf_digest) -> Result<Bytes, Failure> {
    if digest.is_null() {
        return Ok(Bytes::new());
    }
    // SAFETY: the caller's promise.
    let digest = unsafe { boundary::reference(digest, "the digest") }?;
    Ok(Bytes::copy_from_slice(&digest.bytes))
}

/// One attribute of a source.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_attribute {
    /// Its key ("quantization").
    pub key: *const c_char,
    /// Its value.
    pub value: *const c_char,
}

/// What a set of tensors is. Whoever publishes the same promises the same bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_source {
    /// sizeof(kvf_source).
    pub size: usize,
    /// Where its chunks are blocks: the namespace of the regions that hold them.
    pub namespace_name: *const c_char,
    /// 1 to 256 bytes: a model's name, say.
    pub name: *const c_char,
    /// At most 128 bytes; NULL for none.
    pub revision: *const c_char,
    /// What else tells it apart; NULL with a count of 0.
    pub attributes: *const kvf_attribute,
    /// How many there are.
    pub attribute_count: usize,
    /// A digest of the content where one is known, else NULL.
    pub content: *const u8,
    /// Its bytes, at most 64.
    pub content_bytes: usize,
    /// Ranks there are; 0 means 1.
    pub world_size: u32,
}

// SAFETY: repr(C), begins with its size, pointers and integers only.
unsafe impl Growing for kvf_source {
    const FIRST_SIZE: usize = size_of::<Self>();
}

/// # Safety
/// `source` is NULL or as the header says.
pub(super) unsafe fn identity(source: *const kvf_source) -> Result<pb::SourceIdentity, Failure> {
    // SAFETY: the caller's promise.
    unsafe {
        let it = boundary::sized(source, "kvf_source")?;
        let given = boundary::slice(
            it.attributes,
            it.attribute_count,
            MAX_ATTRIBUTES,
            "attributes",
        )?;
        let mut attributes = std::collections::HashMap::with_capacity(given.len());
        for one in given {
            let key = boundary::text(one.key, "an attribute's key")?;
            let value = boundary::text(one.value, "an attribute's value")?;
            if attributes.insert(key, value).is_some() {
                return Err(Failure::invalid("an attribute is given twice"));
            }
        }
        let content = boundary::slice(
            it.content,
            it.content_bytes,
            MAX_CONTENT,
            "bytes of content's digest",
        )?;
        Ok(pb::SourceIdentity {
            namespace: boundary::text(it.namespace_name, "namespace_name")?,
            name: boundary::text(it.name, "the source's name")?,
            revision: match it.revision.is_null() {
                true => String::new(),
                false => boundary::text(it.revision, "the revision")?,
            },
            world_size: it.world_size.max(1),
            attributes: attributes.into_iter().collect(),
            content: Bytes::copy_from_slice(content),
        })
    }
}

/// A tensor, contiguous in its set's chunks as if those followed each other.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_tensor {
    /// 1 to 512 bytes; no two of a set have the same.
    pub name: *const c_char,
    /// As safetensors names them ("BF16").
    pub dtype: *const c_char,
    /// `dimensions` of them; NULL for none.
    pub shape: *const u64,
    /// At most 16.
    pub dimensions: usize,
    /// Of its first byte, from the first chunk on.
    pub offset: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// # Safety
/// `tensors` is NULL or points to `count` of them, as the header says.
pub(super) unsafe fn tensors(
    tensors: *const kvf_tensor,
    count: usize,
) -> Result<Vec<pb::TensorDescriptor>, Failure> {
    // SAFETY: the caller's promise.
    let given = unsafe { boundary::slice(tensors, count, KVF_MAX_TENSORS, "tensors") }?;
    let mut all = Vec::with_capacity(given.len());
    for it in given {
        // SAFETY: the caller's promise.
        let (name, dtype, shape) = unsafe {
            (
                boundary::text(it.name, "a tensor's name")?,
                boundary::text(it.dtype, "a tensor's dtype")?,
                boundary::slice(it.shape, it.dimensions, MAX_DIMENSIONS, "dimensions")?,
            )
        };
        all.push(pb::TensorDescriptor {
            name,
            dtype,
            shape: shape.to_vec(),
            offset: it.offset,
            bytes: it.bytes,
        });
    }
    Ok(all)
}

/// Chunks of a set that lie in consecutive slots of a region. A set's runs follow each other from chunk 0 on.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_chunk_run {
    /// Which region: of the caller's, not a pool.
    pub region: u32,
    /// Where the first chunk of the run lies.
    pub first_slot: u32,
    /// How many slots.
    pub slots: u32,
}

/// How a source, or one worker of it, stands.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum kvf_source_state {
    /// Announced, not complete yet.
    KVF_SOURCE_INITIALISING = 1,
    /// Can be pulled; of a source: every rank.
    KVF_SOURCE_READY = 2,
    /// Was ready, and may not be.
    KVF_SOURCE_STALE = 3,
    /// Ended; remembered for a minute.
    KVF_SOURCE_GONE = 4,
}

/// Why a worker is stale or gone.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum kvf_source_cause {
    /// Neither.
    KVF_CAUSE_NONE = 0,
    /// Stale: its node is silent.
    KVF_CAUSE_SESSION = 1,
    /// Stale: readers could not read from it.
    KVF_CAUSE_READERS = 2,
    /// Stale: its owner writes to the memory.
    KVF_CAUSE_REWRITTEN = 3,
    /// Gone: with its node.
    KVF_CAUSE_NODE = 4,
    /// Gone: a later lifetime of the node came.
    KVF_CAUSE_FENCED = 5,
    /// Gone: withdrawn.
    KVF_CAUSE_WITHDRAWN = 6,
    /// Gone: removed by an operator.
    KVF_CAUSE_REMOVED = 7,
}
