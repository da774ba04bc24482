//! Hashes of blocks cut from a file: SHA-256 of the parent's hash and the block's bytes.
//!
//! Content addressed: whoever gets a block and its parent's hash can check it. The last block is
//! filled with zeros; the file's length is in the manifest.

use kvferry_proto::{BlockHash, HashError, HashLen};
use sha2::{Digest, Sha256};

/// What the first block is chained on, hashed, so that these hashes never meet an engine's.
const SEED: &[u8] = b"kvferry file chain v1";
/// Shortest hash that still tells contents apart.
const MIN_HASH_BYTES: usize = 16;
/// What SHA-256 gives.
const MAX_HASH_BYTES: usize = 32;

/// Why a namespace cannot hold blocks of files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ContentError {
    /// Its hashes are shorter or longer than a content hash can be.
    #[error(
        "the namespace has hashes of {hash_len} bytes; blocks of files need {MIN_HASH_BYTES} to {MAX_HASH_BYTES}: use another namespace"
    )]
    HashLen { hash_len: usize },
    /// Not a hash.
    #[error(transparent)]
    Hash(#[from] HashError),
}

/// The chain's hash length and its place so far.
#[derive(Debug, Clone)]
pub(crate) struct ContentChain {
    parent: BlockHash,
}

impl ContentChain {
    /// A chain that begins with a file's first block.
    pub(crate) fn start(hash_len: HashLen) -> Result<Self, ContentError> {
        let hash_len = hash_len.get();
        if !(MIN_HASH_BYTES..=MAX_HASH_BYTES).contains(&hash_len) {
            return Err(ContentError::HashLen { hash_len });
        }
        let digest = Sha256::digest(SEED);
        Ok(Self {
            parent: BlockHash::new(&digest[..hash_len])?,
        })
    }

    /// A chain that continues behind a block.
    pub(crate) fn after(parent: BlockHash) -> Self {
        Self { parent }
    }

    /// Begins the next block's hash; its bytes follow in order.
    pub(crate) fn block(&self) -> ContentHasher {
        let mut state = Sha256::new();
        state.update(self.parent.as_bytes());
        ContentHasher {
            state,
            hash_len: self.parent.hash_len(),
        }
    }

    /// Hashes the next whole block.
    pub(crate) fn next(&mut self, bytes: &[u8]) -> Result<BlockHash, ContentError> {
        let mut hasher = self.block();
        hasher.update(bytes);
        self.parent = hasher.finish()?;
        Ok(self.parent)
    }
}

/// One block's hash, while its bytes arrive.
#[derive(Debug, Clone)]
pub(crate) struct ContentHasher {
    state: Sha256,
    hash_len: HashLen,
}

impl ContentHasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
    }

    pub(crate) fn finish(self) -> Result<BlockHash, ContentError> {
        let digest = self.state.finalize();
        Ok(BlockHash::new(&digest[..self.hash_len.get()])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(hash_len: usize) -> ContentChain {
        ContentChain::start(HashLen::new(hash_len).unwrap()).unwrap()
    }

    #[test]
    fn equal_beginnings_have_equal_hashes() {
        let (mut a, mut b) = (chain(32), chain(32));
        assert_eq!(a.next(b"one").unwrap(), b.next(b"one").unwrap());
        assert_ne!(a.next(b"two").unwrap(), b.next(b"2").unwrap());
        // The same bytes behind another parent are another block.
        assert_ne!(a.next(b"x").unwrap(), b.next(b"x").unwrap());
    }

    #[test]
    fn a_block_can_be_checked_from_its_parent_alone() {
        let mut whole = chain(16);
        let first = whole.next(b"first").unwrap();
        let second = whole.next(b"second").unwrap();
        let mut hasher = ContentChain::after(first).block();
        hasher.update(b"sec");
        hasher.update(b"ond");
        assert_eq!(hasher.finish().unwrap(), second);
        assert_eq!(second.as_bytes().len(), 16);
    }

    #[test]
    fn a_hash_is_that_of_parent_and_bytes() {
        let parent = BlockHash::from([7; 32]);
        let mut hasher = ContentChain::after(parent).block();
        hasher.update(b"abc");
        let mut plain = vec![7; 32];
        plain.extend_from_slice(b"abc");
        let expected: [u8; 32] = Sha256::digest(&plain).into();
        assert_eq!(hasher.finish().unwrap(), BlockHash::from(expected));
    }

    #[test]
    fn namespaces_of_other_hashes_are_refused() {
        for len in [8, 15, 33, 64] {
            let start = ContentChain::start(HashLen::new(len).unwrap());
            assert!(matches!(start, Err(ContentError::HashLen { hash_len }) if hash_len == len));
        }
    }
}
