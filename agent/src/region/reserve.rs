//! Taking slots for writing, and giving them back unsealed.

use std::time::Duration;

use kvferry_proto::{RegionId, Slot};

use super::{
    AbortError, Holder, ReservePoolError, ReserveSlotsError, Store, UnquarantineError,
    slots::{Seen, SlotState},
    words::Place,
};

/// What a holder left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Released {
    /// Slots that were reserved.
    pub slots: usize,
    /// Pins that were held.
    pub pins: usize,
}

impl Store {
    /// Takes `count` slots of a pool, evicting unpinned blocks where too few are free. Their
    /// generations are odd when this returns.
    ///
    /// # Errors
    /// [`ReservePoolError`]; nothing was evicted then.
    pub fn reserve_pool(
        &self,
        now: Duration,
        holder: Holder,
        region: RegionId,
        count: u32,
    ) -> Result<Vec<Slot>, ReservePoolError> {
        let mut state = self.state.lock();
        state.expire_pins(now);
        let Some(pool) = state.regions.get(&region) else {
            return Err(ReservePoolError::UnknownRegion { region });
        };
        if !pool.region.pool {
            return Err(ReservePoolError::NotAPool { region });
        }
        let counts = pool.slots.counts();
        let full = ReservePoolError::PoolFull {
            region,
            slots: pool.region.geometry.slots(),
            free: counts.free,
            pinned: counts.pinned,
            reserved: counts.reserved,
            quarantined: counts.quarantined,
            wanted: count,
        };
        // Each unpinned sealed slot is some victim: the policy's promise. So this decides.
        if counts.free + (counts.sealed - counts.pinned) < count {
            return Err(full);
        }
        let mut slots = Vec::with_capacity(count as usize);
        while slots.len() < count as usize {
            let Some(slot) = state.take_slot(region, &*self.sink) else {
                return Err(full);
            };
            state.reserve(Place { region, slot }, holder);
            slots.push(slot);
        }
        Ok(slots)
    }

    /// Takes one slot of a pool; see [`Store::reserve_pool`].
    ///
    /// # Errors
    /// [`ReservePoolError`]; nothing was evicted then.
    pub fn reserve_one(
        &self,
        now: Duration,
        holder: Holder,
        region: RegionId,
    ) -> Result<Slot, ReservePoolError> {
        let slots = self.reserve_pool(now, holder, region, 1)?;
        // One was asked for, so there is one.
        slots
            .first()
            .copied()
            .ok_or(ReservePoolError::UnknownRegion { region })
    }

    /// Takes one slot of a pool that nobody uses; nothing is evicted for it.
    ///
    /// # Errors
    /// [`ReservePoolError`].
    pub fn reserve_spare(
        &self,
        now: Duration,
        holder: Holder,
        region: RegionId,
    ) -> Result<Slot, ReservePoolError> {
        let mut state = self.state.lock();
        state.expire_pins(now);
        let Some(pool) = state.regions.get(&region) else {
            return Err(ReservePoolError::UnknownRegion { region });
        };
        if !pool.region.pool {
            return Err(ReservePoolError::NotAPool { region });
        }
        let counts = pool.slots.counts();
        let full = ReservePoolError::PoolFull {
            region,
            slots: pool.region.geometry.slots(),
            free: counts.free,
            pinned: counts.pinned,
            reserved: counts.reserved,
            quarantined: counts.quarantined,
            wanted: 1,
        };
        if counts.free == 0 {
            return Err(full);
        }
        // A free slot is taken before any other is given up.
        let slot = state.take_slot(region, &*self.sink).ok_or(full)?;
        state.reserve(Place { region, slot }, holder);
        Ok(slot)
    }

    /// Takes these slots of an engine's region, all or none; sealed blocks in them are removed.
    /// Their generations are odd when this returns. Slots the holder has already stay its own, and a
    /// seal of them that is under way fails.
    ///
    /// # Errors
    /// [`ReserveSlotsError`] names the first slot that cannot be had; nothing changed then.
    pub fn reserve_slots(
        &self,
        now: Duration,
        holder: Holder,
        region: RegionId,
        slots: &[Slot],
    ) -> Result<(), ReserveSlotsError> {
        let mut state = self.state.lock();
        state.expire_pins(now);
        let Some(entry) = state.regions.get(&region) else {
            return Err(ReserveSlotsError::UnknownRegion { region });
        };
        if entry.region.pool {
            return Err(ReserveSlotsError::IsAPool { region });
        }
        let mut seen = Seen::of(slots);
        for &slot in slots {
            let Some(now_there) = entry.slots.get(slot) else {
                let slots = entry.region.geometry.slots();
                return Err(ReserveSlotsError::SlotOutOfRange {
                    region,
                    slot,
                    slots,
                });
            };
            if !seen.insert(slot) {
                return Err(ReserveSlotsError::SlotTwice { region, slot });
            }
            match now_there {
                SlotState::Sealed(_) if entry.slots.is_pinned(slot) => {
                    return Err(ReserveSlotsError::SlotPinned { region, slot });
                }
                SlotState::Reserved(other) if other.holder != holder => {
                    return Err(ReserveSlotsError::SlotBusy { region, slot });
                }
                SlotState::Quarantined => {
                    return Err(ReserveSlotsError::SlotBusy { region, slot });
                }
                SlotState::Free | SlotState::Reserved(_) | SlotState::Sealed(_) => {}
            }
        }
        state.take_over(region, slots, holder, &*self.sink);
        Ok(())
    }

    /// Gives reserved slots back unsealed, all or none. Nothing may write to them any more: slots of
    /// which that is not sure go to [`Store::quarantine`].
    ///
    /// # Errors
    /// [`AbortError`] names the first slot the holder does not hold.
    pub fn abort(
        &self,
        holder: Holder,
        region: RegionId,
        slots: &[Slot],
    ) -> Result<(), AbortError> {
        self.give_up(holder, region, slots, SlotState::Free)
    }

    /// Takes reserved slots out of use, all or none: a transport may still write to them. The holder
    /// holds them no longer.
    ///
    /// # Errors
    /// [`AbortError`] names the first slot the holder does not hold.
    pub fn quarantine(
        &self,
        holder: Holder,
        region: RegionId,
        slots: &[Slot],
    ) -> Result<(), AbortError> {
        self.give_up(holder, region, slots, SlotState::Quarantined)
    }

    fn give_up(
        &self,
        holder: Holder,
        region: RegionId,
        slots: &[Slot],
        to: SlotState,
    ) -> Result<(), AbortError> {
        let mut state = self.state.lock();
        if !state.regions.contains_key(&region) {
            return Err(AbortError::UnknownRegion { region });
        }
        let held = |slot: &&Slot| {
            let place = Place {
                region,
                slot: **slot,
            };
            state.reservation_of(place, holder).is_none()
        };
        if let Some(&slot) = slots.iter().find(held) {
            return Err(AbortError::SlotNotReserved { region, slot });
        }
        for &slot in slots {
            let place = Place { region, slot };
            // A slot that is named twice was given up the first time.
            if state.reservation_of(place, holder).is_some() {
                state.give_up(place, holder, to);
            }
        }
        Ok(())
    }

    /// Frees quarantined slots, all or none, once the transport has settled them.
    ///
    /// # Errors
    /// [`UnquarantineError`] names the first slot that is in no quarantine.
    pub fn unquarantine(&self, region: RegionId, slots: &[Slot]) -> Result<(), UnquarantineError> {
        let mut state = self.state.lock();
        let Some(entry) = state.regions.get_mut(&region) else {
            return Err(UnquarantineError::UnknownRegion { region });
        };
        let free = |slot: &&Slot| entry.slots.get(**slot) != Some(SlotState::Quarantined);
        if let Some(&slot) = slots.iter().find(free) {
            return Err(UnquarantineError::NotQuarantined { region, slot });
        }
        for &slot in slots {
            if entry.slots.get(slot) == Some(SlotState::Quarantined) {
                entry.slots.set(slot, SlotState::Free);
            }
        }
        Ok(())
    }

    /// Frees all slots a holder has reserved, and releases a client's pins: its connection is gone,
    /// or its pull has ended. Generations stay odd.
    pub fn release_holder(&self, holder: Holder) -> Released {
        let mut state = self.state.lock();
        let places = state.reserved.remove(&holder).unwrap_or_default();
        // In one order: what a store does depends on what it is told, on no hash's seed.
        let mut places: Vec<_> = places.into_iter().collect();
        places.sort_unstable();
        for place in &places {
            if let Some(region) = state.regions.get_mut(&place.region) {
                region.slots.set(place.slot, SlotState::Free);
            }
        }
        let pins = match holder {
            Holder::Client(client) => state.pins.of_client(client),
            Holder::Pull(_) => Vec::new(),
        };
        for pin in &pins {
            state.unpin(*pin);
        }
        Released {
            slots: places.len(),
            pins: pins.len(),
        }
    }
}
