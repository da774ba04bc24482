//! What may happen to a store.

use proptest::prelude::*;

use crate::region::{
    ClientId, Holder,
    fixture::{ALICE, BOB, ENGINE_SLOTS, POOL_SLOTS, PULL},
};

/// Few hashes, so that copies and chains are common.
const HASHES: u64 = 9;

#[derive(Debug, Clone)]
pub(super) enum Operation {
    ReservePool(Holder, u32),
    ReserveSlots(Holder, Vec<u32>),
    /// The first so many slots the holder has in the region, and perhaps one more that it may not have.
    Seal(Holder, bool, Vec<u64>, Option<u32>, Option<Option<u64>>),
    Abort(Holder, bool, usize, Option<u32>),
    Quarantine(Holder, bool, usize),
    Unquarantine(bool, u32),
    Pin(ClientId, Vec<u64>, u64),
    /// A pin that was made, by its number, perhaps by somebody else.
    Release(ClientId, usize),
    Evict(Option<Vec<u64>>),
    Find(u64),
    Pass(u64),
    Death(Holder),
    Unregister(bool),
}

pub(super) fn operations() -> impl Strategy<Value = Vec<Operation>> {
    prop::collection::vec(operation(), 1..60)
}

pub(super) fn operation() -> impl Strategy<Value = Operation> {
    let holder = || prop::sample::select(vec![ALICE, BOB, PULL]);
    let client = || prop::sample::select(vec![ClientId(1), ClientId(2)]);
    let slot = || 0..ENGINE_SLOTS + 1;
    let hashes = |most| prop::collection::vec(0..HASHES, 1..most);
    let rarely_slot = || prop::option::weighted(0.1, 0..POOL_SLOTS + 1);
    let chain = || prop::option::weighted(0.8, prop::option::of(0..HASHES));
    let pool = || prop::bool::weighted(0.7);
    prop_oneof![
        8 => (holder(), 1..5u32).prop_map(|(h, n)| Operation::ReservePool(h, n)),
        6 => (holder(), prop::collection::vec(slot(), 1..3))
            .prop_map(|(h, s)| Operation::ReserveSlots(h, s)),
        14 => (holder(), pool(), hashes(5), rarely_slot(), chain())
            .prop_map(|(h, p, n, s, c)| Operation::Seal(h, p, n, s, c)),
        2 => (holder(), pool(), 0..3usize, rarely_slot())
            .prop_map(|(h, p, n, s)| Operation::Abort(h, p, n, s)),
        1 => (holder(), pool(), 0..3usize).prop_map(|(h, p, n)| Operation::Quarantine(h, p, n)),
        2 => (pool(), 0..POOL_SLOTS).prop_map(|(p, s)| Operation::Unquarantine(p, s)),
        4 => (client(), hashes(4), 1..40u64).prop_map(|(c, h, t)| Operation::Pin(c, h, t)),
        2 => (client(), 0..6usize).prop_map(|(c, n)| Operation::Release(c, n)),
        2 => prop::option::weighted(0.9, hashes(3)).prop_map(Operation::Evict),
        2 => (0..HASHES).prop_map(Operation::Find),
        2 => (1..20u64).prop_map(Operation::Pass),
        1 => holder().prop_map(Operation::Death),
        1 => pool().prop_map(Operation::Unregister),
    ]
}
