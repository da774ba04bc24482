//! What slots hold: slot tables and index, kept in step. None of this needs `&mut`: a region's slot
//! table has a lock of its own, and so has every shard of the index.

use kvferry_proto::PackedHashes;

use super::{
    SealedSlots,
    catalog::Catalog,
    index::{Held, Index, Owner, Place, Sealing},
    region::Region,
    slots::{Slot, SlotSet, SlotTable},
    watch::Telling,
};

/// Hashes of a message, as it came.
fn bytes(added: &SealedSlots) -> &[u8] {
    added.hashes.as_ref().map_or(&[], PackedHashes::as_bytes)
}

impl Catalog {
    fn open(&self, handle: u32) -> Option<(&Region, &Index, Telling<'_>)> {
        let region = self.region(handle)?;
        let namespace = self.namespace_of(region)?;
        Some((region, &namespace.index, Telling::of(namespace)))
    }

    /// Says what slots hold now. The caller has checked columns, slots and hash length.
    pub(super) fn seal(&self, handle: u32, added: &SealedSlots, range: std::ops::Range<usize>) {
        let Some((region, index, telling)) = self.open(handle) else {
            return;
        };
        let hashes = bytes(added);
        let mut slots = region.slots.lock();
        // Told before the slots are free for others.
        let mut telling = telling;
        let mut batch = Vec::with_capacity(range.len());
        for at in range {
            let (Some(&slot), Some(&generation)) = (added.slots.get(at), added.generations.get(at))
            else {
                break;
            };
            let held = Held {
                owner: Owner {
                    region: handle,
                    slot,
                },
                generation,
                checksum: added.checksums.get(at).copied().unwrap_or(0),
            };
            if slots.get(slot) == Slot::Pending {
                // Named twice in one message: the later one counts.
                insert(index, hashes, &mut batch, &mut slots, &mut telling);
            }
            if let Slot::Sealed(place) = slots.get(slot) {
                let len = region.hash_len.get();
                let hash = hashes.get(at * len..(at + 1) * len).unwrap_or(&[]);
                telling.reseals(index, place, held, hash);
                if index.reseal(place, hash, held) {
                    keep(&mut slots, slot);
                    continue;
                }
                telling.removes(index, place, held.owner);
                index.remove(&mut [(place, held.owner)]);
            }
            slots.set(slot, Slot::Pending);
            keep(&mut slots, slot);
            batch.push(Sealing::new(at as u32, held));
        }
        insert(index, hashes, &mut batch, &mut slots, &mut telling);
    }

    /// Says that slots hold nothing any more.
    pub(super) fn clear(&self, handle: u32, gone: impl IntoIterator<Item = u32>) {
        let Some((region, index, telling)) = self.open(handle) else {
            return;
        };
        let mut slots = region.slots.lock();
        take_out(index, handle, &mut slots, gone, telling);
    }

    /// Has every slot swept out that is not in `named`.
    pub(super) fn retain(&self, handle: u32, named: SlotSet) {
        if let Some(region) = self.region(handle) {
            region.slots.lock().keep = Some(named);
            self.sweeps.start(handle);
        }
    }

    /// Sweeps out some of what is gone, and says how many slots are looked at: less than `slots`
    /// when nothing is left to do.
    pub(super) fn sweep(&self, slots: u32) -> u32 {
        let mut left = slots;
        while left > 0
            && let Some(sweep) = self.sweeps.next()
        {
            let Some((region, index, mut telling)) = self.open(sweep.region) else {
                self.sweeps.done(sweep.region);
                continue;
            };
            let mut table = region.slots.lock();
            let count = region.slot_count();
            let start = table.skip_empty(sweep.from).min(count);
            let end = count.min(start.saturating_add(left));
            let stays = |slot: u32| {
                !region.gone && table.keep.as_ref().is_none_or(|keep| keep.contains(slot))
            };
            let gone: Vec<u32> = (start..end).filter(|slot| !stays(*slot)).collect();
            if region.gone {
                telling.keep_quiet();
            }
            take_out(index, sweep.region, &mut table, gone, telling);
            // A slice costs something even where it finds nothing.
            left -= (end - start).max(1);
            if end < count {
                self.sweeps.go_on(sweep.region, end);
            } else {
                table.keep = None;
                self.sweeps.done(sweep.region);
            }
        }
        slots - left
    }
}

fn keep(slots: &mut SlotTable, slot: u32) {
    if let Some(keep) = &mut slots.keep {
        keep.insert(slot);
    }
}

fn insert(
    index: &Index,
    hashes: &[u8],
    batch: &mut Vec<Sealing>,
    slots: &mut SlotTable,
    telling: &mut Telling<'_>,
) {
    index.insert(hashes, batch, |sealing, place| {
        if place.is_some() {
            telling.added(index, hashes, sealing);
        }
        // An index of four billion blocks is full: what doesn't fit is not known, and that's all.
        let holds = place.map_or(Slot::Empty, Slot::Sealed);
        slots.set(sealing.held.owner.slot, holds);
    });
    batch.clear();
}

fn take_out(
    index: &Index,
    region: u32,
    slots: &mut SlotTable,
    gone: impl IntoIterator<Item = u32>,
    mut telling: Telling<'_>,
) {
    let mut batch: Vec<(Place, Owner)> = Vec::new();
    for slot in gone {
        if let Slot::Sealed(place) = slots.get(slot) {
            slots.set(slot, Slot::Empty);
            let owner = Owner { region, slot };
            telling.removes(index, place, owner);
            batch.push((place, owner));
        }
    }
    index.remove(&mut batch);
}
