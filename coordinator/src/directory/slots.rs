//! What each slot of a region holds: the reverse of the index, and the home of generations.

use kvferry_proto::{Checksum, Generation, HashLen};

/// Slots per page. Pages come with their first sealed slot and go with their last, so a large
/// region that holds little costs little.
const PAGE: u32 = 1024;

/// A sealed slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sealed<'a> {
    pub(super) hash: &'a [u8],
    pub(super) generation: Generation,
    pub(super) checksum: Option<Checksum>,
}

/// The slots of one region, in columns.
#[derive(Debug)]
pub(super) struct SlotTable {
    hash_len: HashLen,
    slots: u32,
    pages: Vec<Option<Box<Page>>>,
    sealed: u32,
}

#[derive(Debug)]
struct Page {
    hashes: Box<[u8]>,
    /// Odd where the slot holds nothing.
    generations: Box<[u64]>,
    /// Only where one was ever given.
    checksums: Option<Box<[u64]>>,
    sealed: u32,
}

impl SlotTable {
    pub(super) fn new(hash_len: HashLen, slots: u32) -> Self {
        Self {
            hash_len,
            slots,
            pages: Vec::new(),
            sealed: 0,
        }
    }

    pub(super) fn hash_len(&self) -> HashLen {
        self.hash_len
    }

    /// How many there are, sealed or not.
    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    /// How many are sealed.
    pub(super) fn sealed(&self) -> u32 {
        self.sealed
    }

    /// What a slot holds; None for nothing.
    pub(super) fn get(&self, slot: u32) -> Option<Sealed<'_>> {
        let page = self.pages.get((slot / PAGE) as usize)?.as_ref()?;
        page.get((slot % PAGE) as usize, self.hash_len)
    }

    /// Writes a slot. The caller has checked that it exists and that the hash has the right length.
    pub(super) fn set(
        &mut self,
        slot: u32,
        hash: &[u8],
        generation: Generation,
        checksum: Option<Checksum>,
    ) {
        let number = slot / PAGE;
        let page_slots = PAGE.min(self.slots.saturating_sub(number * PAGE)) as usize;
        let (number, at) = (number as usize, (slot % PAGE) as usize);
        if number >= self.pages.len() {
            self.pages.resize_with(number + 1, || None);
        }
        let hash_len = self.hash_len;
        let page =
            self.pages[number].get_or_insert_with(|| Box::new(Page::new(page_slots, hash_len)));
        if !Generation(page.generations[at]).is_sealed() {
            page.sealed += 1;
            self.sealed += 1;
        }
        let len = hash_len.get();
        page.hashes[at * len..(at + 1) * len].copy_from_slice(hash);
        page.generations[at] = generation.0;
        if checksum.is_some() && page.checksums.is_none() {
            page.checksums = Some(vec![0; page_slots].into());
        }
        if let Some(checksums) = &mut page.checksums {
            checksums[at] = Checksum::to_wire(checksum);
        }
    }

    /// Empties a slot.
    pub(super) fn clear(&mut self, slot: u32) {
        let Some(place) = self.pages.get_mut((slot / PAGE) as usize) else {
            return;
        };
        let Some(page) = place else { return };
        let generation = &mut page.generations[(slot % PAGE) as usize];
        if Generation(*generation).is_sealed() {
            *generation = Generation::UNWRITTEN.0;
            page.sealed -= 1;
            self.sealed -= 1;
            if page.sealed == 0 {
                *place = None;
            }
        }
    }

    /// The sealed slots and what they hold.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, Sealed<'_>)> {
        (0u32..)
            .zip(&self.pages)
            .filter_map(|(number, page)| Some((number, page.as_ref()?)))
            .flat_map(move |(number, page)| {
                (0..page.generations.len()).filter_map(move |at| {
                    Some((number * PAGE + at as u32, page.get(at, self.hash_len)?))
                })
            })
    }
}

impl Page {
    fn new(slots: usize, hash_len: HashLen) -> Self {
        Self {
            hashes: vec![0; slots * hash_len.get()].into(),
            generations: vec![Generation::UNWRITTEN.0; slots].into(),
            checksums: None,
            sealed: 0,
        }
    }

    fn get(&self, at: usize, hash_len: HashLen) -> Option<Sealed<'_>> {
        let generation = Generation(*self.generations.get(at)?);
        let len = hash_len.get();
        generation.is_sealed().then(|| Sealed {
            hash: &self.hashes[at * len..(at + 1) * len],
            generation,
            checksum: self
                .checksums
                .as_ref()
                .and_then(|sums| Checksum::from_wire(sums[at])),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_written_replaced_and_cleared() {
        let mut table = SlotTable::new(HashLen::new(8).unwrap(), 2 * PAGE + 1);
        let sum = Checksum::from_wire(5);
        table.set(0, &[1; 8], Generation(2), None);
        table.set(2 * PAGE, &[2; 8], Generation(4), sum);
        table.set(0, &[3; 8], Generation(6), None);
        assert_eq!(table.sealed(), 2);
        let held: Vec<_> = table.iter().map(|(slot, s)| (slot, s.hash[0])).collect();
        assert_eq!(held, [(0, 3), (2 * PAGE, 2)]);
        assert_eq!(table.get(2 * PAGE).unwrap().checksum, sum);
        assert_eq!(table.get(1), None);
        table.clear(0);
        table.clear(0);
        table.clear(2 * PAGE);
        assert_eq!(table.sealed(), 0);
        assert!(table.pages.iter().all(Option::is_none));
    }
}
