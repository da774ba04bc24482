//! Why a set of tensors is refused.

use super::{DIGEST_BYTES, MAX_DIMENSIONS, MAX_DTYPE, MAX_RUNS, MAX_TENSORS};
use crate::{MAX_BLOCK_BYTES, MAX_SLOTS};

/// Why a set of tensors was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// A name that is empty, too long or not visible.
    #[error("{0}")]
    Name(String),
    /// Two tensors of one name.
    #[error("two tensors are named {name:?}")]
    Twice {
        /// The name.
        name: String,
    },
    /// A dtype that is empty, too long or not printable.
    #[error(
        "tensor {name:?}: the dtype {dtype:?} is not 1 to {MAX_DTYPE} printable ASCII characters"
    )]
    Dtype {
        /// Whose.
        name: String,
        /// As given, cut.
        dtype: String,
    },
    /// Too many dimensions, or elements that cannot be counted.
    #[error(
        "tensor {name:?}: its shape has more than {MAX_DIMENSIONS} dimensions or 2^63 elements"
    )]
    Shape {
        /// Whose.
        name: String,
    },
    /// The shape and dtype make another number of bytes.
    #[error("tensor {name:?}: its shape and dtype make {want} bytes, not {got}")]
    Bytes {
        /// Whose.
        name: String,
        /// As said.
        got: u64,
        /// As computed.
        want: u64,
    },
    /// It ends beyond the last chunk.
    #[error("tensor {name:?} ends beyond the {total} bytes of the set's chunks")]
    Outside {
        /// Whose.
        name: String,
        /// Bytes of all chunks.
        total: u64,
    },
    /// Chunks of no bytes or too many, or too many chunks.
    #[error(
        "{chunks} chunks of {chunk_bytes} bytes; 1 to {MAX_SLOTS} of 1 to {MAX_BLOCK_BYTES} bytes are allowed"
    )]
    Chunks {
        /// How many.
        chunks: u32,
        /// Of how many bytes.
        chunk_bytes: u64,
    },
    /// No tensors, or too many.
    #[error("{count} tensors; 1 to {MAX_TENSORS} are allowed")]
    Count {
        /// How many.
        count: usize,
    },
    /// Bytes that are no digest.
    #[error("a digest of {len} bytes; digests have {DIGEST_BYTES}")]
    Digest {
        /// Bytes given.
        len: usize,
    },
    /// No runs, too many, or one without slots.
    #[error("{runs} runs of chunks, or one without slots; 1 to {MAX_RUNS} are allowed")]
    Runs {
        /// How many.
        runs: usize,
    },
    /// The runs are not as many chunks as the set has.
    #[error("the runs have {got} slots; the set has {want} chunks")]
    RunSlots {
        /// Slots of all runs.
        got: u64,
        /// Chunks.
        want: u32,
    },
    /// Chunk names of another length than are made.
    #[error(
        "a namespace with block hashes of {len} bytes holds no tensors: 16 to 32 bytes are needed"
    )]
    HashLength {
        /// The namespace's.
        len: usize,
    },
}
