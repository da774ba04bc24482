//! Which block is where, and what its hash is. All of it is computed from a block's number, so that
//! a hundred million blocks cost the benchmark nothing.

use bytes::{BufMut, Bytes, BytesMut};
use kvferry_proto::pb;

/// Bytes of a hash.
pub const HASH_LEN: usize = 32;
/// Blocks in a row on one node: a prompt's blocks are made on one node.
const RUN: u64 = 1_000;
/// The namespace all blocks are in.
pub const NAMESPACE: &str = "bench/llama/tp1";
/// A cache block's usual size: it only has to be plausible.
const BLOCK_BYTES: u64 = 1 << 20;

/// Blocks 0 to `blocks` on some nodes.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    /// How many blocks.
    pub blocks: u64,
    /// How many nodes hold them.
    pub nodes: u64,
    /// Blocks of the first node; the others share the rest evenly. None: all the same.
    pub first_node_blocks: Option<u64>,
}

impl Workload {
    /// Numbers of the blocks that are on a node; their slots are 0, 1, 2, ... in this order.
    pub fn blocks_of(&self, node: u64) -> impl Iterator<Item = u64> + Send + use<> {
        let this = *self;
        let first = this.first_node_blocks.unwrap_or(0);
        let (start, end, shift, nodes) = match this.first_node_blocks {
            Some(_) if node == 0 => (0, first, 0, 1),
            Some(_) => (first, this.blocks, node - 1, this.nodes - 1),
            None => (0, this.blocks, node, this.nodes),
        };
        let runs = (0..)
            .map(move |n| start + (n * nodes + shift) * RUN)
            .take_while(move |run| *run < end);
        runs.flat_map(move |run| run..(run + RUN).min(end))
    }

    /// Slots a region needs for any node's blocks.
    #[must_use]
    pub fn slots(&self) -> u32 {
        let even = self.blocks / self.nodes + 2 * RUN;
        let others = self.blocks / (self.nodes - 1).max(1) + 2 * RUN;
        let most = match self.first_node_blocks {
            Some(first) => first.max(others),
            None => even,
        };
        u32::try_from(most).unwrap_or(u32::MAX)
    }
}

/// Appends the hash of a block: SplitMix64 over its number, four words.
pub fn put_hash(number: u64, out: &mut impl BufMut) {
    let mut state = number.wrapping_mul(4).wrapping_add(1);
    for _ in 0..HASH_LEN / 8 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        out.put_u64_le(mix(state));
    }
}

/// The finalizer of SplitMix64.
#[must_use]
pub fn mix(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// Hashes of blocks, back to back.
#[must_use]
pub fn pack(numbers: impl ExactSizeIterator<Item = u64>) -> Bytes {
    let mut bytes = BytesMut::with_capacity(numbers.len() * HASH_LEN);
    for number in numbers {
        put_hash(number, &mut bytes);
    }
    bytes.freeze()
}

/// What the namespace is.
#[must_use]
pub fn spec() -> pb::NamespaceSpec {
    pb::NamespaceSpec {
        name: NAMESPACE.into(),
        layout: Some(pb::Layout {
            dtype: "bf16".into(),
            tokens_per_block: 16,
            plane_count: 1,
            plane_bytes: BLOCK_BYTES,
        }),
        hash_len: HASH_LEN as u32,
        checksum: pb::ChecksumPolicy::Off.into(),
    }
}

/// A region of so many slots.
#[must_use]
pub fn region(slots: u32) -> pb::RegionDeclaration {
    pb::RegionDeclaration {
        region: 1,
        namespace: Some(spec()),
        geometry: Some(pb::Geometry {
            slots,
            planes: vec![pb::Plane {
                base: 0,
                stride: BLOCK_BYTES,
                len: BLOCK_BYTES,
            }],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_on_one_node() {
        for first_node_blocks in [None, Some(5_000)] {
            let workload = Workload {
                blocks: 12_345,
                nodes: 4,
                first_node_blocks,
            };
            let mut all: Vec<u64> = (0..4).flat_map(|n| workload.blocks_of(n)).collect();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..12_345));
            let most = (0..4).map(|n| workload.blocks_of(n).count()).max();
            assert!(most.unwrap() <= workload.slots() as usize);
        }
    }
}
