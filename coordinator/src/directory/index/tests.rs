//! The index against plain maps, for every width, through growth and back.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

fn owner(slot: u32) -> Owner {
    Owner {
        region: slot / 7,
        slot,
    }
}

fn held(slot: u32) -> Held {
    Held {
        owner: owner(slot),
        generation: u64::from(slot) * 2,
        checksum: u64::from(slot % 3),
    }
}

fn key(len: usize, number: u64) -> Vec<u8> {
    let word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    word.iter().copied().cycle().take(len).collect()
}

fn insert(index: &Index, len: usize, numbers: &[(u64, u32)]) -> Vec<(u32, Place)> {
    let hashes: Vec<u8> = numbers.iter().flat_map(|n| key(len, n.0)).collect();
    let mut batch: Vec<Sealing> = (0..)
        .zip(numbers)
        .map(|(at, (_, slot))| Sealing::new(at, held(*slot)))
        .collect();
    let mut places = Vec::new();
    index.insert(&hashes, &mut batch, |sealing, place| {
        places.push((sealing.held.owner.slot, place.unwrap()));
    });
    places
}

fn look_up(index: &Index, len: usize, numbers: impl Iterator<Item = u64>) -> Vec<BTreeSet<u32>> {
    let hashes: Vec<u8> = numbers.flat_map(|n| key(len, n)).collect();
    let mut all = Vec::new();
    let flow = index.look_up(&hashes, |copies| {
        all.push(
            copies
                .map(|copy| {
                    assert_eq!(copy, held(copy.owner.slot));
                    copy.owner.slot
                })
                .collect(),
        );
        ControlFlow::<()>::Continue(())
    });
    assert!(flow.is_continue());
    all
}

/// Some blocks of one copy, some of several, put in and taken out in turns.
#[test]
fn what_is_put_in_is_found_until_it_is_taken_out() {
    for len in [8, 16, 20, 32, 48, 64] {
        let index = Index::new(HashLen::new(len).unwrap());
        let mut model: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
        let mut places = BTreeMap::new();
        for round in 0..6u32 {
            let slots = round * 4_000..(round + 1) * 4_000;
            let some: Vec<(u64, u32)> = slots.map(|slot| (u64::from(slot % 6_400), slot)).collect();
            places.extend(insert(&index, len, &some));
            for (number, slot) in some {
                model.entry(number).or_default().insert(slot);
            }
            let gone = places.keys().copied().filter(|slot| slot % 3 == round % 3);
            let gone: Vec<u32> = gone.collect();
            let mut batch: Vec<(Place, Owner)> = gone
                .iter()
                .map(|slot| (places.remove(slot).unwrap(), owner(*slot)))
                .collect();
            index.remove(&mut batch);
            for slot in gone {
                let number = u64::from(slot % 6_400);
                let left = model.get_mut(&number).unwrap();
                left.remove(&slot);
                if left.is_empty() {
                    model.remove(&number);
                }
            }
            assert_eq!(index.len(), model.len());
            let want: Vec<BTreeSet<u32>> = (0..7_000)
                .map(|n| model.get(&n).cloned().unwrap_or_default())
                .collect();
            assert_eq!(look_up(&index, len, 0..7_000), want);
        }
    }
}

#[test]
fn a_copy_is_sealed_anew_in_place_and_only_under_its_hash() {
    let index = Index::new(HashLen::new(8).unwrap());
    let places = insert(&index, 8, &[(1, 1), (1, 2), (3, 3)]);
    for (slot, place) in places {
        let number = if slot == 2 { 1 } else { u64::from(slot) };
        let again = Held {
            generation: 88,
            ..held(slot)
        };
        assert!(index.reseal(place, &key(8, number), again));
        assert!(!index.reseal(place, &key(8, 9), again));
    }
    let mut generations = Vec::new();
    let hashes = [key(8, 1), key(8, 3)].concat();
    let _ = index.look_up(&hashes, |copies| {
        generations.extend(copies.map(|copy| copy.generation));
        ControlFlow::<()>::Continue(())
    });
    assert_eq!(generations, [88, 88, 88]);
}

#[test]
fn a_look_up_breaks_off_where_it_is_told() {
    let index = Index::new(HashLen::new(8).unwrap());
    insert(&index, 8, &[(1, 1), (2, 2), (4, 4)]);
    let hashes: Vec<u8> = (1..=4).flat_map(|n| key(8, n)).collect();
    let mut found = 0;
    let flow = index.look_up(&hashes, |mut copies| match copies.next() {
        Some(_) => {
            found += 1;
            ControlFlow::Continue(())
        }
        None => ControlFlow::Break("missing"),
    });
    assert_eq!((flow, found), (ControlFlow::Break("missing"), 2));
}

#[test]
fn memory_comes_back_when_blocks_go() {
    let index = Index::new(HashLen::new(32).unwrap());
    let some: Vec<(u64, u32)> = (0..400_000).map(|n| (u64::from(n), n)).collect();
    let places = insert(&index, 32, &some);
    let mut gone: Vec<(Place, Owner)> = places
        .into_iter()
        .filter(|(slot, _)| *slot != 9)
        .map(|(slot, place)| (place, owner(slot)))
        .collect();
    index.remove(&mut gone);
    assert_eq!(
        look_up(&index, 32, 9..11),
        [BTreeSet::from([9]), BTreeSet::new()]
    );
    let Index::W32(sharded) = &index else {
        panic!("another width")
    };
    let (pages, room) = sharded.footprint();
    assert_eq!(pages, 1);
    assert!(room < 400_000 / 2, "{room}");
}

/// Readers beside a writer through many growths: what is found is never another block's.
#[test]
fn look_ups_beside_a_writer_find_what_is_there() {
    const BLOCKS: u32 = 60_000;
    let index = &Index::new(HashLen::new(32).unwrap());
    let done = &std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..3 {
                let mut places = Vec::new();
                for start in (0..BLOCKS).step_by(1_000) {
                    let some: Vec<(u64, u32)> =
                        (start..start + 1_000).map(|n| (u64::from(n), n)).collect();
                    places.extend(insert(index, 32, &some));
                }
                if round < 2 {
                    let mut gone: Vec<(Place, Owner)> = places
                        .into_iter()
                        .map(|(slot, place)| (place, owner(slot)))
                        .collect();
                    gone.chunks_mut(1_000).for_each(|some| index.remove(some));
                }
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    for start in (0..u64::from(BLOCKS)).step_by(3_000) {
                        let found = look_up(index, 32, start..start + 3_000);
                        for (number, slots) in (start..).zip(found) {
                            assert!(slots.iter().all(|slot| u64::from(*slot) == number));
                        }
                    }
                }
            });
        }
    });
    let all = look_up(index, 32, 0..BLOCKS.into());
    assert!(all.iter().all(|slots| slots.len() == 1));
}
