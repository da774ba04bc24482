//! Nobody writes to a slot that is not theirs: not to one that was given back, and not to one that
//! others read.

use kvferry_agent::region::{Holder, Region};
use kvferry_proto::Slot;

use super::Broken;
use crate::{promise::Promise, world::Process};

/// Somebody writes to a slot. What belongs to a region that was taken out of service hurts nobody.
pub(crate) fn check(process: &Process, region: &Region, slot: Slot, by: Holder) -> Broken {
    process.store.region(region.id)?;
    let owner = process.writers.get(&(region.id, slot));
    if owner == Some(&by) {
        let word = region.generations.load(slot.0);
        let even = word.is_some_and(|word| word.is_multiple_of(2));
        return even.then(|| {
            let detail = format!("{by} writes to slot {slot}, which readers take for sealed");
            (Promise::BytesArePublished, detail)
        });
    }
    let detail = format!("{by} writes to slot {slot}, which belongs to {owner:?}");
    Some((Promise::BuffersAreOwned, detail))
}

/// A transport writes for a block whose destination was given back.
pub(crate) fn given_back(process: &Process, region: &Region, block: u32) -> Broken {
    process.store.region(region.id)?;
    let detail = format!("bytes of block {block} arrive after its destination was given back");
    Some((Promise::BuffersAreOwned, detail))
}
