//! All tensors of one rank, and the chunks they lie in.

use std::ops::Range;

use sha2::{Digest, Sha256};

use super::{MAX_TENSORS, TableDigest, Tensor, TensorError};
use crate::{MAX_BLOCK_BYTES, MAX_SLOTS, source::first_bytes};

/// All tensors of one rank, in order of their names, and the chunks they lie in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorTable {
    chunk_bytes: u64,
    chunks: u32,
    tensors: Vec<Tensor>,
    digest: TableDigest,
    tensor_bytes: u64,
    encoded_bytes: usize,
}

impl TensorTable {
    /// Checks a set.
    ///
    /// # Errors
    /// [`TensorError`] names what is wrong.
    pub fn new(
        chunk_bytes: u64,
        chunks: u32,
        mut tensors: Vec<Tensor>,
    ) -> Result<Self, TensorError> {
        if chunk_bytes == 0 || chunk_bytes > MAX_BLOCK_BYTES || chunks == 0 || chunks > MAX_SLOTS {
            return Err(TensorError::Chunks {
                chunks,
                chunk_bytes,
            });
        }
        if tensors.is_empty() || tensors.len() > MAX_TENSORS {
            let count = tensors.len();
            return Err(TensorError::Count { count });
        }
        // Below 2^54.
        let total = chunk_bytes * u64::from(chunks);
        tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for pair in tensors.windows(2) {
            if let [one, other] = pair
                && one.name == other.name
            {
                let name = one.name.to_string();
                return Err(TensorError::Twice { name });
            }
        }
        for tensor in &tensors {
            let end = tensor.offset.checked_add(tensor.bytes);
            if end.is_none_or(|end| end > total) {
                let name = tensor.name.to_string();
                return Err(TensorError::Outside { name, total });
            }
        }
        Ok(Self {
            digest: digest(chunk_bytes, chunks, &tensors),
            tensor_bytes: tensors.iter().map(|t| t.bytes).fold(0, u64::saturating_add),
            encoded_bytes: tensors.iter().map(Tensor::encoded_bytes).sum(),
            chunk_bytes,
            chunks,
            tensors,
        })
    }

    /// Bytes of a chunk: a block of the namespace.
    #[must_use]
    pub fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }
    /// How many chunks there are.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        self.chunks
    }
    /// The tensors, in order of their names.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }
    /// What the set is called.
    #[must_use]
    pub fn digest(&self) -> TableDigest {
        self.digest
    }
    /// Bytes of all tensors; those that share bytes count twice.
    #[must_use]
    pub fn tensor_bytes(&self) -> u64 {
        self.tensor_bytes
    }
    /// Bytes the tensors take in messages, and about what they take in memory.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        self.encoded_bytes
    }

    /// The chunks a tensor lies in.
    #[must_use]
    pub fn chunks_of(&self, tensor: &Tensor) -> Range<u32> {
        let first = tensor.offset / self.chunk_bytes;
        let end = match tensor.bytes {
            0 => first,
            bytes => (tensor.offset + bytes).div_ceil(self.chunk_bytes),
        };
        // Within `chunks`, as was checked.
        first as u32..end as u32
    }
}

fn digest(chunk_bytes: u64, chunks: u32, tensors: &[Tensor]) -> TableDigest {
    let mut hasher = Sha256::new();
    hasher.update(b"kvferry tensors v1\0");
    hasher.update(chunk_bytes.to_le_bytes());
    hasher.update(chunks.to_le_bytes());
    for tensor in tensors {
        for text in [&tensor.name, &tensor.dtype] {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.update((tensor.shape.len() as u64).to_le_bytes());
        for size in &tensor.shape {
            hasher.update(size.to_le_bytes());
        }
        hasher.update(tensor.offset.to_le_bytes());
        hasher.update(tensor.bytes.to_le_bytes());
    }
    TableDigest(first_bytes(hasher))
}
