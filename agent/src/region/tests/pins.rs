//! Pins.

use std::time::Duration;

use kvferry_proto::{Checksum, ChecksumPolicy, Generation, NamespaceName};

use super::super::fixture::{PULL, Rig, hash, name, secs};
use super::{ALICE_ID, BOB_ID, NOW};
use crate::region::eviction::EvictionKind;
use crate::region::{
    Chain, Checksums, EvictWhat, Evicted, Held, PinError, ReleaseError, Seal, StoreLimits,
};

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
        private: false,
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
