//! Sealing.

use kvferry_proto::{BlockHash, Checksum, ChecksumPolicy, Generation, Slot};

use super::super::fixture::{
    ALICE, BLOCK_BYTES, BOB, PULL, Rig, as_replayed, engine_memory, hash, name, spec,
};
use super::{NOW, slots};
use crate::region::eviction::EvictionKind;
use crate::region::{
    Chain, Checksums, EvictWhat, Evicted, MAX_COPIES_PER_BLOCK, Seal, SealError, StoreLimits,
};

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
    let long = BlockHash::new(&[0; 32]).unwrap();
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
        private: false,
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
fn a_private_block_is_found_here_and_told_to_nobody_until_it_is_sealed_again_for_all() {
    let rig = Rig::new();
    let before = rig.log.changes();
    let private = |number, private| {
        let got = [rig.store.reserve_one(NOW, ALICE, rig.pool.id).unwrap()];
        let seal = Seal {
            holder: ALICE,
            region: rig.pool.id,
            slots: &got,
            hashes: &[hash(number)],
            chain: Chain::Unknown,
            checksums: Checksums::Compute,
            pin: None,
            private,
        };
        rig.store.seal(NOW, &seal).unwrap()[0]
    };
    private(1, true);
    private(2, true);
    assert!(rig.has(1) && rig.has(2));
    assert_eq!(rig.log.changes(), before);
    let published = private(2, false);
    assert!(published.duplicate);
    assert_eq!(rig.log.changes(), before + 1);
    // Gone again: of the private one nobody hears that either.
    let gone = rig.store.evict(NOW, &name(), EvictWhat::All).unwrap();
    assert_eq!((gone.evicted, rig.log.changes()), (2, before + 2));
    assert_eq!(
        as_replayed(&rig.store.inventory(|| ()).0),
        rig.log.replayed()
    );
}
