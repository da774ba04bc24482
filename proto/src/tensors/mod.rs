//! A set of tensors: where each lies in the chunks the set is cut into, and what the chunks are called.
//!
//! The chunks of a set are blocks of one namespace, and a block's hash names the source, the rank, the
//! set's digest and the chunk's number. So two workers that publish the same set publish the same
//! blocks, whatever their regions are, and workers whose sets differ in anything share none.

mod chunks;
mod digest;
mod error;
mod table;
mod tensor;

pub use chunks::{ChunkRun, ChunkRuns, Chunks};
pub use digest::TableDigest;
pub use error::TensorError;
pub use table::TensorTable;
pub use tensor::Tensor;

/// Most tensors of one rank: the largest mixtures of experts have 92,000 in their files.
pub const MAX_TENSORS: usize = 1 << 17;
/// Most runs of one worker: an engine's weights lie in a few arenas.
pub const MAX_RUNS: usize = 64;
/// Longest tensor name, in bytes.
const MAX_TENSOR_NAME: usize = 512;
/// Longest dtype name, in bytes.
const MAX_DTYPE: usize = 32;
/// Most dimensions.
const MAX_DIMENSIONS: usize = 16;
/// Bytes of a digest.
const DIGEST_BYTES: usize = 16;

#[cfg(test)]
mod tests;
