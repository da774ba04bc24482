//! One test per rule of the store. The rules together are in [`super::model`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use kvferry_memory::{HostMemory, HugePages, fold_ranges};
use kvferry_proto::{
    Checksum, ChecksumPolicy, Generation, Geometry, HashLen, NamespaceName, RegionId, Slot,
};

use super::{
    fixture::{
        ALICE, BLOCK_BYTES, BOB, ENGINE_SLOTS, POOL_SLOTS, PULL, Rig, as_replayed, engine_memory,
        hash, name, pool_of, secs, spec,
    },
    *,
};
use crate::region::eviction::EvictionKind;

const NOW: Duration = Duration::ZERO;
const ALICE_ID: ClientId = ClientId(1);
const BOB_ID: ClientId = ClientId(2);

fn slots(numbers: impl IntoIterator<Item = u32>) -> Vec<Slot> {
    numbers.into_iter().map(Slot).collect()
}

#[test]
fn a_region_that_does_not_fit_is_refused() {
    let rig = Rig::new();
    let mut other = spec(ChecksumPolicy::Off);
    other.hash_len = HashLen::new(16).unwrap();
    let (geometry, memory) = engine_memory(2);
    assert!(matches!(
        rig.store.import(other, geometry, memory),
        Err(RegisterError::NamespaceMismatch { .. })
    ));
    assert!(matches!(
        rig.store.add_pool(spec(ChecksumPolicy::Off), pool_of(1, EvictionKind::Lru)),
        Err(RegisterError::PoolExists { region, .. }) if region == rig.pool.id
    ));
    let (geometry, _) = engine_memory(4);
    let short = HostMemory::pool("test", BLOCK_BYTES * 2, HugePages::Off).unwrap();
    assert!(matches!(
        rig.store.import(spec(ChecksumPolicy::Off), geometry, short),
        Err(RegisterError::Geometry(_))
    ));
    let mut elsewhere = spec(ChecksumPolicy::Off);
    elsewhere.name = NamespaceName::new("other").unwrap();
    let mut tiny = pool_of(1, EvictionKind::Lru);
    tiny.bytes -= 1;
    assert!(matches!(
        rig.store.add_pool(elsewhere, tiny),
        Err(RegisterError::PoolTooSmall {
            bytes: 63,
            block_bytes: 64
        })
    ));
    assert_eq!(rig.log.changes(), 2);
}

#[test]
fn bounds_of_registration_hold() {
    let register = |limits: StoreLimits| {
        let rig = Rig::with(EvictionKind::Lru, ChecksumPolicy::Off, limits);
        let mut spec = spec(ChecksumPolicy::Off);
        spec.name = NamespaceName::new("other").unwrap();
        match rig.store.add_pool(spec, pool_of(2, EvictionKind::Lru)) {
            Err(RegisterError::BoundReached { what, .. }) => Some(what),
            other => {
                other.unwrap();
                None
            }
        }
    };
    let limits = StoreLimits::default();
    assert_eq!(register(limits), None);
    assert_eq!(
        register(StoreLimits {
            regions: 2,
            ..limits
        }),
        Some("regions")
    );
    assert_eq!(
        register(StoreLimits {
            namespaces: 1,
            ..limits
        }),
        Some("namespaces")
    );
    let slots = u64::from(POOL_SLOTS + ENGINE_SLOTS) + 1;
    assert_eq!(
        register(StoreLimits { slots, ..limits }),
        Some("slots of all regions")
    );
}

#[test]
fn a_pool_is_cut_into_whole_blocks() {
    let rig = Rig::new();
    let mut spec = spec(ChecksumPolicy::Off);
    spec.name = NamespaceName::new("other").unwrap();
    let mut options = pool_of(3, EvictionKind::Lru);
    options.bytes += 63;
    let pool = rig.store.add_pool(spec, options).unwrap();
    assert_eq!(pool.geometry, Geometry::contiguous(3, BLOCK_BYTES).unwrap());
    assert_eq!(pool.memory.len(), 3 * BLOCK_BYTES);
    assert!(pool.pool && !rig.engine.pool);
}

#[test]
fn unregistering_takes_blocks_pins_and_reservations_along() {
    let rig = Rig::new();
    rig.fill([1, 2]);
    let (pin, _) = rig
        .store
        .pin(NOW, ALICE_ID, &name(), &[hash(1)], None)
        .unwrap();
    let slot = rig.store.reserve_one(NOW, BOB, rig.pool.id).unwrap();
    assert_eq!(rig.store.unregister(rig.pool.id), Ok(2));
    assert!(rig.store.region(rig.pool.id).is_none());
    assert!(!rig.has(1));
    for slot in 0..POOL_SLOTS {
        assert!(!rig.generation(&rig.pool, Slot(slot)).is_sealed());
    }
    assert!(matches!(
        rig.seal(BOB, &rig.pool, &[slot], &[hash(3)]),
        Err(SealError::UnknownRegion { .. })
    ));
    assert_eq!(rig.store.release(ALICE_ID, pin), Ok(()));
    assert_eq!(rig.store.release_holder(BOB), Released::default());
    assert_eq!(
        rig.store.unregister(rig.pool.id),
        Err(UnregisterError::UnknownRegion {
            region: rig.pool.id
        })
    );
    // A new pool gets a new id.
    let again = rig
        .store
        .add_pool(spec(ChecksumPolicy::Off), pool_of(1, EvictionKind::Lru))
        .unwrap();
    assert_eq!(again.id, RegionId(3));
    // The namespace ends with its last region.
    rig.store.unregister(again.id).unwrap();
    rig.store.unregister(rig.engine.id).unwrap();
    assert!(rig.store.namespace(&name()).is_none());
}

#[test]
fn a_full_pool_evicts_leaves_first_and_says_when_it_cannot() {
    let rig = Rig::new();
    rig.fill(1..=6);
    let got = rig.store.reserve_pool(NOW, BOB, rig.pool.id, 2).unwrap();
    assert_eq!(got.len(), 2);
    assert!(rig.has(4) && !rig.has(5) && !rig.has(6));
    rig.store
        .pin(NOW, ALICE_ID, &name(), &[hash(1), hash(4)], None)
        .unwrap();
    let before = rig.log.changes();
    assert_eq!(
        rig.store.reserve_pool(NOW, BOB, rig.pool.id, 3),
        Err(ReservePoolError::PoolFull {
            region: rig.pool.id,
            slots: 6,
            free: 0,
            pinned: 2,
            reserved: 2,
            quarantined: 0,
            wanted: 3,
        })
    );
    assert_eq!(rig.log.changes(), before, "nothing was evicted");
    // A pinned leaf does not keep the whole pool.
    rig.store.reserve_pool(NOW, BOB, rig.pool.id, 2).unwrap();
    assert!(rig.has(1) && rig.has(4) && !rig.has(2) && !rig.has(3));
    assert_eq!(rig.store.stats().regions[0].evictions, 4);
}

#[test]
fn slots_are_chosen_by_their_owner() {
    let rig = Rig::new();
    assert_eq!(
        rig.store.reserve_pool(NOW, ALICE, rig.engine.id, 1),
        Err(ReservePoolError::NotAPool {
            region: rig.engine.id
        })
    );
    assert_eq!(
        rig.store.reserve_slots(NOW, ALICE, rig.pool.id, &[Slot(0)]),
        Err(ReserveSlotsError::IsAPool {
            region: rig.pool.id
        })
    );
}

#[test]
fn engine_slots_are_reserved_all_or_none() {
    let rig = Rig::new();
    let region = rig.engine.id;
    let reserve = |holder, numbers: &[u32]| {
        let slots = slots(numbers.iter().copied());
        rig.store.reserve_slots(NOW, holder, region, &slots)
    };
    reserve(ALICE, &[0, 1]).unwrap();
    let sealed = rig
        .seal(ALICE, &rig.engine, &slots([0, 1]), &[hash(1), hash(2)])
        .unwrap();
    assert_eq!(sealed[1].held.generation, Generation(2));
    reserve(BOB, &[3]).unwrap();
    let busy = ReserveSlotsError::SlotBusy {
        region,
        slot: Slot(3),
    };
    assert_eq!(reserve(ALICE, &[0, 3]), Err(busy.clone()));
    assert!(rig.has(1));
    assert_eq!(
        reserve(ALICE, &[2, 4]),
        Err(ReserveSlotsError::SlotOutOfRange {
            region,
            slot: Slot(4),
            slots: 4
        })
    );
    assert_eq!(
        reserve(ALICE, &[2, 2]),
        Err(ReserveSlotsError::SlotTwice {
            region,
            slot: Slot(2)
        })
    );
    let (pin, _) = rig
        .store
        .pin(NOW, BOB_ID, &name(), &[hash(2)], None)
        .unwrap();
    assert_eq!(
        reserve(ALICE, &[0, 1]),
        Err(ReserveSlotsError::SlotPinned {
            region,
            slot: Slot(1)
        })
    );
    rig.store.release(BOB_ID, pin).unwrap();
    reserve(ALICE, &[0, 1]).unwrap();
    assert!(!rig.has(1) && !rig.has(2));
    assert_eq!(rig.generation(&rig.engine, Slot(0)), Generation(3));
    rig.store.quarantine(BOB, region, &[Slot(3)]).unwrap();
    assert_eq!(reserve(BOB, &[3]), Err(busy));
}

#[test]
fn a_seal_that_is_wrong_in_one_place_seals_nothing() {
    let rig = Rig::new();
    let region = rig.pool.id;
    let got = rig.store.reserve_pool(NOW, ALICE, region, 2).unwrap();
    let before = rig.log.changes();
    assert!(matches!(
        rig.seal(ALICE, &rig.pool, &got, &[hash(1)]),
        Err(SealError::Columns {
            slots: 2,
            what: "hashes",
            got: 1
        })
    ));
    let long = kvferry_proto::BlockHash::new(&[0; 32]).unwrap();
    assert!(matches!(
        rig.seal(ALICE, &rig.pool, &got, &[hash(1), long]),
        Err(SealError::HashLength {
            got: 32,
            want: 8,
            ..
        })
    ));
    assert!(matches!(
        rig.seal(BOB, &rig.pool, &got, &[hash(1), hash(2)]),
        Err(SealError::SlotNotReserved { slot, .. }) if slot == got[0]
    ));
    assert!(matches!(
        rig.seal(ALICE, &rig.pool, &[got[0], got[0]], &[hash(1), hash(2)]),
        Err(SealError::SlotTwice { .. })
    ));
    assert!(matches!(
        rig.seal(ALICE, &rig.pool, &[got[0], Slot(99)], &[hash(1), hash(2)]),
        Err(SealError::SlotNotReserved { slot: Slot(99), .. })
    ));
    assert_eq!(rig.log.changes(), before);
    rig.seal(ALICE, &rig.pool, &got, &[hash(1), hash(2)])
        .unwrap();
    assert!(matches!(
        rig.seal(ALICE, &rig.pool, &got, &[hash(1), hash(2)]),
        Err(SealError::AlreadySealed {
            generation: Generation(2),
            ..
        })
    ));
}

#[test]
fn a_pool_keeps_one_copy_and_an_engine_as_many_as_it_likes() {
    let rig = Rig::new();
    let first = rig.fill([1])[0].held;
    let got = rig.store.reserve_pool(NOW, PULL, rig.pool.id, 3).unwrap();
    let outcomes = rig
        .seal(PULL, &rig.pool, &got, &[hash(1), hash(2), hash(2)])
        .unwrap();
    assert!(outcomes[0].duplicate && outcomes[0].held == first);
    assert!(!outcomes[1].duplicate);
    assert!(outcomes[2].duplicate && outcomes[2].held == outcomes[1].held);
    assert!(!rig.generation(&rig.pool, got[0]).is_sealed());
    assert_eq!(rig.store.stats().regions[0].free, 4);

    rig.store
        .reserve_slots(NOW, ALICE, rig.engine.id, &slots([0, 1]))
        .unwrap();
    let outcomes = rig
        .seal(ALICE, &rig.engine, &slots([0, 1]), &[hash(1), hash(1)])
        .unwrap();
    assert!(outcomes.iter().all(|outcome| !outcome.duplicate));
    // The pool's copy is preferred, then any.
    assert_eq!(rig.store.find(&name(), &hash(1)), Some(first));
    let evicted = |evicted| Evicted {
        evicted,
        kept_pinned: 0,
    };
    let what = [hash(1)];
    let got = rig.store.evict(NOW, &name(), EvictWhat::Blocks(&what));
    assert_eq!(got, Ok(evicted(3)));
    assert!(!rig.has(1));
}

#[test]
fn copies_of_one_block_are_bounded() {
    let rig = Rig::new();
    let count = MAX_COPIES_PER_BLOCK as u32 + 2;
    let (geometry, memory) = engine_memory(count);
    let engine = rig
        .store
        .import(spec(ChecksumPolicy::Off), geometry, memory)
        .unwrap();
    let all = slots(0..count);
    rig.store
        .reserve_slots(NOW, ALICE, engine.id, &all)
        .unwrap();
    let hashes = vec![hash(1); all.len()];
    let outcomes = rig.seal(ALICE, &engine, &all, &hashes).unwrap();
    let duplicates = outcomes.iter().filter(|outcome| outcome.duplicate);
    assert_eq!(duplicates.count(), 2);
    assert_eq!(
        rig.store.unregister(engine.id),
        Ok(MAX_COPIES_PER_BLOCK as u64)
    );
    assert!(!rig.has(1));
}

#[test]
fn checksums_follow_the_policy_and_cover_all_planes() {
    let rig = Rig::with(
        EvictionKind::Prefix,
        ChecksumPolicy::Always,
        StoreLimits::default(),
    );
    let bytes: Vec<u8> = (0..BLOCK_BYTES as u8).collect();
    let (first, second) = bytes.split_at(32);
    let mut planes = rig.engine.geometry.ranges(Slot(2)).map(|range| range.start);
    rig.engine
        .memory
        .write_at(planes.next().unwrap(), first)
        .unwrap();
    rig.engine
        .memory
        .write_at(planes.next().unwrap(), second)
        .unwrap();
    rig.store
        .reserve_slots(NOW, ALICE, rig.engine.id, &[Slot(2)])
        .unwrap();
    let outcomes = rig
        .seal(ALICE, &rig.engine, &[Slot(2)], &[hash(1)])
        .unwrap();
    assert_eq!(outcomes[0].held.checksum, Some(Checksum::of_bytes(&bytes)));
    let off = Rig::new();
    assert_eq!(off.fill([1])[0].held.checksum, None);
}

#[test]
fn a_reservation_lost_while_checksums_are_computed_seals_nothing() {
    let rig = Rig::new();
    let got = [rig.store.reserve_one(NOW, ALICE, rig.pool.id).unwrap()];
    let hashes = [hash(1)];
    let seal = Seal {
        holder: ALICE,
        region: rig.pool.id,
        slots: &got,
        hashes: &hashes,
        chain: Chain::Unknown,
        checksums: Checksums::Compute,
        pin: None,
    };
    let checked = rig.store.check_seal(&seal).unwrap();
    rig.store.abort(ALICE, rig.pool.id, &got).unwrap();
    // The same holder gets the same slot again, for another block.
    assert_eq!(rig.store.reserve_one(NOW, ALICE, rig.pool.id), Ok(got[0]));
    assert!(matches!(
        rig.store.commit_seal(NOW, &seal, &checked, &[None]),
        Err(SealError::SlotNotReserved { .. })
    ));
    assert!(!rig.has(1));
}

#[test]
fn aborted_slots_are_free_and_quarantined_ones_are_not() {
    let rig = Rig::new();
    let region = rig.pool.id;
    let got = rig.store.reserve_pool(NOW, PULL, region, 6).unwrap();
    assert_eq!(
        rig.store.abort(ALICE, region, &got[..1]),
        Err(AbortError::SlotNotReserved {
            region,
            slot: got[0]
        })
    );
    rig.store.abort(PULL, region, &got[..1]).unwrap();
    rig.store.quarantine(PULL, region, &got[1..2]).unwrap();
    assert_eq!(
        rig.store.release_holder(PULL),
        Released { slots: 4, pins: 0 }
    );
    assert!(rig.store.reserve_pool(NOW, ALICE, region, 6).is_err());
    rig.store.unquarantine(region, &got[1..2]).unwrap();
    assert_eq!(
        rig.store.unquarantine(region, &got[1..2]),
        Err(UnquarantineError::NotQuarantined {
            region,
            slot: got[1]
        })
    );
    assert_eq!(
        rig.store.reserve_pool(NOW, ALICE, region, 6).unwrap().len(),
        6
    );
}

#[test]
fn a_dead_client_leaves_nothing_behind() {
    let rig = Rig::new();
    rig.fill([1]);
    rig.store
        .pin(NOW, BOB_ID, &name(), &[hash(1)], None)
        .unwrap();
    rig.store
        .reserve_slots(NOW, BOB, rig.engine.id, &slots([1, 2]))
        .unwrap();
    rig.store.reserve_one(NOW, BOB, rig.pool.id).unwrap();
    rig.store
        .reserve_slots(NOW, ALICE, rig.engine.id, &slots([0]))
        .unwrap();
    assert_eq!(
        rig.store.release_holder(BOB),
        Released { slots: 3, pins: 1 }
    );
    let stats = rig.store.stats();
    assert_eq!((stats.reservations, stats.pins), (1, 0));
    assert_eq!(stats.regions[1].free, 3);
    assert!(!rig.generation(&rig.engine, Slot(1)).is_sealed());
    assert!(rig.has(1));
}

#[test]
fn pins_end_by_release_and_by_time() {
    let rig = Rig::new();
    rig.fill([1, 2]);
    let pin = |ttl| {
        rig.store
            .pin(NOW, ALICE_ID, &name(), &[hash(1), hash(9)], ttl)
    };
    let (first, found) = pin(None).unwrap();
    assert!(found[0].is_some() && found[1].is_none());
    let (second, _) = pin(Some(secs(600))).unwrap();
    assert_eq!(
        pin(Some(secs(601))),
        Err(PinError::TtlTooLong {
            ttl_ms: 601_000,
            max_ms: 600_000
        })
    );
    let unknown = Err(ReleaseError::UnknownPin { pin: first });
    assert_eq!(rig.store.release(BOB_ID, first), unknown);
    assert_eq!(rig.store.next_expiry(), Some(secs(30)));
    assert_eq!(rig.store.tick(Duration::from_millis(29_999)), 0);
    assert_eq!(rig.store.tick(secs(30)), 1);
    assert_eq!(rig.store.release(ALICE_ID, first), unknown);
    // The other pin still holds the slot.
    let all = |now| rig.store.evict(now, &name(), EvictWhat::All).unwrap();
    assert_eq!(
        all(secs(31)),
        Evicted {
            evicted: 1,
            kept_pinned: 1
        }
    );
    rig.store.release(ALICE_ID, second).unwrap();
    assert_eq!(
        all(secs(31)),
        Evicted {
            evicted: 1,
            kept_pinned: 0
        }
    );
}

#[test]
fn blocks_of_a_pull_join_one_pin() {
    let rig = Rig::new();
    let (pin, there) = rig.store.pin_held(NOW, ALICE_ID, None, &[], None).unwrap();
    assert!(there.is_empty());
    let got = [rig.store.reserve_one(NOW, PULL, rig.pool.id).unwrap()];
    let seal = Seal {
        holder: PULL,
        region: rig.pool.id,
        slots: &got,
        hashes: &[hash(1)],
        chain: Chain::Unknown,
        checksums: Checksums::Given(&[Checksum::from_wire(7)]),
        pin: Some(pin),
    };
    let outcome = rig.store.seal(NOW, &seal).unwrap()[0];
    assert!(outcome.pinned && outcome.held.checksum == Checksum::from_wire(7));
    // What was here already joins later, and what is gone does not.
    let here = rig.fill([2])[0].held;
    let gone = Held {
        generation: Generation(8),
        ..here
    };
    let joined = rig
        .store
        .pin_held(secs(20), ALICE_ID, Some(pin), &[here, gone], None);
    assert_eq!(joined, Ok((pin, vec![true, false])));
    assert_eq!(rig.store.tick(secs(49)), 0, "prolonged");
    assert_eq!(rig.store.stats().regions[0].pinned, 2);
    assert_eq!(
        rig.store
            .pin_held(secs(49), BOB_ID, Some(pin), &[here], None),
        Err(PinError::UnknownPin { pin })
    );
    assert_eq!(rig.store.tick(secs(50)), 1);
    assert_eq!(rig.store.stats().regions[0].pinned, 0);
}

#[test]
fn bounds_of_pins_hold() {
    let limits = StoreLimits {
        pins_per_client: 2,
        pinned_blocks_per_client: 3,
        ..StoreLimits::default()
    };
    let rig = Rig::with(EvictionKind::Prefix, ChecksumPolicy::Off, limits);
    rig.fill([1, 2]);
    let both = [hash(1), hash(2)];
    let pin = |client| rig.store.pin(NOW, client, &name(), &both, None);
    let (first, _) = pin(ALICE_ID).unwrap();
    assert_eq!(pin(ALICE_ID), Err(PinError::TooManyPinnedBlocks { max: 3 }));
    let (_, found) = rig
        .store
        .pin(NOW, ALICE_ID, &name(), &both[..1], None)
        .unwrap();
    assert!(found[0].is_some());
    assert_eq!(pin(ALICE_ID), Err(PinError::TooManyPins { max: 2 }));
    pin(BOB_ID).unwrap();
    rig.store.release(ALICE_ID, first).unwrap();
    pin(ALICE_ID).unwrap();
    let other = NamespaceName::new("other").unwrap();
    assert_eq!(
        rig.store.pin(NOW, BOB_ID, &other, &[], None),
        Err(PinError::UnknownNamespace { namespace: other })
    );
}

#[test]
fn the_inventory_and_later_changes_are_the_truth() {
    let rig = Rig::new();
    rig.fill([1, 2]);
    let (inventory, position) = rig.store.inventory(|| rig.log.changes());
    assert_eq!(position, rig.log.changes());
    assert_eq!(as_replayed(&inventory), rig.log.replayed());
    rig.fill([3]);
    assert_eq!(rig.log.changes(), position + 1);
}

#[test]
fn use_keeps_a_block_in_an_lru_pool() {
    let rig = Rig::with(
        EvictionKind::Lru,
        ChecksumPolicy::Off,
        StoreLimits::default(),
    );
    rig.fill(1..=6);
    assert!(rig.has(1));
    rig.store.reserve_one(NOW, BOB, rig.pool.id).unwrap();
    assert!(rig.has(1) && !rig.has(2));
}

/// Writers overwrite the pool as fast as they can; readers must never take wrong bytes for right.
#[test]
fn validated_reads_are_right_while_slots_are_overwritten() {
    const WRITES: u64 = 4000;
    let rig = Rig::with(
        EvictionKind::Lru,
        ChecksumPolicy::Always,
        StoreLimits::default(),
    );
    let (done, right) = (AtomicBool::new(false), AtomicUsize::new(0));
    let write = |holder: Holder, seed: u64| {
        for step in 0..WRITES {
            let number = (step * 7 + seed) % 20;
            let Ok(slot) = rig.store.reserve_one(NOW, holder, rig.pool.id) else {
                continue;
            };
            let at = rig.pool.geometry.ranges(slot).next().unwrap().start;
            rig.pool
                .memory
                .write_at(at, &[number as u8; BLOCK_BYTES as usize])
                .unwrap();
            rig.seal(holder, &rig.pool, &[slot], &[hash(number)])
                .unwrap();
        }
    };
    let read = || {
        let mut number = 0;
        while !done.load(Ordering::Relaxed) {
            number = (number + 1) % 20;
            let Some(held) = rig.store.find(&name(), &hash(number)) else {
                continue;
            };
            let mut seen = Vec::new();
            fold_ranges(
                &rig.pool.memory,
                rig.pool.geometry.ranges(held.slot),
                |piece| {
                    seen.extend_from_slice(piece);
                },
            )
            .unwrap();
            if rig.generation(&rig.pool, held.slot) == held.generation {
                assert_eq!(seen, [number as u8; BLOCK_BYTES as usize]);
                assert_eq!(held.checksum, Some(Checksum::of_bytes(&seen)));
                right.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        let reader = scope.spawn(read);
        let writers = [
            scope.spawn(|| write(ALICE, 0)),
            scope.spawn(|| write(BOB, 3)),
        ];
        writers
            .into_iter()
            .for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    assert!(right.load(Ordering::Relaxed) > 0);
    let (inventory, ()) = rig.store.inventory(|| ());
    assert_eq!(as_replayed(&inventory), rig.log.replayed());
    assert!(Arc::strong_count(&rig.pool) >= 2);
}
