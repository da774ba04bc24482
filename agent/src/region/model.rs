//! The store's rules together: random operations against a model that knows no data structures.

mod check;
mod operation;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kvferry_proto::{ChecksumPolicy, RegionId, Slot};
use operation::{Operation, operations};
use proptest::prelude::*;

use super::{
    eviction::EvictionKind,
    fixture::{ENGINE_SLOTS, POOL_SLOTS, Rig, engine_memory, hash, name, pool_of, spec},
    words::Place,
    *,
};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Cell {
    Free,
    Reserved(Holder),
    /// Hash, when it was sealed, and which seal was its parent's.
    Sealed(u64, u64, Option<u64>),
    Quarantined,
}

#[derive(Debug)]
struct ModelPin {
    id: PinId,
    client: ClientId,
    expires: u64,
    seals: Vec<u64>,
}

struct Model {
    rig: Rig,
    eviction: EvictionKind,
    now: u64,
    seals: u64,
    cells: BTreeMap<Place, Cell>,
    pins: Vec<ModelPin>,
    /// Every pin ever made.
    made: Vec<PinId>,
    /// Every generation a slot was ever sealed with.
    generations: BTreeSet<(Place, u64)>,
    regions_seen: BTreeSet<RegionId>,
}

impl Model {
    fn new(eviction: EvictionKind) -> Self {
        let rig = Rig::with(eviction, ChecksumPolicy::Off, StoreLimits::default());
        let mut model = Self {
            eviction,
            now: 0,
            seals: 0,
            cells: BTreeMap::new(),
            pins: Vec::new(),
            made: Vec::new(),
            generations: BTreeSet::new(),
            regions_seen: BTreeSet::new(),
            rig,
        };
        model.enter(true);
        model.enter(false);
        model
    }

    fn enter(&mut self, pool: bool) {
        let region = self.region(pool);
        let slots = if pool { POOL_SLOTS } else { ENGINE_SLOTS };
        assert!(self.regions_seen.insert(region), "a region id was reused");
        let places = (0..slots).map(|slot| Place {
            region,
            slot: Slot(slot),
        });
        self.cells.extend(places.map(|place| (place, Cell::Free)));
    }

    fn region(&self, pool: bool) -> RegionId {
        if pool {
            self.rig.pool.id
        } else {
            self.rig.engine.id
        }
    }

    fn now(&self) -> Duration {
        Duration::from_secs(self.now)
    }

    /// The places of a region in a state, in order.
    fn places(&self, pool: bool, is: impl Fn(Cell) -> bool) -> Vec<Place> {
        let region = self.region(pool);
        let cells = self.cells.iter().filter(|(p, _)| p.region == region);
        cells.filter(|(_, c)| is(**c)).map(|(p, _)| *p).collect()
    }

    fn is_pinned(&self, cell: Cell) -> bool {
        matches!(cell, Cell::Sealed(_, seal, _) if self.pins.iter().any(|p| p.seals.contains(&seal)))
    }

    /// Where a block may lie, the pool's copy first and alone.
    fn find(&self, number: u64) -> Vec<Place> {
        let is = |cell| matches!(cell, Cell::Sealed(hash, ..) if hash == number);
        let in_pool = self.places(true, is);
        if in_pool.is_empty() {
            self.places(false, is)
        } else {
            in_pool
        }
    }

    fn has_child(&self, seal: u64) -> bool {
        let mut cells = self.cells.values();
        cells.any(|cell| matches!(cell, Cell::Sealed(_, _, Some(parent)) if *parent == seal))
    }

    fn expire(&mut self) {
        self.pins.retain(|pin| pin.expires > self.now);
    }

    fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::ReservePool(holder, count) => self.reserve_pool(holder, count),
            Operation::ReserveSlots(holder, slots) => self.reserve_slots(holder, &slots),
            Operation::Seal(holder, pool, hashes, wrong, chain) => {
                self.seal(holder, pool, &hashes, wrong, chain);
            }
            Operation::Abort(holder, pool, count, wrong) => {
                let places = self.held(holder, pool, count, wrong);
                let all = places.iter().all(|p| self.is_held(*p, holder));
                let slots: Vec<_> = places.iter().map(|place| place.slot).collect();
                let got = self.rig.store.abort(holder, self.region(pool), &slots);
                assert_eq!(got.is_ok(), all);
                self.set_if(all, &places, Cell::Free);
            }
            Operation::Quarantine(holder, pool, count) => {
                let places = self.held(holder, pool, count, None);
                let slots: Vec<_> = places.iter().map(|place| place.slot).collect();
                let region = self.region(pool);
                self.rig.store.quarantine(holder, region, &slots).unwrap();
                self.set_if(true, &places, Cell::Quarantined);
            }
            Operation::Unquarantine(pool, slot) => {
                let place = Place {
                    region: self.region(pool),
                    slot: Slot(slot),
                };
                let is = self.cells.get(&place) == Some(&Cell::Quarantined);
                let got = self.rig.store.unquarantine(place.region, &[place.slot]);
                assert_eq!(got.is_ok(), is);
                self.set_if(is, &[place], Cell::Free);
            }
            Operation::Pin(client, hashes, ttl) => self.pin(client, &hashes, ttl),
            Operation::Release(client, nth) => {
                let Some(id) = self.made.get(nth).copied() else {
                    return;
                };
                let alive = self
                    .pins
                    .iter()
                    .position(|p| p.id == id && p.client == client);
                let got = self.rig.store.release(client, id);
                assert_eq!(got.is_ok(), alive.is_some());
                if let Some(at) = alive {
                    self.pins.remove(at);
                }
            }
            Operation::Evict(hashes) => self.evict(hashes.as_deref()),
            Operation::Find(number) => {
                let found = self.rig.store.find(&name(), &hash(number));
                let may = self.find(number);
                assert_eq!(found.is_some(), !may.is_empty());
                assert!(found.is_none_or(|held| may.contains(&held.place())));
            }
            Operation::Pass(seconds) => {
                self.now += seconds;
                let before = self.pins.len();
                self.expire();
                assert_eq!(self.rig.store.tick(self.now()), before - self.pins.len());
            }
            Operation::Death(holder) => {
                let held = |pool| self.places(pool, |cell| cell == Cell::Reserved(holder));
                let places = [held(true), held(false)].concat();
                let is_its = |pin: &ModelPin| Holder::Client(pin.client) == holder;
                let pins = self.pins.iter().filter(|pin| is_its(pin)).count();
                let slots = places.len();
                let got = self.rig.store.release_holder(holder);
                assert_eq!(got, Released { slots, pins });
                self.set_if(true, &places, Cell::Free);
                self.pins.retain(|pin| !is_its(pin));
            }
            Operation::Unregister(pool) => self.unregister(pool),
        }
    }

    fn held(&self, holder: Holder, pool: bool, count: usize, more: Option<u32>) -> Vec<Place> {
        let region = self.region(pool);
        let held = self.places(pool, |cell| cell == Cell::Reserved(holder));
        let more = more.map(|slot| Place {
            region,
            slot: Slot(slot),
        });
        held.into_iter().take(count).chain(more).collect()
    }

    fn is_held(&self, place: Place, holder: Holder) -> bool {
        self.cells.get(&place) == Some(&Cell::Reserved(holder))
    }

    fn set_if(&mut self, condition: bool, places: &[Place], cell: Cell) {
        if condition {
            self.cells.extend(places.iter().map(|place| (*place, cell)));
        }
    }

    fn reserve_pool(&mut self, holder: Holder, count: u32) {
        let free = self.places(true, |cell| cell == Cell::Free).len();
        let sealed = self.places(true, |cell| matches!(cell, Cell::Sealed(..)));
        let unpinned = sealed
            .iter()
            .filter(|p| !self.is_pinned(self.cells[*p]))
            .count();
        let region = self.region(true);
        let got = self
            .rig
            .store
            .reserve_pool(self.now(), holder, region, count);
        let removed = self.rig.log.take_removed();
        if free + unpinned < count as usize {
            assert!(matches!(got, Err(ReservePoolError::PoolFull { .. })));
            assert!(removed.is_empty());
            return;
        }
        assert_eq!(removed.len(), (count as usize).saturating_sub(free));
        for (region, slot) in removed {
            self.check_victim(Place { region, slot });
            self.cells.insert(Place { region, slot }, Cell::Free);
        }
        let slots = got.unwrap();
        assert_eq!(slots.len(), count as usize);
        for slot in slots {
            let before = self
                .cells
                .insert(Place { region, slot }, Cell::Reserved(holder));
            assert_eq!(before, Some(Cell::Free));
        }
    }

    fn check_victim(&self, victim: Place) {
        let cell = self.cells[&victim];
        assert!(!self.is_pinned(cell), "a pinned block was evicted");
        let Cell::Sealed(_, seal, _) = cell else {
            panic!("the victim held no block");
        };
        if self.eviction == EvictionKind::Prefix && self.has_child(seal) {
            let is_free_leaf = |cell: Cell| match cell {
                Cell::Sealed(_, seal, _) => !self.is_pinned(cell) && !self.has_child(seal),
                _ => false,
            };
            assert!(
                self.places(true, is_free_leaf).is_empty(),
                "a parent was evicted while there was an unpinned leaf"
            );
        }
    }

    fn reserve_slots(&mut self, holder: Holder, numbers: &[u32]) {
        let region = self.region(false);
        let slots: Vec<_> = numbers.iter().copied().map(Slot).collect();
        let places: Vec<_> = slots.iter().map(|&slot| Place { region, slot }).collect();
        let distinct = numbers.iter().collect::<BTreeSet<_>>().len() == numbers.len();
        let may = |place: &Place| match self.cells.get(place) {
            Some(Cell::Free) => true,
            Some(Cell::Reserved(other)) => *other == holder,
            Some(cell @ Cell::Sealed(..)) => !self.is_pinned(*cell),
            Some(Cell::Quarantined) | None => false,
        };
        let all = distinct && places.iter().all(may);
        let got = self
            .rig
            .store
            .reserve_slots(self.now(), holder, region, &slots);
        assert_eq!(got.is_ok(), all, "{got:?}");
        self.set_if(all, &places, Cell::Reserved(holder));
    }

    fn seal(
        &mut self,
        holder: Holder,
        pool: bool,
        numbers: &[u64],
        wrong: Option<u32>,
        chain: Option<Option<u64>>,
    ) {
        let region = self.region(pool);
        let mut places = self.held(holder, pool, numbers.len(), wrong);
        places.truncate(numbers.len());
        let numbers = &numbers[..places.len()];
        let distinct = places.iter().collect::<BTreeSet<_>>().len() == places.len();
        let all = distinct && places.iter().all(|place| self.is_held(*place, holder));
        let slots: Vec<_> = places.iter().map(|place| place.slot).collect();
        let hashes: Vec<_> = numbers.iter().copied().map(hash).collect();
        let seal = Seal {
            holder,
            region,
            slots: &slots,
            hashes: &hashes,
            chain: chain.map_or(Chain::Unknown, |parent| Chain::From(parent.map(hash))),
            checksums: Checksums::Compute,
            pin: None,
            private: false,
        };
        let got = self.rig.store.seal(self.now(), &seal);
        assert_eq!(got.is_ok(), all, "{got:?}");
        let Ok(outcomes) = got else {
            return;
        };
        let mut parent = chain.flatten();
        for ((place, number), outcome) in places.into_iter().zip(numbers).zip(outcomes) {
            let is = |number| move |cell| matches!(cell, Cell::Sealed(hash, ..) if hash == number);
            let there = self.places(true, is(*number));
            assert_eq!(outcome.duplicate, pool && !there.is_empty());
            if outcome.duplicate {
                assert_eq!(outcome.held.place(), there[0]);
                self.cells.insert(place, Cell::Free);
            } else {
                assert_eq!(outcome.held.place(), place);
                let generation = outcome.held.generation.0;
                assert!(
                    self.generations.insert((place, generation)),
                    "a generation repeats"
                );
                self.seals += 1;
                // Only the pool's copy of the parent counts, and only to the pool.
                let parent = parent.and_then(|parent| self.places(true, is(parent)).pop());
                let parent = parent
                    .filter(|_| pool)
                    .map(|place| match self.cells[&place] {
                        Cell::Sealed(_, seal, _) => seal,
                        _ => unreachable!(),
                    });
                self.cells
                    .insert(place, Cell::Sealed(*number, self.seals, parent));
            }
            if chain.is_some() {
                parent = Some(*number);
            }
        }
    }

    fn pin(&mut self, client: ClientId, numbers: &[u64], ttl: u64) {
        let hashes: Vec<_> = numbers.iter().copied().map(hash).collect();
        let ttl_given = Some(Duration::from_secs(ttl));
        let got = self
            .rig
            .store
            .pin(self.now(), client, &name(), &hashes, ttl_given);
        let (id, found) = got.unwrap();
        let mut seals = Vec::new();
        for (number, held) in numbers.iter().zip(found) {
            let may = self.find(*number);
            assert_eq!(held.is_some(), !may.is_empty());
            if let Some(held) = held {
                assert!(may.contains(&held.place()));
                if let Cell::Sealed(_, seal, _) = self.cells[&held.place()] {
                    seals.push(seal);
                }
            }
        }
        self.made.push(id);
        self.pins.push(ModelPin {
            id,
            client,
            expires: self.now + ttl,
            seals,
        });
    }

    fn evict(&mut self, numbers: Option<&[u64]>) {
        let wanted = |cell: Cell| match (cell, numbers) {
            (Cell::Sealed(hash, ..), Some(numbers)) => numbers.contains(&hash),
            (Cell::Sealed(..), None) => true,
            _ => false,
        };
        let places = [self.places(true, wanted), self.places(false, wanted)].concat();
        let (pinned, gone): (Vec<_>, Vec<_>) = places
            .into_iter()
            .partition(|place| self.is_pinned(self.cells[place]));
        let mut hashes: Vec<_> = numbers
            .unwrap_or_default()
            .iter()
            .copied()
            .map(hash)
            .collect();
        // Named twice, a pinned block is kept twice.
        hashes.sort();
        hashes.dedup();
        let what = numbers.map_or(EvictWhat::All, |_| EvictWhat::Blocks(&hashes));
        let got = self.rig.store.evict(self.now(), &name(), what).unwrap();
        assert_eq!(got.evicted, gone.len() as u64);
        assert_eq!(got.kept_pinned, pinned.len() as u64);
        self.set_if(true, &gone, Cell::Free);
    }

    /// And registers another one in its place.
    fn unregister(&mut self, pool: bool) {
        let region = self.region(pool);
        let sealed = self
            .places(pool, |cell| matches!(cell, Cell::Sealed(..)))
            .len();
        assert_eq!(self.rig.store.unregister(region), Ok(sealed as u64));
        self.cells.retain(|place, _| place.region != region);
        let spec = spec(ChecksumPolicy::Off);
        if pool {
            let options = pool_of(POOL_SLOTS, self.eviction);
            self.rig.pool = self.rig.store.add_pool(spec, options).unwrap();
        } else {
            let (geometry, memory) = engine_memory(ENGINE_SLOTS);
            self.rig.engine = self.rig.store.import(spec, geometry, memory).unwrap();
        }
        self.enter(pool);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn the_store_keeps_its_rules(lru in any::<bool>(), operations in operations()) {
        keeps_its_rules(lru, operations);
    }
}

fn keeps_its_rules(lru: bool, operations: Vec<Operation>) {
    let eviction = if lru {
        EvictionKind::Lru
    } else {
        EvictionKind::Prefix
    };
    let mut model = Model::new(eviction);
    for operation in operations {
        model.expire();
        // Operations that take no `now` see the pins that time has ended only once it is told.
        model.rig.store.tick(model.now());
        model.rig.log.take_removed();
        model.apply(operation);
        model.check();
    }
}

/// The same, with the operations that a fuzzer chose.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(bytes: &[u8]) {
    let (lru, bytes) = match bytes.split_first() {
        Some((first, rest)) => (first % 2 == 1, rest),
        None => (false, bytes),
    };
    keeps_its_rules(lru, crate::fuzz::chosen(&operation::operation(), bytes));
}
