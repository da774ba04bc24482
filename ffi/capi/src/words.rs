//! What several calls speak of: namespaces, geometries, hashes.

use std::ffi::c_char;

use bytes::Bytes;
use kvferry_client::{Cause, Failure};
use kvferry_proto::{MAX_HASHES_PER_REQUEST, MAX_PLANES, pb};

use crate::boundary::{self, Growing};

/// Most hashes, and most slots, of one call.
pub const KVF_MAX_HASHES: usize = 65_536;
const _: () = assert!(KVF_MAX_HASHES == MAX_HASHES_PER_REQUEST);

/// Flag of a region: it stays when the connection ends. The caller promises that nothing writes to the
/// memory except into slots it has reserved, also after a restart. Pools always stay.
pub const KVF_KEEP_ON_DISCONNECT: u32 = 1;
/// Flag of a pool: its memory is made of huge pages.
pub const KVF_HUGEPAGES: u32 = 2;
/// Flag of a pull: what was pulled is not published as a replica.
pub const KVF_NO_REPLICA: u32 = 4;
/// Flag of a seal, put or pull: the hashes are a chain, each one's parent the one before it; lets eviction take
/// leaves first. The first one's parent is `parent`, or nothing where that is NULL.
pub const KVF_CHAINED: u32 = 8;

/// Flag of a pull of tensors: only the chunks wanted, one after another.
pub const KVF_PACKED: u32 = 16;
/// Flag of a pull of tensors: into new memory of the agent, to be mapped by kvf_region_open.
pub const KVF_FRESH_MEMORY: u32 = 32;
/// Flag of a pull of tensors: publish the set here when all of it has come.
pub const KVF_SERVE: u32 = 64;
/// Flag of a publication of tensors: its regions are unregistered with it.
pub const KVF_UNREGISTER_WITH_IT: u32 = 128;

/// Which blocks a reader checks against the checksum they were sealed with.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum kvf_checksum {
    /// None.
    KVF_CHECKSUM_OFF = 1,
    /// One in 16, chosen by its hash.
    KVF_CHECKSUM_SAMPLED = 2,
    /// All.
    KVF_CHECKSUM_ALWAYS = 3,
}

/// What a namespace is. All who name the same one must agree on all of it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_namespace {
    /// sizeof(kvf_namespace).
    pub size: usize,
    /// 1 to 256 bytes: tenant, model, and what else keeps blocks apart.
    pub name: *const c_char,
    /// Free name of the element type ("bf16"), 1 to 32 bytes.
    pub dtype: *const c_char,
    /// Tokens of a block.
    pub tokens_per_block: u32,
    /// Pieces a block falls into, e.g. layers x (K, V); at most 1024.
    pub plane_count: u32,
    /// Bytes of each; a block has plane_count x plane_bytes, at most 1 GiB.
    pub plane_bytes: u64,
    /// Bytes of a block's hash, 8 to 64.
    pub hash_len: u32,
    /// A kvf_checksum; 0 means KVF_CHECKSUM_OFF.
    pub checksum: u32,
}

// SAFETY: repr(C), begins with its size, pointers and integers only.
unsafe impl Growing for kvf_namespace {
    const FIRST_SIZE: usize = size_of::<Self>();
}

/// # Safety
/// `namespace` is NULL or as the header says.
pub(crate) unsafe fn namespace(
    namespace: *const kvf_namespace,
) -> Result<pb::NamespaceSpec, Failure> {
    // SAFETY: the caller's promise.
    let (it, name, dtype) = unsafe {
        let it = boundary::sized(namespace, "kvf_namespace")?;
        let name = boundary::text(it.name, "the namespace's name")?;
        (it, name, boundary::text(it.dtype, "the namespace's dtype")?)
    };
    let checksum = i32::try_from(it.checksum)
        .ok()
        .and_then(|number| pb::ChecksumPolicy::try_from(number).ok())
        .ok_or_else(|| Failure::invalid(format!("checksum {} is none", it.checksum)))?;
    Ok(pb::NamespaceSpec {
        name,
        layout: Some(pb::Layout {
            dtype,
            tokens_per_block: it.tokens_per_block,
            plane_count: it.plane_count,
            plane_bytes: it.plane_bytes,
        }),
        hash_len: it.hash_len,
        checksum: checksum.into(),
    })
}

/// Slot i of a plane is [base + i*stride, +len) of the region's memory.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct kvf_plane {
    /// Bytes from the start of the memory.
    pub base: u64,
    /// Bytes from one slot to the next.
    pub stride: u64,
    /// Bytes of one slot's piece: the namespace's plane_bytes.
    pub len: u64,
}

/// Where the slots of a region lie.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_geometry {
    /// `plane_count` of them.
    pub planes: *const kvf_plane,
    /// At most 1024.
    pub plane_count: usize,
    /// Slots of the region.
    pub slots: u32,
}

/// # Safety
/// `geometry` is NULL or as the header says.
pub(crate) unsafe fn geometry(geometry: *const kvf_geometry) -> Result<pb::Geometry, Failure> {
    // SAFETY: the caller's promise.
    let (slots, planes) = unsafe {
        let it = boundary::reference(geometry, "the geometry")?;
        let planes = boundary::slice(it.planes, it.plane_count, MAX_PLANES, "planes")?;
        (it.slots, planes)
    };
    let planes = planes
        .iter()
        .map(|plane| pb::Plane {
            base: plane.base,
            stride: plane.stride,
            len: plane.len,
        })
        .collect();
    Ok(pb::Geometry { slots, planes })
}

/// Block hashes, back to back.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_hashes {
    /// `count` x `hash_len` bytes.
    pub bytes: *const u8,
    /// Bytes of each hash: the namespace's.
    pub hash_len: u32,
    /// At most KVF_MAX_HASHES.
    pub count: u32,
}

/// # Safety
/// `hashes` is NULL or as the header says.
pub(crate) unsafe fn hashes(hashes: *const kvf_hashes) -> Result<pb::PackedHashes, Failure> {
    // SAFETY: the caller's promise.
    let it = unsafe { boundary::reference(hashes, "hashes") }?;
    if !(8..=64).contains(&it.hash_len) {
        return Err(Failure::new(
            Cause::HashLength,
            format!("hashes of {} bytes; 8 to 64 are allowed", it.hash_len),
        ));
    }
    if it.count as usize > KVF_MAX_HASHES {
        return Err(Failure::new(
            Cause::BoundReached,
            format!(
                "{} hashes; at most {KVF_MAX_HASHES} are allowed in one call: split it",
                it.count
            ),
        ));
    }
    let len = it.count as usize * it.hash_len as usize;
    // SAFETY: the caller's promise.
    let bytes = unsafe { boundary::slice(it.bytes, len, KVF_MAX_HASHES * 64, "bytes of hashes") }?;
    Ok(pb::PackedHashes {
        hash_len: it.hash_len,
        hashes: Bytes::copy_from_slice(bytes),
    })
}

/// How many there are.
pub(crate) fn count(hashes: &pb::PackedHashes) -> usize {
    hashes.hashes.len() / hashes.hash_len.max(1) as usize
}

/// The parent of a chain, `hash_len` bytes; NULL for none.
///
/// # Safety
/// `parent` is NULL or points to `hash_len` bytes.
pub(crate) unsafe fn parent(parent: *const u8, hash_len: u32) -> Result<Bytes, Failure> {
    if parent.is_null() {
        return Ok(Bytes::new());
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { boundary::slice(parent, hash_len as usize, 64, "bytes of a parent") }?;
    Ok(Bytes::copy_from_slice(bytes))
}

/// Flags of which each is one the call knows.
pub(crate) fn flags(given: u32, known: u32) -> Result<u32, Failure> {
    match given & !known {
        0 => Ok(given),
        unknown => Err(Failure::invalid(format!(
            "flags {unknown:#x} mean nothing to this call"
        ))),
    }
}
