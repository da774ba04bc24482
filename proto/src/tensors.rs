//! A set of tensors: where each lies in the chunks the set is cut into, and what the chunks are called.
//!
//! The chunks of a set are blocks of one namespace, and a block's hash names the source, the rank, the
//! set's digest and the chunk's number. So two workers that publish the same set publish the same
//! blocks, whatever their regions are, and workers whose sets differ in anything share none.

use std::{fmt, ops::Range};

use sha2::{Digest, Sha256};

use crate::{
    BlockHash, HashLen, InvalidMessage, MAX_BLOCK_BYTES, MAX_SLOTS, RegionId, SourceId, pb,
    source::{first_bytes, visible},
};

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

/// What a set of tensors is called: equal exactly where everything about two sets is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableDigest([u8; DIGEST_BYTES]);

impl TableDigest {
    /// The least of all.
    pub const MIN: Self = Self([0; DIGEST_BYTES]);
    /// The greatest of all.
    pub const MAX: Self = Self([u8::MAX; DIGEST_BYTES]);

    /// Takes a digest's bytes.
    ///
    /// # Errors
    /// [`TensorError::Digest`].
    pub fn new(bytes: &[u8]) -> Result<Self, TensorError> {
        match bytes.try_into() {
            Ok(bytes) => Ok(Self(bytes)),
            Err(_) => Err(TensorError::Digest { len: bytes.len() }),
        }
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for TableDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl fmt::Debug for TableDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One tensor of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    name: Box<str>,
    dtype: Box<str>,
    shape: Box<[u64]>,
    offset: u64,
    bytes: u64,
}

impl Tensor {
    /// Its name, unique in the set.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Bytes from the first chunk's first.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }
    /// How many it has; may be 0.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes it takes in a message, at most.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        // Tags, lengths and numbers at their longest.
        self.name.len() + self.dtype.len() + 10 * self.shape.len() + 48
    }
}

impl TryFrom<pb::TensorDescriptor> for Tensor {
    type Error = TensorError;
    fn try_from(message: pb::TensorDescriptor) -> Result<Self, TensorError> {
        let name = message.name;
        visible("tensor name", &name, 1, MAX_TENSOR_NAME)
            .map_err(|error| TensorError::Name(error.to_string()))?;
        let dtype = message.dtype;
        if dtype.is_empty()
            || dtype.len() > MAX_DTYPE
            || !dtype.bytes().all(|b| b.is_ascii_graphic())
        {
            let dtype = dtype.chars().take(MAX_DTYPE * 2).collect();
            return Err(TensorError::Dtype { name, dtype });
        }
        let elements = message
            .shape
            .iter()
            .try_fold(1u64, |all, size| all.checked_mul(*size))
            .filter(|all| *all < 1 << 60 && message.shape.len() <= MAX_DIMENSIONS);
        let Some(elements) = elements else {
            return Err(TensorError::Shape { name });
        };
        if let Some(bits) = bits_of(&dtype) {
            // Below 2^66 bits, so in u128.
            let want = (u128::from(elements) * u128::from(bits)).div_ceil(8);
            if want != u128::from(message.bytes) {
                return Err(TensorError::Bytes {
                    name,
                    got: message.bytes,
                    want: u64::try_from(want).unwrap_or(u64::MAX),
                });
            }
        }
        Ok(Self {
            name: name.into(),
            dtype: dtype.into(),
            shape: message.shape.into(),
            offset: message.offset,
            bytes: message.bytes,
        })
    }
}

impl From<&Tensor> for pb::TensorDescriptor {
    fn from(tensor: &Tensor) -> Self {
        Self {
            name: tensor.name.to_string(),
            dtype: tensor.dtype.to_string(),
            shape: tensor.shape.to_vec(),
            offset: tensor.offset,
            bytes: tensor.bytes,
        }
    }
}

/// Bits of an element, for the names whose meaning is fixed (safetensors'); None for others.
fn bits_of(dtype: &str) -> Option<u8> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

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

/// The names of one worker's chunks.
#[derive(Debug, Clone)]
pub struct Chunks {
    start: Sha256,
    hash_len: HashLen,
}

impl Chunks {
    /// Chunks of a source's rank with this set of tensors, named with so many bytes.
    ///
    /// # Errors
    /// [`TensorError::HashLength`] outside 16 to 32 bytes: fewer could meet by chance.
    pub fn new(
        source: SourceId,
        rank: u32,
        digest: TableDigest,
        hash_len: HashLen,
    ) -> Result<Self, TensorError> {
        if !(16..=32).contains(&hash_len.get()) {
            let len = hash_len.get();
            return Err(TensorError::HashLength { len });
        }
        let mut start = Sha256::new();
        start.update(b"kvferry chunk v1\0");
        start.update(source.as_bytes());
        start.update(rank.to_le_bytes());
        start.update(digest.as_bytes());
        Ok(Self { start, hash_len })
    }

    /// The block hash of a chunk.
    #[must_use]
    pub fn hash(&self, chunk: u32) -> BlockHash {
        let mut hasher = self.start.clone();
        hasher.update(chunk.to_le_bytes());
        BlockHash::from(first_bytes::<32>(hasher)).cut(self.hash_len)
    }
}

/// Consecutive chunks in consecutive slots of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRun {
    /// The region.
    pub region: RegionId,
    /// The first chunk's slot.
    pub first_slot: u32,
    /// How many.
    pub slots: u32,
}

/// Where a worker's chunks lie: runs that follow each other from chunk 0 on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRuns(Box<[ChunkRun]>);

impl ChunkRuns {
    /// Checks runs.
    ///
    /// # Errors
    /// [`TensorError::Runs`].
    pub fn new(runs: impl IntoIterator<Item = ChunkRun>) -> Result<Self, TensorError> {
        let runs: Box<[_]> = runs.into_iter().take(MAX_RUNS + 1).collect();
        let bad =
            |run: &ChunkRun| run.slots == 0 || run.first_slot.checked_add(run.slots).is_none();
        if runs.is_empty() || runs.len() > MAX_RUNS || runs.iter().any(bad) {
            return Err(TensorError::Runs { runs: runs.len() });
        }
        Ok(Self(runs))
    }

    /// The runs.
    #[must_use]
    pub fn as_slice(&self) -> &[ChunkRun] {
        &self.0
    }

    /// Are they as many slots as a set has chunks?
    ///
    /// # Errors
    /// [`TensorError::RunSlots`].
    pub fn covers(&self, chunks: u32) -> Result<(), TensorError> {
        match self.slots() {
            got if got == u64::from(chunks) => Ok(()),
            got => Err(TensorError::RunSlots { got, want: chunks }),
        }
    }

    /// Slots of all runs.
    #[must_use]
    pub fn slots(&self) -> u64 {
        self.0.iter().map(|run| u64::from(run.slots)).sum()
    }
}

impl TryFrom<Vec<pb::ChunkRun>> for ChunkRuns {
    type Error = InvalidMessage;
    fn try_from(runs: Vec<pb::ChunkRun>) -> Result<Self, InvalidMessage> {
        let run = |run: pb::ChunkRun| ChunkRun {
            region: RegionId(run.region),
            first_slot: run.first_slot,
            slots: run.slots,
        };
        Ok(Self::new(runs.into_iter().map(run))?)
    }
}

impl From<&ChunkRuns> for Vec<pb::ChunkRun> {
    fn from(runs: &ChunkRuns) -> Self {
        let run = |run: &ChunkRun| pb::ChunkRun {
            region: run.region.0,
            first_slot: run.first_slot,
            slots: run.slots,
        };
        runs.0.iter().map(run).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(name: &str, offset: u64, elements: u64) -> pb::TensorDescriptor {
        pb::TensorDescriptor {
            name: name.into(),
            dtype: "BF16".into(),
            shape: vec![elements],
            offset,
            bytes: 2 * elements,
        }
    }

    fn tensor(name: &str, offset: u64, elements: u64) -> Tensor {
        Tensor::try_from(message(name, offset, elements)).unwrap()
    }

    #[test]
    fn a_set_is_the_same_in_any_order_and_another_with_any_change() {
        let (a, b) = (tensor("a", 0, 10), tensor("b", 20, 600));
        let one = TensorTable::new(1024, 2, vec![a.clone(), b.clone()]).unwrap();
        let other = TensorTable::new(1024, 2, vec![b.clone(), a.clone()]).unwrap();
        assert_eq!(one, other);
        assert_eq!(one.tensor_bytes(), 1220);
        assert_eq!(one.chunks_of(&a), 0..1);
        assert_eq!(one.chunks_of(&b), 0..2);
        for changed in [
            TensorTable::new(1024, 3, vec![a.clone(), b.clone()]),
            TensorTable::new(2048, 2, vec![a.clone(), b.clone()]),
            TensorTable::new(1024, 2, vec![tensor("a", 2, 10), b.clone()]),
            TensorTable::new(1024, 2, vec![tensor("c", 0, 10), b]),
            TensorTable::new(1024, 2, vec![a]),
        ] {
            assert_ne!(changed.unwrap().digest(), one.digest());
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        use TensorError as E;
        let table = |tensors| TensorTable::new(1024, 2, tensors).unwrap_err();
        let a = || tensor("a", 0, 1);
        assert!(matches!(table(vec![]), E::Count { count: 0 }));
        assert!(matches!(table(vec![a(), a()]), E::Twice { .. }));
        assert!(matches!(
            table(vec![tensor("a", 2040, 5)]),
            E::Outside { .. }
        ));
        assert!(matches!(
            table(vec![tensor("a", u64::MAX, 5)]),
            E::Outside { .. }
        ));
        assert!(TensorTable::new(0, 1, vec![a()]).is_err());
        assert!(TensorTable::new(1, MAX_SLOTS + 1, vec![a()]).is_err());

        let refused = |change: fn(&mut pb::TensorDescriptor)| {
            let mut message = message("a", 0, 3);
            change(&mut message);
            Tensor::try_from(message).unwrap_err()
        };
        assert!(matches!(refused(|t| t.bytes = 7), E::Bytes { want: 6, .. }));
        assert!(matches!(refused(|t| t.name.clear()), E::Name(_)));
        assert!(matches!(
            refused(|t| t.dtype = "a b".into()),
            E::Dtype { .. }
        ));
        assert!(matches!(
            refused(|t| t.shape = vec![1 << 40; 2]),
            E::Shape { .. }
        ));
        assert!(matches!(
            refused(|t| t.shape = vec![1; 17]),
            E::Shape { .. }
        ));
        // A name whose size is not known is taken as it is.
        let mut odd = message("a", 0, 3);
        (odd.dtype, odd.bytes) = ("Q4_K".into(), 5);
        assert!(Tensor::try_from(odd).is_ok());

        let run = |slots| ChunkRun {
            region: RegionId(1),
            first_slot: 0,
            slots,
        };
        assert!(ChunkRuns::new([]).is_err());
        assert!(ChunkRuns::new([run(0)]).is_err());
        assert!(ChunkRuns::new(vec![run(1); MAX_RUNS + 1]).is_err());
        let runs = ChunkRuns::new([run(2), run(3)]).unwrap();
        assert_eq!(runs.covers(5), Ok(()));
        assert!(runs.covers(6).is_err());
    }

    #[test]
    fn chunks_of_different_workers_are_different_blocks() {
        let id = |n: u8| SourceId::new(&[n; 16]).unwrap();
        let digest = |n: u8| TableDigest::new(&[n; 16]).unwrap();
        let len = HashLen::new(32).unwrap();
        let chunks = |source, rank, set| Chunks::new(id(source), rank, digest(set), len).unwrap();
        let all = [
            chunks(1, 0, 1),
            chunks(2, 0, 1),
            chunks(1, 1, 1),
            chunks(1, 0, 2),
        ];
        let mut hashes: Vec<_> = all.iter().flat_map(|c| [c.hash(0), c.hash(1)]).collect();
        hashes.sort();
        hashes.dedup();
        assert_eq!(hashes.len(), 8);
        let short = Chunks::new(id(1), 0, digest(1), HashLen::new(16).unwrap()).unwrap();
        assert_eq!(short.hash(7).as_bytes(), &all[0].hash(7).as_bytes()[..16]);
        assert!(Chunks::new(id(1), 0, digest(1), HashLen::new(8).unwrap()).is_err());
        assert!(Chunks::new(id(1), 0, digest(1), HashLen::new(64).unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn no_message_makes_a_tensor_outside_its_chunks(
            chunk_bytes in any::<u64>(), chunks in any::<u32>(),
            tensors in proptest::collection::vec(
                (".{0,6}", prop_oneof!["BF16", "U8", ".{0,3}"], any::<[u64; 2]>(), any::<u64>(), any::<u64>()),
                0..4,
            ),
        ) {
            let parsed: Result<Vec<_>, _> = tensors
                .into_iter()
                .map(|(name, dtype, shape, offset, bytes)| Tensor::try_from(pb::TensorDescriptor {
                    name, dtype, shape: shape.to_vec(), offset, bytes,
                }))
                .collect();
            if let Ok(table) = parsed.and_then(|all| TensorTable::new(chunk_bytes, chunks, all)) {
                for tensor in table.tensors() {
                    let range = table.chunks_of(tensor);
                    prop_assert!(range.start <= range.end && range.end <= chunks);
                }
            }
        }
    }
}
