//! What the demo moves: real bytes, cut and keyed as an engine would.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use kvferry_proto::{
    BlockHash, ChecksumPolicy, HashLen, InvalidMessage, Layout, NamespaceName, NamespaceSpec,
    chain::{DEFAULT_SEED, Sha256CborChain},
};
use sha2::{Digest, Sha256};

// Llama-3-8B: 32 layers of K and V, 8 KV heads of 128 elements, 2 bytes each, 16 tokens a block.
const TOKENS_PER_BLOCK: u32 = 16;
pub(super) const PLANES: u32 = 64;
pub(super) const PLANE_BYTES: u64 = 16 * 8 * 128 * 2;
/// Bytes of a block.
pub(super) const BLOCK_BYTES: u64 = PLANES as u64 * PLANE_BYTES;

/// Why there is nothing to move.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkloadError {
    #[error("the input {path} cannot be read: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the input {path} is empty: name another with --input", path = path.display())]
    Empty { path: PathBuf },
    #[error(transparent)]
    Namespace(#[from] InvalidMessage),
}

/// A prompt of `blocks` blocks, whose KV bytes are the input, over and over.
#[derive(Debug)]
pub(super) struct Workload {
    input: File,
    input_len: u64,
    path: PathBuf,
    spec: NamespaceSpec,
    hashes: Vec<BlockHash>,
}

impl Workload {
    pub(super) fn open(path: &Path, blocks: u32) -> Result<Self, WorkloadError> {
        let unreadable = |source| WorkloadError::Read {
            path: path.to_owned(),
            source,
        };
        let input = File::open(path).map_err(unreadable)?;
        let input_len = input.metadata().map_err(unreadable)?.len();
        if input_len == 0 {
            return Err(WorkloadError::Empty {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            input,
            input_len,
            path: path.to_owned(),
            spec: spec()?,
            hashes: hashes(blocks),
        })
    }

    pub(super) fn spec(&self) -> &NamespaceSpec {
        &self.spec
    }

    pub(super) fn hashes(&self) -> &[BlockHash] {
        &self.hashes
    }

    pub(super) fn blocks(&self) -> usize {
        self.hashes.len()
    }

    /// The whole prompt.
    pub(super) fn all(&self) -> Range<usize> {
        0..self.blocks()
    }

    /// Reads a block: the input from where the block lies in its endless repetition.
    pub(super) fn read_block(&self, index: usize, block: &mut [u8]) -> Result<(), WorkloadError> {
        let mut at = (index as u64 * BLOCK_BYTES) % self.input_len;
        let mut filled = 0;
        while filled < block.len() {
            let left = usize::try_from(self.input_len - at).unwrap_or(usize::MAX);
            let end = block.len().min(filled.saturating_add(left));
            let read = self.input.read_exact_at(&mut block[filled..end], at);
            read.map_err(|source| WorkloadError::Read {
                path: self.path.clone(),
                source,
            })?;
            filled = end;
            at = 0;
        }
        Ok(())
    }

    /// SHA-256 of a block, read anew from the input.
    pub(super) fn digest(&self, index: usize) -> Result<[u8; 32], WorkloadError> {
        let mut block = vec![0; BLOCK_BYTES as usize];
        self.read_block(index, &mut block)?;
        Ok(Sha256::digest(&block).into())
    }
}

fn spec() -> Result<NamespaceSpec, InvalidMessage> {
    Ok(NamespaceSpec {
        name: NamespaceName::new("demo/llama-3-8b")?,
        layout: Layout::new("bf16", TOKENS_PER_BLOCK, PLANES, PLANE_BYTES)?,
        hash_len: HashLen::new(32)?,
        checksum: ChecksumPolicy::Off,
    })
}

/// As vLLM keys the blocks of a prompt with token ids 0, 1, 2, ...
fn hashes(blocks: u32) -> Vec<BlockHash> {
    let mut chain = Sha256CborChain::new(DEFAULT_SEED);
    (0..blocks)
        .map(|block| {
            let first = block * TOKENS_PER_BLOCK;
            let tokens: Vec<u32> = (first..first + TOKENS_PER_BLOCK).collect();
            chain.next(&tokens)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_keyed_as_vllm_does() {
        let hashes = hashes(2);
        assert_eq!(
            hashes[0].to_string(),
            "dc918a88b139e5afe60b88eda27508d4aee16c10fdc354791efea06206ac0749"
        );
        assert_eq!(
            hashes[1].to_string(),
            "c300ec275d7bf08af8fc63e76cdc0086911bbc7091e03c5cf892553bef84ef0c"
        );
    }

    #[test]
    fn blocks_have_the_shape_of_llama_3_8b() {
        assert_eq!(BLOCK_BYTES, 2 << 20);
        assert_eq!(spec().unwrap().layout.block_bytes(), BLOCK_BYTES);
    }

    #[test]
    fn a_short_input_is_repeated_without_a_seam() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("input");
        // A prime length: no block begins where another did.
        let input: Vec<u8> = (0..1_000_003u32).map(|n| (n % 251) as u8).collect();
        std::fs::write(&path, &input).unwrap();
        let workload = Workload::open(&path, 3).unwrap();
        let mut block = vec![0; BLOCK_BYTES as usize];
        for index in workload.all() {
            workload.read_block(index, &mut block).unwrap();
            let start = index * BLOCK_BYTES as usize;
            for at in [0, 1_000_002, 1_000_003, block.len() - 1] {
                assert_eq!(block[at], input[(start + at) % input.len()], "{index} {at}");
            }
        }
        assert_ne!(workload.digest(0).unwrap(), workload.digest(1).unwrap());
    }

    #[test]
    fn an_empty_input_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let workload = Workload::open(file.path(), 1);
        assert!(matches!(workload, Err(WorkloadError::Empty { .. })));
    }
}
