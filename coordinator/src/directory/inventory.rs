//! Full inventories: how the directory is brought back in step with a node.
//!
//! Parts are applied as they come. What was there before stays visible as a hint until the last
//! part; then everything that was not named is swept out, slice by slice.

use std::collections::BTreeMap;

use kvferry_proto::RegionId;

use super::{
    Directory, Effect, InventoryPart, ProtocolError, RegionDeclaration, SessionId,
    changes::{check_added, check_declared_once},
    message::Checked,
    node::{Standing, SyncState},
    slots::SlotSet,
};
use crate::sabotage::{self, Bug};

/// An inventory that is coming in.
#[derive(Debug)]
pub(super) struct Receiving {
    pub(super) seq: u64,
    /// What was named so far.
    pub(super) named: BTreeMap<RegionId, SlotSet>,
}

impl Directory {
    /// Starts an inventory with its first part, and takes in what a part says of regions.
    pub(super) fn name_regions(
        &mut self,
        handle: u32,
        session: SessionId,
        part: &InventoryPart,
        effects: &mut Vec<Effect>,
    ) {
        if part.first {
            self.start_inventory(handle, part.seq);
        }
        for declaration in &part.regions {
            self.name_region(handle, session, declaration, effects);
        }
    }

    /// Everything that can be wrong with a part, before anything of it is applied.
    pub(super) fn check_part(&self, handle: u32, part: &InventoryPart) -> Checked {
        let Some(node) = self.nodes.get(handle) else {
            return Ok(());
        };
        match &node.progress.lock().sync {
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
            node.progress.get_mut().sync = SyncState::Receiving(Receiving {
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
            && let SyncState::Receiving(receiving) = &mut node.progress.get_mut().sync
        {
            receiving.named.entry(declaration.region).or_default();
        }
    }

    pub(super) fn finish_inventory(
        &mut self,
        handle: u32,
        session: SessionId,
        seq: u64,
    ) -> Vec<Effect> {
        let Some(node) = self.nodes.get_mut(handle) else {
            return Vec::new();
        };
        let progress = node.progress.get_mut();
        // Another stream may have come since the last part's slots were taken in.
        if !matches!(&progress.sync, SyncState::Receiving(receiving) if receiving.seq == seq) {
            return Vec::new();
        }
        let sync = std::mem::replace(&mut progress.sync, SyncState::Live);
        progress.applied = seq;
        if let SyncState::Receiving(Receiving { mut named, .. }) = sync {
            let catalog = &mut self.catalog;
            node.regions.retain(|id, standing| {
                let slots = named.remove(id);
                let stays = slots.is_some();
                match (*standing, slots) {
                    (Standing::Accepted(at), Some(slots)) => {
                        if !sabotage::is(Bug::InventoryKeeps) {
                            catalog.retain(at, slots);
                        }
                    }
                    (Standing::Accepted(at), None) => catalog.remove_alone(at),
                    (Standing::Refused | Standing::Deleted, _) => {}
                }
                stays
            });
        }
        vec![Effect::Ack { session, seq }]
    }
}
