//! The namespaces of a world, and the numbers of its blocks: a namespace in the upper bits, a hash in the lower ones. So
//! two blocks that have one hash in two namespaces are two blocks, to the simulation's books.

use std::collections::BTreeMap;

use kvferry_proto::{
    BlockHash, ChecksumPolicy, HashLen, Layout, NamespaceName, NamespaceSpec, PackedHashes,
};

use crate::random::Random;

/// Blocks of engines: in every world.
pub(crate) const MODEL: usize = 0;
/// Another tenant's, under the same hashes.
pub(crate) const OTHER: usize = 1;
/// Chunks of sets of tensors.
pub(crate) const WEIGHTS: usize = 2;

/// Bits of a hash's number.
const HASH_BITS: u32 = 40;
/// Bytes of a chunk of tensors: three of an oracle's words, so that tensors begin and end anywhere in one.
const CHUNK_BYTES: u64 = 48;

/// A block's number.
#[must_use]
pub(crate) fn number(namespace: usize, hash: u64) -> u64 {
    (namespace as u64) << HASH_BITS | hash
}

/// The namespace a block is in.
#[must_use]
pub(crate) fn namespace_of(number: u64) -> usize {
    (number >> HASH_BITS) as usize
}

/// See the module's page.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    specs: [NamespaceSpec; 3],
    chunks: BTreeMap<u64, BlockHash>,
    numbers: BTreeMap<BlockHash, u64>,
}

impl Names {
    /// Blocks of engines are `plane` bytes twice.
    pub(crate) fn new(seed: u64, plane: u64, checksum: ChecksumPolicy) -> Self {
        let mut random = Random::of(seed, 18);
        // Of one layout: then nothing but its name keeps a block from another tenant.
        let others = random.pick(&[plane, plane, plane + 8]);
        let others_checksum = random.pick(&[ChecksumPolicy::Off, ChecksumPolicy::Always]);
        let weights_checksum = random.pick(&[ChecksumPolicy::Off, ChecksumPolicy::Always]);
        Self {
            specs: [
                spec("simulated/model", (2, plane), 8, checksum),
                spec("simulated/other", (2, others), 8, others_checksum),
                spec("weights", (1, CHUNK_BYTES), 16, weights_checksum),
            ],
            chunks: BTreeMap::new(),
            numbers: BTreeMap::new(),
        }
    }

    /// What a namespace is.
    pub(crate) fn spec(&self, namespace: usize) -> &NamespaceSpec {
        &self.specs[namespace]
    }

    /// Of the namespace that a block is in.
    pub(crate) fn spec_of(&self, number: u64) -> &NamespaceSpec {
        self.spec(namespace_of(number))
    }

    /// How many there are, in any world.
    pub(crate) fn count(&self) -> usize {
        self.specs.len()
    }

    /// The namespace of a name.
    pub(crate) fn namespace(&self, name: &NamespaceName) -> Option<usize> {
        self.specs.iter().position(|spec| spec.name == *name)
    }

    /// The n-th chunk that there is has this name.
    pub(crate) fn name_chunk(&mut self, chunk: u64, hash: BlockHash) {
        let number = number(WEIGHTS, chunk);
        self.chunks.insert(number, hash);
        self.numbers.insert(hash, number);
    }

    /// A block's hash as the system knows it.
    #[must_use]
    pub(crate) fn hash(&self, number: u64) -> BlockHash {
        if namespace_of(number) == WEIGHTS
            && let Some(chunk) = self.chunks.get(&number)
        {
            return *chunk;
        }
        let plain = number & ((1 << HASH_BITS) - 1);
        match BlockHash::new(&plain.to_be_bytes()) {
            Ok(hash) => hash,
            Err(error) => unreachable!("eight bytes are a hash: {error}"),
        }
    }

    /// The block of a hash.
    #[must_use]
    pub(crate) fn number(&self, namespace: usize, hash: &[u8]) -> Option<u64> {
        if namespace == WEIGHTS {
            let hash = BlockHash::new(hash).ok()?;
            return self.numbers.get(&hash).copied();
        }
        let plain = hash.try_into().ok().map(u64::from_be_bytes)?;
        Some(number(namespace, plain))
    }

    /// As the system knows them: blocks of one namespace.
    #[must_use]
    pub(crate) fn pack(&self, namespace: usize, numbers: &[u64]) -> PackedHashes {
        let hashes: Vec<_> = numbers.iter().map(|number| self.hash(*number)).collect();
        match PackedHashes::pack(self.spec(namespace).hash_len, &hashes) {
            Ok(packed) => packed,
            Err(error) => unreachable!("hashes of the namespace's length: {error}"),
        }
    }
}

fn spec(name: &str, planes: (u32, u64), hash: usize, checksum: ChecksumPolicy) -> NamespaceSpec {
    let layout = Layout::new("u8", 1, planes.0, planes.1);
    let parts = (NamespaceName::new(name), layout, HashLen::new(hash));
    let (Ok(name), Ok(layout), Ok(hash_len)) = parts else {
        unreachable!("a name, a few planes and a hash's length are in order");
    };
    NamespaceSpec {
        name,
        layout,
        hash_len,
        checksum,
    }
}
