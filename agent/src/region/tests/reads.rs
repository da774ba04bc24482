//! What others see while the store changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use kvferry_proto::{Checksum, ChecksumPolicy};

use super::super::fixture::{ALICE, BLOCK_BYTES, BOB, Rig, as_replayed, hash, name};
use super::NOW;
use crate::region::eviction::EvictionKind;
use crate::region::{Holder, StoreLimits};

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
            rig.pool
                .memory
                .fold(rig.pool.geometry.ranges(held.slot), |piece| {
                    seen.extend_from_slice(piece);
                })
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
