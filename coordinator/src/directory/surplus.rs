//! More copies than wanted: which of them their owners may give up first.

use std::ops::{ControlFlow, Range};

use kvferry_proto::{PackedHashes, RegionId};

use super::{Directory, SealedSlots};

/// A copy that others have often enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SurplusCopy {
    /// Of the node that is told.
    pub region: RegionId,
    /// Where it is.
    pub slot: u32,
    /// Tells it from what the slot may hold by then.
    pub generation: u64,
}

impl Directory {
    /// Which of these copies, sealed just now, are more than their namespace wants: as many other nodes
    /// that readers are sent to hold the block.
    ///
    /// A hint to the one who came last, and told once: it changes nothing here, and is not taken back when
    /// the others go. Two nodes that seal at the same moment may both hear it.
    pub(super) fn surplus(
        &self,
        node: u32,
        handle: u32,
        added: &SealedSlots,
        range: Range<usize>,
        surplus: &mut Vec<SurplusCopy>,
    ) {
        let region = self.catalog.region(handle);
        let known = region.and_then(|region| Some((region, self.catalog.namespace_of(region)?)));
        let Some((region, namespace)) = known else {
            return;
        };
        let Some(wanted) = namespace.policy.copies_wanted else {
            return;
        };
        let len = region.hash_len.get();
        let hashes = added
            .hashes
            .as_ref()
            .map_or(&[][..], PackedHashes::as_bytes);
        let hashes = hashes.get(range.start * len..range.end * len);
        let (mut at, mut others) = (range.start, Vec::new());
        let flow: ControlFlow<()> = namespace.index.look_up(hashes.unwrap_or(&[]), |copies| {
            others.clear();
            for held in copies {
                let other = self.catalog.region(held.owner.region).map(|r| r.node);
                if let Some(other) = other.filter(|other| *other != node)
                    && !others.contains(&other)
                    && self.offers(held.owner.region)
                    && self.nodes.get(other).is_some_and(|node| !node.draining)
                {
                    others.push(other);
                }
            }
            let place = (added.slots.get(at), added.generations.get(at));
            if let (Some(&slot), Some(&generation)) = place
                && others.len() as u64 >= u64::from(wanted)
            {
                surplus.push(SurplusCopy {
                    region: region.id,
                    slot,
                    generation,
                });
            }
            at += 1;
            ControlFlow::Continue(())
        });
        debug_assert!(flow.is_continue());
    }
}
