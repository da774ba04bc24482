//! The slot states of one region.

use hashbrown::HashSet;
use kvferry_proto::{BlockHash, Checksum, Generation, Slot};

use super::Holder;

/// Who writes to a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reservation {
    pub(super) holder: Holder,
    /// Never given twice: tells this reservation from an earlier one of the same holder.
    pub(super) ticket: u64,
}

/// What a sealed slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) hash: BlockHash,
    pub(super) generation: Generation,
    pub(super) checksum: Option<Checksum>,
    /// Others were told of it.
    pub(super) published: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlotState {
    Free,
    Reserved(Reservation),
    Sealed(Block),
    /// A transport may still write to it.
    Quarantined,
}

#[derive(Debug, Clone)]
struct Entry {
    state: SlotState,
    /// How many pins name the block in it.
    pins: u64,
}

/// How many slots are in which state; the first four add up to the region's slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) free: u32,
    pub(super) reserved: u32,
    pub(super) sealed: u32,
    pub(super) quarantined: u32,
    /// Of the sealed ones.
    pub(super) pinned: u32,
}

/// The slots of a call that came before. Nothing is kept where each is greater than the one before it.
pub(super) struct Seen(Option<HashSet<Slot>>);

impl Seen {
    pub(super) fn of(slots: &[Slot]) -> Self {
        let rising = slots.is_sorted_by(|a, b| a < b);
        Self((!rising).then(HashSet::new))
    }

    /// False where it came before.
    pub(super) fn insert(&mut self, slot: Slot) -> bool {
        self.0.as_mut().is_none_or(|seen| seen.insert(slot))
    }
}

#[derive(Debug)]
pub(super) struct SlotTable {
    entries: Vec<Entry>,
    /// Free slots, the next one last. Only for pools: in an engine's region the engine chooses.
    free: Option<Vec<Slot>>,
    counts: Counts,
}

impl SlotTable {
    pub(super) fn new(slots: u32, pool: bool) -> Self {
        let free = Entry {
            state: SlotState::Free,
            pins: 0,
        };
        Self {
            entries: vec![free; slots as usize],
            free: pool.then(|| (0..slots).rev().map(Slot).collect()),
            counts: Counts {
                free: slots,
                ..Counts::default()
            },
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// None for a slot that is not there.
    pub(super) fn get(&self, slot: Slot) -> Option<SlotState> {
        self.entries.get(slot.0 as usize).map(|entry| entry.state)
    }

    /// The slot's block, where it is sealed.
    pub(super) fn block(&self, slot: Slot) -> Option<Block> {
        match self.get(slot) {
            Some(SlotState::Sealed(block)) => Some(block),
            _ => None,
        }
    }

    /// The slot's reservation, where it has one.
    pub(super) fn reservation(&self, slot: Slot) -> Option<Reservation> {
        match &self.entries.get(slot.0 as usize)?.state {
            SlotState::Reserved(reservation) => Some(*reservation),
            _ => None,
        }
    }

    pub(super) fn is_pinned(&self, slot: Slot) -> bool {
        self.entries
            .get(slot.0 as usize)
            .is_some_and(|entry| entry.pins > 0)
    }

    /// The next free slot of a pool. The caller gives it another state at once.
    pub(super) fn take_free(&mut self) -> Option<Slot> {
        self.free.as_mut()?.pop()
    }

    /// Moves a slot to another state. Its block, if any, is not pinned: pinned blocks go with their
    /// region only. A free slot of a pool must come from [`SlotTable::take_free`].
    pub(super) fn set(&mut self, slot: Slot, state: SlotState) {
        let Some(entry) = self.entries.get_mut(slot.0 as usize) else {
            return;
        };
        *count_of(&mut self.counts, &entry.state) -= 1;
        *count_of(&mut self.counts, &state) += 1;
        entry.state = state;
        if state == SlotState::Free
            && let Some(free) = &mut self.free
        {
            free.push(slot);
        }
    }

    /// Others are told of the slot's block from now on; the block, where they were not before.
    pub(super) fn publish(&mut self, slot: Slot) -> Option<Block> {
        match &mut self.entries.get_mut(slot.0 as usize)?.state {
            SlotState::Sealed(block) if !block.published => {
                block.published = true;
                Some(*block)
            }
            _ => None,
        }
    }

    /// One more pin; true when it is the slot's first.
    pub(super) fn pin(&mut self, slot: Slot) -> bool {
        let Some(entry) = self.entries.get_mut(slot.0 as usize) else {
            return false;
        };
        entry.pins += 1;
        let first = entry.pins == 1;
        self.counts.pinned += u32::from(first);
        first
    }

    /// One pin less; true when it was the slot's last.
    pub(super) fn unpin(&mut self, slot: Slot) -> bool {
        let Some(entry) = self.entries.get_mut(slot.0 as usize) else {
            return false;
        };
        let last = entry.pins == 1;
        entry.pins = entry.pins.saturating_sub(1);
        self.counts.pinned -= u32::from(last);
        last
    }

    /// Sealed slots from `from` on, in order.
    pub(super) fn sealed_from(&self, from: Slot) -> impl Iterator<Item = (Slot, &Block)> {
        let entries = self.entries.get(from.0 as usize..).unwrap_or_default();
        (from.0..)
            .zip(entries)
            .filter_map(|(slot, entry)| match &entry.state {
                SlotState::Sealed(block) => Some((Slot(slot), block)),
                _ => None,
            })
    }
}

fn count_of<'a>(counts: &'a mut Counts, state: &SlotState) -> &'a mut u32 {
    match state {
        SlotState::Free => &mut counts.free,
        SlotState::Reserved(_) => &mut counts.reserved,
        SlotState::Sealed(_) => &mut counts.sealed,
        SlotState::Quarantined => &mut counts.quarantined,
    }
}
