//! Full inventories: how the directory is brought back in step with a node.
//!
//! Parts are applied as they come. What was there before stays visible as a hint until the last
//! part; then everything that was not named is gone.

use std::collections::BTreeMap;

use kvferry_proto::RegionId;

use super::{
    CloseCause, Directory, Effect, InventoryPart, ProtocolError, RegionDeclaration, SessionId,
    changes::{check_added, check_declared_once},
    node::{Standing, SyncState},
};
use crate::sabotage::{self, Bug};

/// An inventory that is coming in.
#[derive(Debug)]
pub(super) struct Receiving {
    seq: u64,
    /// What was named so far.
    named: BTreeMap<RegionId, SlotSet>,
}

/// A set of slots of one region: a bit a slot, gone with the inventory.
#[derive(Debug, Default)]
struct SlotSet {
    words: Vec<u64>,
}

impl SlotSet {
    fn insert(&mut self, slot: u32) {
        let word = (slot / 64) as usize;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (slot % 64);
    }

    fn contains(&self, slot: u32) -> bool {
        let word = self.words.get((slot / 64) as usize);
        word.is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }
}

impl Directory {
    pub(super) fn inventory(
        &mut self,
        handle: u32,
        session: SessionId,
        part: &InventoryPart,
    ) -> Result<Vec<Effect>, CloseCause> {
        self.check_part(handle, part)?;
        let mut effects = Vec::new();
        if part.first {
            self.start_inventory(handle, part.seq);
        }
        for declaration in &part.regions {
            self.name_region(handle, session, declaration, &mut effects);
        }
        for (region, sealed) in &part.sealed {
            self.name_slots(handle, *region, sealed);
        }
        if part.last {
            effects.push(self.finish_inventory(handle, session, part.seq));
        }
        Ok(effects)
    }

    /// Everything that can be wrong with a part, before anything of it is applied.
    fn check_part(&self, handle: u32, part: &InventoryPart) -> Result<(), CloseCause> {
        let Some(node) = self.nodes.get(handle) else {
            return Ok(());
        };
        match &node.sync {
            _ if part.first => {}
            SyncState::Receiving(receiving) if receiving.seq == part.seq => {}
            SyncState::Receiving(receiving) => {
                return Err(ProtocolError::InventorySeq {
                    got: part.seq,
                    want: receiving.seq,
                }
                .into());
            }
            SyncState::Live | SyncState::Awaiting => {
                return Err(ProtocolError::InventoryNotStarted.into());
            }
        }
        let declared = check_declared_once(&part.regions)?;
        for (id, declaration) in &declared {
            if let Some(Standing::Accepted(region)) = node.regions.get(id) {
                self.check_unchanged(*region, declaration)?;
            }
        }
        self.check_refused_bound(node, part.regions.len())?;
        for (region, sealed) in &part.sealed {
            if let Some(shape) = self.shape(node, &declared, *region)? {
                check_added(*region, shape, sealed)?;
            }
        }
        Ok(())
    }

    fn check_unchanged(
        &self,
        handle: u32,
        declaration: &RegionDeclaration,
    ) -> Result<(), ProtocolError> {
        let unchanged = self.catalog.region(handle).is_some_and(|region| {
            let namespace = self.catalog.namespace_of(region);
            *region.geometry == declaration.geometry
                && namespace.is_some_and(|namespace| namespace.spec == declaration.namespace)
        });
        if unchanged {
            return Ok(());
        }
        Err(ProtocolError::RegionChanged {
            region: declaration.region,
        })
    }

    fn start_inventory(&mut self, handle: u32, seq: u64) {
        if let Some(node) = self.nodes.get_mut(handle) {
            node.sync = SyncState::Receiving(Receiving {
                seq,
                named: BTreeMap::new(),
            });
        }
    }

    fn name_region(
        &mut self,
        handle: u32,
        session: SessionId,
        declaration: &RegionDeclaration,
        effects: &mut Vec<Effect>,
    ) {
        let known = self.nodes.get(handle).and_then(|node| {
            let standing = node.regions.get(&declaration.region)?;
            matches!(standing, Standing::Accepted(_)).then_some(())
        });
        if known.is_none() {
            self.declare(handle, session, declaration, effects);
        }
        if let Some(node) = self.nodes.get_mut(handle)
            && let SyncState::Receiving(receiving) = &mut node.sync
        {
            receiving.named.entry(declaration.region).or_default();
        }
    }

    fn name_slots(&mut self, handle: u32, region: RegionId, sealed: &super::SealedSlots) {
        let Some(node) = self.nodes.get_mut(handle) else {
            return;
        };
        let (Some(Standing::Accepted(at)), SyncState::Receiving(receiving)) =
            (node.regions.get(&region).copied(), &mut node.sync)
        else {
            return;
        };
        let named = receiving.named.entry(region).or_default();
        sealed.slots.iter().for_each(|slot| named.insert(*slot));
        self.catalog.seal(at, sealed);
    }

    fn finish_inventory(&mut self, handle: u32, session: SessionId, seq: u64) -> Effect {
        if let Some(node) = self.nodes.get_mut(handle) {
            let sync = std::mem::replace(&mut node.sync, SyncState::Live);
            node.applied = seq;
            if let SyncState::Receiving(Receiving { named, .. }) = sync {
                let catalog = &mut self.catalog;
                node.regions.retain(|id, standing| {
                    match (*standing, named.get(id)) {
                        (Standing::Accepted(at), Some(slots)) => {
                            let all = sabotage::is(Bug::InventoryKeeps);
                            catalog.retain(at, |slot| all || slots.contains(slot));
                        }
                        (Standing::Accepted(at), None) => catalog.remove(at),
                        (Standing::Refused | Standing::Deleted, _) => {}
                    }
                    named.contains_key(id)
                });
            }
        }
        Effect::Ack { session, seq }
    }
}
