//! Blocks in known slots: which are there, telling of them, dropping them.

use kvferry_proto::Slot;

use super::super::fixture::{ALICE, Rig, hash};
use super::{ALICE_ID, NOW, slots};
use crate::region::{Chain, Checksums, Seal};

fn seal(rig: &Rig, private: bool) {
    let all = slots(0..3);
    rig.store
        .reserve_slots(NOW, ALICE, rig.engine.id, &all)
        .unwrap();
    let hashes = [hash(1), hash(2), hash(3)];
    let seal = Seal {
        holder: ALICE,
        region: rig.engine.id,
        slots: &all,
        hashes: &hashes,
        chain: Chain::Unknown,
        checksums: Checksums::Compute,
        pin: None,
        private,
    };
    rig.store.seal(NOW, &seal).unwrap();
}

#[test]
fn only_the_very_block_in_the_very_slot_is_held() {
    let rig = Rig::new();
    seal(&rig, false);
    let asked = [
        (Slot(0), hash(1)),
        (Slot(1), hash(1)),
        (Slot(2), hash(3)),
        (Slot(999), hash(1)),
    ];
    let held = rig.store.hold(rig.engine.id, &asked);
    assert_eq!(held, Some(vec![true, false, true, false]));
    rig.store.unregister(rig.engine.id).unwrap();
    assert_eq!(rig.store.hold(rig.engine.id, &asked), None);
}

#[test]
fn private_blocks_are_told_of_once() {
    let rig = Rig::new();
    seal(&rig, true);
    let before = rig.log.changes();
    rig.store.make_public(rig.engine.id, &slots(0..2));
    assert_eq!(rig.log.changes(), before + 2);
    rig.store.make_public(rig.engine.id, &slots(0..2));
    assert_eq!(rig.log.changes(), before + 2);
}

#[test]
fn dropped_blocks_are_gone_for_readers_first_and_pinned_ones_stay() {
    let rig = Rig::new();
    seal(&rig, false);
    let generation = rig.generation(&rig.engine, Slot(0));
    let name = super::super::fixture::name();
    rig.store
        .pin(NOW, ALICE_ID, &name, &[hash(3)], None)
        .unwrap();
    let blocks = [(Slot(0), hash(1)), (Slot(1), hash(9)), (Slot(2), hash(3))];
    assert_eq!(rig.store.drop_blocks(rig.engine.id, &blocks), 1);
    assert!(!rig.generation(&rig.engine, Slot(0)).is_sealed());
    assert!(rig.generation(&rig.engine, Slot(0)) > generation);
    assert_eq!((rig.has(1), rig.has(2), rig.has(3)), (false, true, true));
    assert_eq!(rig.log.take_removed(), [(rig.engine.id, Slot(0))]);
}
