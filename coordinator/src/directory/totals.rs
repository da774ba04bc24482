//! What the directory holds in all, counted as it changes, so that asking for it costs nothing.

use kvferry_observe::{ByLabel, Counter, Gauge, Label, label};

label! {
    /// How many copies a block has. A range from the fifth on: what matters is whether there is one,
    /// whether there are two, and whether there are too many.
    pub enum Replicas("replicas") {
        /// One node's loss is the block's.
        One = "1",
        /// Two.
        Two = "2",
        /// Three.
        Three = "3",
        /// Four.
        Four = "4",
        /// Five to eight.
        ToEight = "5-8",
        /// Nine to sixteen.
        ToSixteen = "9-16",
        /// More.
        More = "17+",
    }
}

impl Replicas {
    /// None of a block that nobody has.
    fn of(copies: u64) -> Option<Self> {
        Some(match copies {
            0 => return None,
            1 => Self::One,
            2 => Self::Two,
            3 => Self::Three,
            4 => Self::Four,
            5..=8 => Self::ToEight,
            9..=16 => Self::ToSixteen,
            _ => Self::More,
        })
    }
}

/// What some writes changed: counted plainly under a shard's lock, told in one go after it.
#[derive(Debug, Default)]
pub(super) struct Tally {
    added: u64,
    removed: u64,
    blocks: [i64; Replicas::ALL.len()],
}

impl Tally {
    /// A block has got a copy and has so many now.
    pub(super) fn added(&mut self, copies: u64) {
        self.added += 1;
        self.moved(copies.saturating_sub(1), copies);
    }

    /// A block has lost a copy and has so many left.
    pub(super) fn removed(&mut self, left: u64) {
        self.removed += 1;
        self.moved(left.saturating_add(1), left);
    }

    fn moved(&mut self, from: u64, to: u64) {
        if let Some(from) = Replicas::of(from) {
            self.blocks[from.place()] -= 1;
        }
        if let Some(to) = Replicas::of(to) {
            self.blocks[to.place()] += 1;
        }
    }
}

/// Totals over all namespaces, or of one. Parts of it may be some writes apart.
#[derive(Debug, Default)]
pub struct Totals {
    /// Distinct blocks by how many copies they have; those of nodes that went until they are swept out.
    pub blocks: ByLabel<Replicas, Gauge>,
    /// Copies of blocks over all nodes.
    pub copies: Gauge,
    /// Bytes of those copies.
    pub bytes: Gauge,
    /// Copies that were announced.
    pub added: Counter,
    /// Copies that went, whatever the reason.
    pub removed: Counter,
    /// Nodes that are silent, and therefore not offered to readers.
    pub hidden: Gauge,
}

impl Totals {
    /// `block_bytes` is the size of each block counted.
    pub(super) fn count(&self, tally: &Tally, block_bytes: u64) {
        // Far below 2^63: there are at most 2^31 slots, of 2^46 bytes in all on any host.
        let copies = tally.added as i64 - tally.removed as i64;
        let changed = Replicas::ALL
            .iter()
            .filter(|label| tally.blocks[label.place()] != 0);
        changed.for_each(|label| self.blocks.of(*label).add(tally.blocks[label.place()]));
        if copies != 0 {
            self.copies.add(copies);
            self.bytes.add(copies.saturating_mul(block_bytes as i64));
        }
        if tally.added > 0 {
            self.added.add(tally.added);
        }
        if tally.removed > 0 {
            self.removed.add(tally.removed);
        }
    }

    /// A namespace went, with all that was counted in it.
    pub(super) fn forget(&self, gone: &Self) {
        for (label, blocks) in gone.blocks.iter() {
            self.blocks.of(label).add(-(blocks.get() as i64));
        }
        self.copies.add(-(gone.copies.get() as i64));
        self.bytes.add(-(gone.bytes.get() as i64));
        self.removed.add(gone.copies.get());
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl Totals {
    /// Blocks by replicas, copies and bytes, to be compared.
    pub(super) fn told(&self) -> (Vec<u64>, u64, u64) {
        let blocks = self.blocks.iter().map(|(_, blocks)| blocks.get());
        (blocks.collect(), self.copies.get(), self.bytes.get())
    }

    /// What blocks of these copies make.
    pub(super) fn expected(
        copies: impl Iterator<Item = usize>,
        block_bytes: u64,
    ) -> (Vec<u64>, u64, u64) {
        let (mut blocks, mut all) = (vec![0; Replicas::ALL.len()], 0);
        for copies in copies.map(|copies| copies as u64) {
            all += copies;
            if let Some(label) = Replicas::of(copies) {
                blocks[label.place()] += 1;
            }
        }
        (blocks, all, all * block_bytes)
    }
}
