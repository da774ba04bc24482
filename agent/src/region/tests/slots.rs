//! Reserving, evicting and giving back.

use kvferry_proto::{ChecksumPolicy, Generation, Slot};

use super::super::fixture::{ALICE, BOB, PULL, Rig, hash, name};
use super::{ALICE_ID, BOB_ID, NOW, slots};
use crate::region::eviction::EvictionKind;
use crate::region::{
    AbortError, Released, ReservePoolError, ReserveSlotsError, StoreLimits, UnquarantineError,
};

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
