//! What enough others hold goes first.

use kvferry_proto::{ChecksumPolicy, Generation, RegionId, Slot};

use super::super::fixture::{ALICE, BOB, Rig, hash, name};
use super::{ALICE_ID, NOW};
use crate::region::{SealOutcome, StoreLimits, eviction::EvictionKind};

type Copy = (RegionId, Slot, Generation);

/// Six blocks in the order of their use, none another's parent, and where they are.
fn six(eviction: EvictionKind) -> (Rig, Vec<Copy>) {
    let rig = Rig::with(eviction, ChecksumPolicy::Off, StoreLimits::default());
    let slots = rig.store.reserve_pool(NOW, ALICE, rig.pool.id, 6).unwrap();
    let hashes: Vec<_> = (0..6).map(hash).collect();
    let sealed = rig.seal(ALICE, &rig.pool, &slots, &hashes).unwrap();
    let copy = |outcome: &SealOutcome| {
        let held = &outcome.held;
        (held.region, held.slot, held.generation)
    };
    let copies = sealed.iter().map(copy).collect();
    (rig, copies)
}

/// The block that makes room for another.
fn evicted(rig: &Rig, copies: &[Copy]) -> usize {
    let slot = rig.store.reserve_pool(NOW, BOB, rig.pool.id, 1).unwrap()[0];
    copies.iter().position(|copy| copy.1 == slot).unwrap()
}

#[test]
fn a_hinted_block_goes_before_colder_ones() {
    for eviction in [EvictionKind::Prefix, EvictionKind::Lru] {
        let (rig, copies) = six(eviction);
        rig.store.surplus(&copies[3..4]);
        assert_eq!([evicted(&rig, &copies), evicted(&rig, &copies)], [3, 0]);
        // What a slot holds by now is another matter, and so are slots there never were.
        let (region, slot, generation) = copies[4];
        rig.store.surplus(&[
            (region, slot, Generation(generation.0 + 2)),
            (region, Slot(99), generation),
            (RegionId(99), slot, generation),
        ]);
        assert_eq!(evicted(&rig, &copies), 1);
    }
}

#[test]
fn a_hint_waits_for_the_end_of_a_pin_and_ends_with_a_later_use() {
    for eviction in [EvictionKind::Prefix, EvictionKind::Lru] {
        let (rig, copies) = six(eviction);
        let pin = |number| {
            let pinned = rig.store.pin(NOW, ALICE_ID, &name(), &[hash(number)], None);
            pinned.unwrap().0
        };
        // As a replica that was pulled: pinned, then published, then used up.
        let pinned = pin(4);
        rig.store.surplus(&copies[4..]);
        // 5 is used again.
        rig.store.release(ALICE_ID, pin(5)).unwrap();
        assert_eq!(evicted(&rig, &copies), 0, "4 is pinned");
        rig.store.release(ALICE_ID, pinned).unwrap();
        assert_eq!([evicted(&rig, &copies), evicted(&rig, &copies)], [4, 1]);
        assert_eq!(rig.store.stats().surplus_evictions, 1, "5 was used since");
    }
}
