//! A pinned block stays where it is, as it is, until its pin ends.

use kvferry_agent::region::{ClientId, Held, PinId};

use crate::{
    history::bytes_of,
    promise::Promise,
    world::{Process, World},
};

/// An engine is done with what it pinned; a last look at it.
pub(crate) fn release(
    world: &mut World,
    process: &mut Process,
    client: ClientId,
    pin: PinId,
    blocks: &[(u64, Held)],
) {
    process.store.tick(process.local(world.now));
    let changed = blocks.iter().find_map(|(hash, held)| {
        // A region that was taken out of service takes its pins with it.
        let region = process.store.region(held.region)?;
        let word = region.generations.load(held.slot.0);
        if word != Some(held.generation.0) {
            return Some(format!(
                "block {hash} in slot {} was overwritten",
                held.slot
            ));
        }
        let wrong = world
            .history
            .check(*hash, &bytes_of(&region, held.slot))
            .err();
        wrong.map(|wrong| format!("block {hash} in slot {}: {wrong}", held.slot))
    });
    // Released means that it had neither expired nor gone with its client.
    if process.store.release(client, pin).is_ok() {
        world.stats.pins_checked += 1;
        let broken = changed.map(|detail| (Promise::PinnedStays, detail));
        world.check(broken);
    }
}
