//! What a node's region holds.

use bytes::BytesMut;
use kvferry_proto::pb;

use crate::workload::{HASH_LEN, put_hash};

/// Blocks of one message of an inventory.
const PART: usize = 4_096;

type Hash = [u8; HASH_LEN];

/// Slots, taken in turn.
#[derive(Debug)]
pub(super) struct Holding {
    region: u32,
    slots: Vec<Option<Hash>>,
    generations: Vec<u64>,
    next: usize,
}

impl Holding {
    pub(super) fn new(slots: u32) -> Self {
        Self {
            region: 1,
            slots: vec![None; slots as usize],
            generations: vec![0; slots as usize],
            next: 0,
        }
    }

    pub(super) fn region(&self) -> u32 {
        self.region
    }

    /// Another region in its place, empty: its number was never used.
    pub(super) fn replace(&mut self) {
        let slots = self.slots.len() as u32;
        *self = Self {
            region: self.region + 1,
            ..Self::new(slots)
        };
    }

    pub(super) fn declaration(&self) -> pb::RegionDeclaration {
        pb::RegionDeclaration {
            region: self.region,
            ..crate::workload::region(self.slots.len() as u32)
        }
    }

    /// Puts blocks into the next slots, whatever was there.
    pub(super) fn seal(&mut self, blocks: impl Iterator<Item = u64>) -> pb::RegionChange {
        self.seal_all(blocks.map(|block| {
            let mut hash = [0; HASH_LEN];
            put_hash(block, &mut hash.as_mut_slice());
            hash
        }))
    }

    /// As [`seal`](Self::seal), where only hashes are known.
    pub(super) fn seal_hashes(&mut self, hashes: &pb::PackedHashes) -> pb::RegionChange {
        let hashes = hashes.hashes.chunks_exact(HASH_LEN);
        self.seal_all(hashes.filter_map(|hash| hash.try_into().ok()))
    }

    fn seal_all(&mut self, blocks: impl Iterator<Item = Hash>) -> pb::RegionChange {
        let mut at = Vec::new();
        let mut removed_slots = Vec::new();
        for block in blocks.take(self.slots.len()) {
            let slot = self.next;
            self.next = (slot + 1) % self.slots.len();
            if self.slots[slot].replace(block).is_some() {
                removed_slots.push(slot as u32);
            }
            self.generations[slot] += 2;
            at.push(slot);
        }
        pb::RegionChange {
            removed_slots,
            ..self.sealed(&at)
        }
    }

    /// Empties so many slots from one on, those that hold something.
    pub(super) fn evict(&mut self, first: usize, count: usize) -> pb::RegionChange {
        let mut removed_slots = Vec::new();
        let slots = self.slots.len();
        for slot in (first..first + count).map(|slot| slot % slots) {
            if self.slots[slot].take().is_some() {
                removed_slots.push(slot as u32);
            }
        }
        pb::RegionChange {
            region: self.region,
            removed_slots,
            added: None,
        }
    }

    /// All of it, in messages.
    pub(super) fn inventory(&self, seq: u64) -> Vec<pb::Inventory> {
        let sealed: Vec<usize> = (0..self.slots.len())
            .filter(|slot| self.slots[*slot].is_some())
            .collect();
        let mut parts: Vec<_> = sealed
            .chunks(PART)
            .map(|slots| pb::Inventory {
                seq,
                sealed: vec![self.sealed(slots)],
                ..pb::Inventory::default()
            })
            .collect();
        if parts.is_empty() {
            parts.push(pb::Inventory {
                seq,
                ..pb::Inventory::default()
            });
        }
        if let Some(first) = parts.first_mut() {
            first.first = true;
            first.regions.push(self.declaration());
        }
        if let Some(last) = parts.last_mut() {
            last.last = true;
        }
        parts
    }

    fn sealed(&self, slots: &[usize]) -> pb::RegionChange {
        let mut hashes = BytesMut::with_capacity(slots.len() * HASH_LEN);
        for hash in slots.iter().filter_map(|slot| self.slots[*slot].as_ref()) {
            hashes.extend_from_slice(hash);
        }
        let added = pb::SealedSlots {
            hashes: Some(pb::PackedHashes {
                hash_len: HASH_LEN as u32,
                hashes: hashes.freeze(),
            }),
            slots: slots.iter().map(|slot| *slot as u32).collect(),
            generations: slots.iter().map(|slot| self.generations[*slot]).collect(),
            checksums: Vec::new(),
        };
        pb::RegionChange {
            region: self.region,
            removed_slots: Vec::new(),
            added: Some(added),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::world::packed, *};

    #[test]
    fn what_is_overwritten_is_taken_back_and_an_inventory_names_the_rest() {
        let mut holding = Holding::new(4);
        assert_eq!(holding.seal(0..3).removed_slots, [0; 0]);
        let change = holding.seal(10..12);
        assert_eq!(change.removed_slots, [0]);
        let added = change.added.unwrap();
        assert_eq!((added.slots, added.generations), (vec![3, 0], vec![2, 4]));
        assert_eq!(holding.evict(3, 2).removed_slots, [3, 0]);
        let parts = holding.inventory(7);
        assert_eq!(parts.len(), 1);
        assert!(parts[0].first && parts[0].last && parts[0].regions.len() == 1);
        let sealed = parts[0].sealed[0].added.as_ref().unwrap();
        assert_eq!(sealed.slots, [1, 2]);
        assert_eq!(sealed.hashes, Some(packed([1, 2].into_iter())));
        holding.replace();
        assert_eq!(holding.region(), 2);
        assert!(holding.inventory(8)[0].sealed.is_empty());
    }
}
