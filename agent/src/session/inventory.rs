//! Everything an agent holds, as messages.

use kvferry_proto::pb;

use super::delta::{Columns, declaration};
use crate::region::Inventory;

/// Most slots one message carries: as many as a delta, for the same reason.
const SLOTS_PER_MESSAGE: usize = 4096;
/// Most regions one message declares: with 1,024 planes each, well within a message.
const REGIONS_PER_MESSAGE: usize = 32;

/// Cuts an inventory into messages. There is always at least one: an agent that holds nothing says so.
#[must_use]
pub fn inventory_messages(inventory: &Inventory, seq: u64) -> Vec<pb::Inventory> {
    let mut parts = Vec::new();
    for regions in inventory.regions.chunks(REGIONS_PER_MESSAGE) {
        parts.push(pb::Inventory {
            seq,
            regions: regions.iter().map(|r| declaration(&r.region)).collect(),
            ..pb::Inventory::default()
        });
    }
    let mut columns = Columns::default();
    let mut held = 0;
    for region in &inventory.regions {
        for block in &region.blocks {
            columns.seal(
                region.region.id,
                block.slot,
                &block.hash,
                block.generation,
                block.checksum,
            );
            held += 1;
            if held == SLOTS_PER_MESSAGE {
                parts.push(sealed(seq, std::mem::take(&mut columns)));
                held = 0;
            }
        }
    }
    if held > 0 || parts.is_empty() {
        parts.push(sealed(seq, columns));
    }
    if let Some(first) = parts.first_mut() {
        first.first = true;
    }
    if let Some(last) = parts.last_mut() {
        last.last = true;
    }
    parts
}

fn sealed(seq: u64, columns: Columns) -> pb::Inventory {
    pb::Inventory {
        seq,
        sealed: columns.finish(),
        ..pb::Inventory::default()
    }
}
