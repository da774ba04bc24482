//! What must hold after every operation.

use std::collections::BTreeMap;

use super::{Cell, Model};
use crate::region::{
    fixture::{as_replayed, hash},
    slots::SlotState,
};

impl Model {
    pub(super) fn check(&self) {
        let (inventory, ()) = self.rig.store.inventory(|| ());
        let replayed = self.rig.log.replayed();
        assert_eq!(as_replayed(&inventory), replayed);
        for (place, cell) in &self.cells {
            let block = replayed[&place.region].get(&place.slot);
            let region = self.rig.store.region(place.region).unwrap();
            let word = self.rig.generation(&region, place.slot);
            match cell {
                Cell::Sealed(number, ..) => {
                    let block = block.unwrap();
                    assert_eq!(block.hash, hash(*number));
                    assert_eq!(block.generation, word);
                    assert!(word.is_sealed());
                }
                _ => assert!(block.is_none() && !word.is_sealed()),
            }
        }
        self.check_stats();
        self.check_reservations();
    }

    fn check_stats(&self) {
        let stats = self.rig.store.stats();
        assert_eq!(stats.pins, self.pins.len() as u64);
        for region in stats.regions {
            let pool = region.region.pool;
            let count = |is: &dyn Fn(Cell) -> bool| self.places(pool, is).len() as u32;
            assert_eq!(region.free, count(&|cell| cell == Cell::Free));
            assert_eq!(
                region.reserved,
                count(&|cell| matches!(cell, Cell::Reserved(_)))
            );
            assert_eq!(
                region.sealed,
                count(&|cell| matches!(cell, Cell::Sealed(..)))
            );
            assert_eq!(region.quarantined, count(&|cell| cell == Cell::Quarantined));
            assert_eq!(region.pinned, count(&|cell| self.is_pinned(cell)));
            let all = region.free + region.reserved + region.sealed + region.quarantined;
            assert_eq!(all, region.region.geometry.slots());
        }
    }

    /// The books by holder and the slots say the same, and no slot has two holders.
    fn check_reservations(&self) {
        let state = self.rig.store.state.lock();
        let mut by_holder = BTreeMap::new();
        for (holder, places) in &state.reserved {
            assert!(!places.is_empty());
            for place in places {
                assert_eq!(by_holder.insert(*place, *holder), None, "two holders");
            }
        }
        for (place, cell) in &self.cells {
            let expected = match cell {
                Cell::Reserved(holder) => Some(holder),
                _ => None,
            };
            assert_eq!(by_holder.remove(place).as_ref(), expected);
            let slot = state.regions[&place.region].slots.get(place.slot).unwrap();
            assert_eq!(matches!(slot, SlotState::Reserved(_)), expected.is_some());
        }
        assert!(by_holder.is_empty());
    }
}
