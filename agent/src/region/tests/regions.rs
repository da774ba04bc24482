//! Registering and unregistering.

use kvferry_memory::{HostMemory, HugePages};
use kvferry_proto::{ChecksumPolicy, Geometry, HashLen, NamespaceName, RegionId, Slot};

use super::super::fixture::{
    BLOCK_BYTES, BOB, ENGINE_SLOTS, POOL_SLOTS, Rig, engine_memory, hash, name, pool_of, spec,
};
use super::{ALICE_ID, NOW};
use crate::region::eviction::EvictionKind;
use crate::region::{RegisterError, Released, SealError, StoreLimits, UnregisterError};

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
