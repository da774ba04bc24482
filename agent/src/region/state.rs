//! Everything behind the store's lock, and the few steps all operations are made of.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hashbrown::{HashMap, HashSet};
use kvferry_proto::{BlockHash, Checksum, Generation, NamespaceName, RegionId, Slot};

use super::{
    Change, ChangeSink, Held, Holder, PinId, Region,
    eviction::EvictionPolicy,
    namespace_table::NamespaceTable,
    pins::{Pinned, Pins},
    slots::{Block, Reservation, SlotState, SlotTable},
    words::Place,
};
use crate::sabotage::{self, Bug};

/// One region with the store's books about it.
#[derive(Debug)]
pub(super) struct RegionState {
    pub(super) region: Arc<Region>,
    pub(super) slots: SlotTable,
    /// Only of a pool.
    pub(super) policy: Option<Box<dyn EvictionPolicy>>,
    /// Slots whose blocks enough others hold, until they are used.
    pub(super) surplus: HashSet<Slot>,
    /// Blocks given up to make room.
    pub(super) evictions: u64,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) regions: BTreeMap<RegionId, RegionState>,
    pub(super) namespaces: HashMap<NamespaceName, NamespaceTable>,
    /// The reserved slots, by who holds them.
    pub(super) reserved: HashMap<Holder, HashSet<Place>>,
    pub(super) pins: Pins,
    pub(super) last_region: u32,
    pub(super) last_ticket: u64,
    /// Of all pools, those that were unregistered included.
    pub(super) evictions: u64,
    /// Of those, blocks that enough others held.
    pub(super) surplus_evictions: u64,
    /// Of all regions.
    pub(super) total_slots: u64,
}

impl RegionState {
    /// Sealed -> Free; `namespace` is the region's.
    fn remove_block(
        &mut self,
        place: Place,
        namespace: Option<&mut NamespaceTable>,
        sink: &dyn ChangeSink,
    ) {
        let Some(block) = self.slots.block(place.slot) else {
            return;
        };
        if !sabotage::is(Bug::GenerationNotBumped) {
            self.region.generations.begin_write(place.slot.0);
        }
        if let Some(namespace) = namespace {
            namespace.remove(&block.hash, place);
        }
        if let Some(policy) = &mut self.policy {
            policy.removed(place.slot);
            self.surplus.remove(&place.slot);
        }
        if block.published {
            sink.record(Change::Removed {
                region: place.region,
                slot: place.slot,
            });
        }
        self.slots.set(place.slot, SlotState::Free);
    }
}

impl State {
    /// The sealed block at a place, as callers see it.
    pub(super) fn held(&self, place: Place) -> Option<Held> {
        let block = self.regions.get(&place.region)?.slots.block(place.slot)?;
        Some(Held {
            region: place.region,
            slot: place.slot,
            generation: block.generation,
            checksum: block.checksum,
        })
    }

    /// Free -> Reserved. The generation is odd already, as it is in every free slot.
    pub(super) fn reserve(&mut self, place: Place, holder: Holder) {
        if let Some(region) = self.regions.get_mut(&place.region) {
            self.last_ticket += 1;
            let ticket = self.last_ticket;
            region.slots.set(
                place.slot,
                SlotState::Reserved(Reservation { holder, ticket }),
            );
            self.reserved.entry(holder).or_default().insert(place);
        }
    }

    /// Whatever is in these slots -> Reserved; they are there, and nobody else's. As [`State::remove_block`] and then
    /// [`State::reserve`] of each, which would look everything up for each.
    pub(super) fn take_over(
        &mut self,
        region: RegionId,
        slots: &[Slot],
        holder: Holder,
        sink: &dyn ChangeSink,
    ) {
        let Some(entry) = self.regions.get_mut(&region) else {
            return;
        };
        let mut namespace = self.namespaces.get_mut(&entry.region.namespace.name);
        let places = self.reserved.entry(holder).or_default();
        places.reserve(slots.len());
        for &slot in slots {
            let place = Place { region, slot };
            entry.remove_block(place, namespace.as_deref_mut(), sink);
            self.last_ticket += 1;
            let ticket = self.last_ticket;
            let reserved = SlotState::Reserved(Reservation { holder, ticket });
            entry.slots.set(slot, reserved);
            places.insert(place);
        }
    }

    /// Reserved -> `to`, which is Free or Quarantined. The generation stays odd.
    pub(super) fn give_up(&mut self, place: Place, holder: Holder, to: SlotState) {
        self.forget_reservation(place, holder);
        if let Some(region) = self.regions.get_mut(&place.region) {
            region.slots.set(place.slot, to);
        }
    }

    pub(super) fn forget_reservation(&mut self, place: Place, holder: Holder) {
        if let Some(places) = self.reserved.get_mut(&holder) {
            places.remove(&place);
            if places.is_empty() {
                self.reserved.remove(&holder);
            }
        }
    }

    /// Reserved -> Sealed: the generation even, then the books, then the change, where somebody is to
    /// hear of it.
    pub(super) fn seal(
        &mut self,
        place: Place,
        holder: Holder,
        hash: BlockHash,
        parent: Option<&BlockHash>,
        checksum: Option<Checksum>,
        sink: Option<&dyn ChangeSink>,
    ) -> Option<Held> {
        self.forget_reservation(place, holder);
        let region = self.regions.get_mut(&place.region)?;
        let namespace = self.namespaces.get_mut(&region.region.namespace.name)?;
        let generation = Generation(region.region.generations.seal(place.slot.0)?);
        let block = Block {
            hash,
            generation,
            checksum,
            published: sink.is_some(),
        };
        region.slots.set(place.slot, SlotState::Sealed(block));
        if let Some(policy) = &mut region.policy {
            let parent = parent.and_then(|parent| namespace.find_in_pool(parent));
            policy.inserted(place.slot, parent.map(|parent| parent.slot));
        }
        namespace.insert(hash, place);
        if let Some(sink) = sink {
            sink.record(Change::Sealed {
                region: place.region,
                slot: place.slot,
                hash,
                generation,
                checksum,
            });
        }
        Some(Held {
            region: place.region,
            slot: place.slot,
            generation,
            checksum,
        })
    }

    /// Tells others of a block that was private so far.
    pub(super) fn publish(&mut self, place: Place, sink: &dyn ChangeSink) {
        let region = self.regions.get_mut(&place.region);
        if let Some(block) = region.and_then(|region| region.slots.publish(place.slot)) {
            sink.record(Change::Sealed {
                region: place.region,
                slot: place.slot,
                hash: block.hash,
                generation: block.generation,
                checksum: block.checksum,
            });
        }
    }

    /// Sealed -> Free: the generation odd, then the books, then the change, then the slot is free.
    pub(super) fn remove_block(&mut self, place: Place, sink: &dyn ChangeSink) {
        let Some(region) = self.regions.get_mut(&place.region) else {
            return;
        };
        let namespace = self.namespaces.get_mut(&region.region.namespace.name);
        region.remove_block(place, namespace, sink);
    }

    /// Evicts the pool's next victim. False where there is none.
    pub(super) fn evict_one(&mut self, region: RegionId, sink: &dyn ChangeSink) -> bool {
        let Some(pool) = self.regions.get_mut(&region) else {
            return false;
        };
        let Some(slot) = pool.policy.as_ref().and_then(|policy| policy.victim()) else {
            return false;
        };
        pool.evictions += 1;
        self.evictions += 1;
        self.surplus_evictions += u64::from(pool.surplus.contains(&slot));
        self.remove_block(Place { region, slot }, sink);
        true
    }

    /// Tells the pool's policy that a block was used.
    pub(super) fn touch(&mut self, place: Place) {
        if let Some(region) = self.regions.get_mut(&place.region)
            && let Some(policy) = &mut region.policy
        {
            policy.touched(place.slot);
            region.surplus.remove(&place.slot);
        }
    }

    /// Adds a sealed block to a pin. The caller made sure of both.
    pub(super) fn pin(&mut self, pin: PinId, held: &Held) {
        let (place, generation) = (held.place(), held.generation);
        let Some(region) = self.regions.get_mut(&place.region) else {
            return;
        };
        if !sabotage::is(Bug::PinsIgnored)
            && region.slots.pin(place.slot)
            && let Some(policy) = &mut region.policy
        {
            policy.pinned(place.slot);
            region.surplus.remove(&place.slot);
        }
        self.pins.add(pin, Pinned { place, generation });
    }

    /// Ends a pin. False where there is no such pin.
    pub(super) fn unpin(&mut self, pin: PinId) -> bool {
        let Some(blocks) = self.pins.close(pin) else {
            return false;
        };
        for Pinned { place, generation } in blocks {
            // The region may be gone; ids are never reused, so it is not another one.
            let Some(region) = self.regions.get_mut(&place.region) else {
                continue;
            };
            let is_same = |block: Block| block.generation == generation;
            if region.slots.block(place.slot).is_some_and(is_same)
                && region.slots.unpin(place.slot)
                && let Some(policy) = &mut region.policy
            {
                policy.unpinned(place.slot);
            }
        }
        true
    }

    /// Ends the pins whose time is over.
    pub(super) fn expire_pins(&mut self, now: Duration) -> usize {
        let mut expired = 0;
        while let Some(pin) = self.pins.expired(now) {
            self.unpin(pin);
            expired += 1;
        }
        expired
    }

    /// The reservation of a slot, where `holder` holds it.
    pub(super) fn reservation_of(&self, place: Place, holder: Holder) -> Option<Reservation> {
        let region = self.regions.get(&place.region)?;
        region
            .slots
            .reservation(place.slot)
            .filter(|reservation| reservation.holder == holder)
    }

    /// A pool slot to write to, evicting where none is free.
    pub(super) fn take_slot(&mut self, region: RegionId, sink: &dyn ChangeSink) -> Option<Slot> {
        if let Some(slot) = self.regions.get_mut(&region)?.slots.take_free() {
            return Some(slot);
        }
        if !self.evict_one(region, sink) {
            return None;
        }
        self.regions.get_mut(&region)?.slots.take_free()
    }
}
