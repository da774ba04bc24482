//! One namespace's index from block hash to owners, for many threads at once.
//!
//! | file | what |
//! | --- | --- |
//! | `secret` | block hash -> 64 bits nobody outside can foresee |
//! | `buckets`, `table` | those bits -> position: a cache line a look-up, grown step by step |
//! | `pages` | values at positions that stay, without an allocation each |
//! | `shard` | one part of the index: hash, first owner and generation in one entry |
//! | `sharded` | 64 parts, each under its own lock; batches hide the latency of memory |
//!
//! A block of one owner takes an entry (hash + 16 bytes), and 7 to 10 bytes of buckets. Positions
//! don't move, so the way back from a slot to its entry is one number of four bytes.

mod buckets;
mod pages;
mod secret;
mod shard;
mod sharded;
mod table;
#[cfg(test)]
mod tests;

use std::{ops::ControlFlow, sync::Arc};

use kvferry_proto::HashLen;

pub(super) use shard::{Copies, Held};
pub(super) use sharded::Sealing;
use sharded::{Counts, Sharded};

use super::totals::Totals;

/// Where copies of a block are: a slot of a region. The region's handle tells node and incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) region: u32,
    pub(super) slot: u32,
}

/// Where an entry is in an index: shard and position, and never moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(pub(super) u32);

/// The index, in the narrowest of three widths that holds the namespace's hashes.
#[derive(Debug)]
pub(super) enum Index {
    W16(Sharded<16>),
    W32(Sharded<32>),
    W64(Sharded<64>),
}

macro_rules! with_width {
    ($index:expr, $sharded:ident => $body:expr) => {
        match $index {
            Index::W16($sharded) => $body,
            Index::W32($sharded) => $body,
            Index::W64($sharded) => $body,
        }
    };
}

impl Index {
    #[cfg(test)]
    pub(super) fn new(hash_len: HashLen) -> Self {
        Self::counted(hash_len, 1, &Arc::default())
    }

    /// Blocks of so many bytes, counted in `totals` beside those of other namespaces.
    pub(super) fn counted(hash_len: HashLen, block_bytes: u64, totals: &Arc<Totals>) -> Self {
        let len = hash_len.get();
        let counts = Counts::new(block_bytes, totals);
        match len {
            0..=16 => Self::W16(Sharded::new(len, counts)),
            17..=32 => Self::W32(Sharded::new(len, counts)),
            _ => Self::W64(Sharded::new(len, counts)),
        }
    }

    /// Takes what is here out of the totals: the namespace is deleted, nothing is written any more.
    pub(super) fn forget_counts(&self) {
        with_width!(self, sharded => sharded.counts().forget());
    }

    /// Adds copies and says for each where its entry is; None where the index is full.
    /// Each owner is added at most once before it is removed.
    pub(super) fn insert(
        &self,
        hashes: &[u8],
        batch: &mut [Sealing],
        placed: impl FnMut(&Sealing, Option<Place>),
    ) {
        with_width!(self, sharded => sharded.insert(hashes, batch, placed));
    }

    /// Writes generation and checksum of a copy anew; false where its entry is of another hash.
    pub(super) fn reseal(&self, place: Place, hash: &[u8], held: Held) -> bool {
        with_width!(self, sharded => sharded.reseal(place, hash, held))
    }

    /// Takes copies out; a block goes with its last copy.
    pub(super) fn remove(&self, batch: &mut [(Place, Owner)]) {
        with_width!(self, sharded => sharded.remove(batch));
    }

    /// Looks hashes up in their order, until `visit` breaks off.
    pub(super) fn look_up<B>(
        &self,
        hashes: &[u8],
        visit: impl FnMut(Copies<'_>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        with_width!(self, sharded => sharded.look_up(hashes, visit))
    }

    /// Distinct blocks.
    pub(super) fn len(&self) -> usize {
        with_width!(self, sharded => sharded.len())
    }
}
