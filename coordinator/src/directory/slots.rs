//! What each slot of a region holds: the way back from a slot to its entry in the index.

use super::index::Place;

/// Slots per page. Pages come with their first sealed slot and go with their last, so a large
/// region that holds little costs little.
const PAGE: u32 = 1024;

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// Nothing.
    Empty,
    /// A block that is about to be put into the index, under the lock of this table.
    Pending,
    /// The block of this entry.
    Sealed(Place),
}

/// The slots of one region: four bytes each.
#[derive(Debug)]
pub(super) struct SlotTable {
    slots: u32,
    pages: Vec<Option<Box<Page>>>,
    sealed: u32,
    /// An inventory is done, and slots it did not name are not swept out yet: what was named, or
    /// sealed since.
    pub(super) keep: Option<SlotSet>,
}

#[derive(Debug)]
struct Page {
    places: Box<[u32]>,
    sealed: u32,
}

impl SlotTable {
    pub(super) fn new(slots: u32) -> Self {
        Self {
            slots,
            pages: Vec::new(),
            sealed: 0,
            keep: None,
        }
    }

    /// How many are sealed.
    pub(super) fn sealed(&self) -> u32 {
        self.sealed
    }

    /// What a slot holds.
    pub(super) fn get(&self, slot: u32) -> Slot {
        let page = self.pages.get((slot / PAGE) as usize);
        let page = page.and_then(Option::as_ref);
        let place = page.and_then(|page| page.places.get((slot % PAGE) as usize));
        match place.copied().unwrap_or(Place::NONE) {
            Place::NONE => Slot::Empty,
            Place::PENDING => Slot::Pending,
            place => Slot::Sealed(Place(place)),
        }
    }

    /// Writes a slot. The caller has checked that it exists.
    pub(super) fn set(&mut self, slot: u32, holds: Slot) {
        let number = slot / PAGE;
        let page_slots = PAGE.min(self.slots.saturating_sub(number * PAGE)) as usize;
        let (number, at) = (number as usize, (slot % PAGE) as usize);
        let place = match holds {
            Slot::Empty => Place::NONE,
            Slot::Pending => Place::PENDING,
            Slot::Sealed(place) => place.0,
        };
        if number >= self.pages.len() {
            if place == Place::NONE {
                return;
            }
            self.pages.resize_with(number + 1, || None);
        }
        let page = self.pages[number].get_or_insert_with(|| {
            Box::new(Page {
                places: vec![Place::NONE; page_slots].into(),
                sealed: 0,
            })
        });
        let Some(old) = page.places.get_mut(at) else {
            return;
        };
        match (*old == Place::NONE, place == Place::NONE) {
            (true, false) => {
                page.sealed += 1;
                self.sealed += 1;
            }
            (false, true) => {
                page.sealed -= 1;
                self.sealed -= 1;
            }
            _ => {}
        }
        *old = place;
        if page.sealed == 0 {
            self.pages[number] = None;
        }
    }

    /// The first slot at or after `from` that may be sealed: pages that hold nothing are skipped.
    pub(super) fn skip_empty(&self, from: u32) -> u32 {
        let number = (from / PAGE) as usize;
        match self
            .pages
            .get(number..)
            .unwrap_or(&[])
            .iter()
            .position(Option::is_some)
        {
            Some(0) => from,
            Some(more) => (number + more) as u32 * PAGE,
            None => self.slots,
        }
    }
}

/// A set of slots of one region: a bit a slot.
#[derive(Debug, Default)]
pub(super) struct SlotSet {
    words: Vec<u64>,
}

impl SlotSet {
    pub(super) fn insert(&mut self, slot: u32) {
        let word = (slot / 64) as usize;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (slot % 64);
    }

    pub(super) fn contains(&self, slot: u32) -> bool {
        let word = self.words.get((slot / 64) as usize);
        word.is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_written_replaced_and_cleared() {
        let mut table = SlotTable::new(2 * PAGE + 1);
        let at = |n| Slot::Sealed(Place(n));
        table.set(2 * PAGE, at(5));
        table.set(0, Slot::Pending);
        table.set(0, at(6));
        assert_eq!(table.sealed(), 2);
        assert_eq!((table.get(0), table.get(2 * PAGE)), (at(6), at(5)));
        assert_eq!(table.get(1), Slot::Empty);
        assert_eq!((table.skip_empty(0), table.skip_empty(PAGE)), (0, 2 * PAGE));
        for slot in [0, 0, 2 * PAGE] {
            table.set(slot, Slot::Empty);
        }
        assert_eq!((table.sealed(), table.skip_empty(0)), (0, 2 * PAGE + 1));
        assert!(table.pages.iter().all(Option::is_none));
    }
}
