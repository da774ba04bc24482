//! Deltas: checked whole, then applied whole.

use std::collections::BTreeMap;

use kvferry_proto::{Generation, HashLen, PackedHashes, RegionId};

use super::{
    BoundReached, Delta, Directory, Effect, ProtocolError, RegionDeclaration, RegionRefusal,
    SealedSlots, SessionId,
    bounds::MAX_REFUSED_PER_NODE,
    message::Checked,
    node::{Node, Progress, Standing, SyncState},
};
use crate::sabotage::{self, Bug};

/// What slots and hashes of a region must look like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    slots: u32,
    hash_len: HashLen,
}

/// The declarations of one message, by id.
pub(super) type Declared<'a> = BTreeMap<RegionId, &'a RegionDeclaration>;

impl Node {
    /// The answer to what a heartbeat says of the delta that comes next: where deltas before it were lost, and no other
    /// came to show the gap, this does.
    ///
    /// A stream keeps its order, so what was sent before the heartbeat has been taken in or is lost. One that says less than
    /// is expected lost nothing. While an inventory is due nothing is asked for again: a session that is out of step costs
    /// one inventory at a time, and at most one a heartbeat.
    pub(super) fn missed(&self, session: SessionId, next_delta: Option<u64>) -> Option<Effect> {
        if sabotage::is(Bug::HeartbeatDeltaIgnored) {
            return None;
        }
        self.progress.lock().gap(session, next_delta?)
    }

    /// Asks for an inventory where a region was refused that might not be any more.
    fn hear_again(&self) -> Option<Effect> {
        let refused = self.regions.values().any(|it| *it == Standing::Refused);
        let session = self.session.filter(|_| refused)?;
        let asked = self.progress.lock().await_inventory();
        asked.then_some(Effect::DeclareAgain { session })
    }
}

impl Progress {
    /// Asks for an inventory where deltas before this one are missing, and none is due already.
    fn gap(&mut self, session: SessionId, got: u64) -> Option<Effect> {
        let expected = self.expected();
        if got <= expected || sabotage::is(Bug::GapIgnored) || !self.await_inventory() {
            return None;
        }
        Some(Effect::ResyncRequest {
            session,
            expected,
            got,
        })
    }

    /// An inventory is due from now on; false where one is already, and is not to be asked for again.
    fn await_inventory(&mut self) -> bool {
        let in_step = matches!(self.sync, SyncState::Live);
        if in_step {
            self.sync = SyncState::Awaiting;
        }
        in_step
    }
}

impl Directory {
    /// Asks every node that was refused a region for all that it has.
    pub(super) fn hear_refused_again(&self) -> Vec<Effect> {
        let nodes = self.names.values();
        let nodes = nodes.filter_map(|handle| self.nodes.get(*handle));
        nodes.filter_map(Node::hear_again).collect()
    }

    /// The answer to a delta that is not the one that is due; None for the one that is.
    pub(super) fn out_of_turn(
        &self,
        handle: u32,
        session: SessionId,
        delta: &Delta,
    ) -> Option<Vec<Effect>> {
        let Some(node) = self.nodes.get(handle) else {
            return Some(Vec::new());
        };
        let mut progress = node.progress.lock();
        if !matches!(progress.sync, SyncState::Live) {
            // The inventory that is due will contain it.
            return Some(Vec::new());
        }
        let expected = progress.expected();
        if delta.seq < expected {
            return Some(vec![Effect::Ack {
                session,
                seq: progress.applied,
            }]);
        }
        progress
            .gap(session, delta.seq)
            .map(|request| vec![request])
    }

    /// Everything that can be wrong with a delta, before anything of it is applied.
    pub(super) fn check_delta(&self, handle: u32, delta: &Delta) -> Checked {
        let Some(node) = self.nodes.get(handle) else {
            return Ok(());
        };
        let declared = check_declared_once(&delta.regions_added)?;
        if let Some(id) = declared.keys().find(|id| node.regions.contains_key(id)) {
            return Err(ProtocolError::RegionDeclaredTwice { region: *id }.into());
        }
        self.check_refused_bound(node, delta.regions_added.len())?;
        for change in &delta.changes {
            if delta.regions_removed.contains(&change.region) {
                return Err(ProtocolError::RegionUnknown {
                    region: change.region,
                }
                .into());
            }
            if let Some(shape) = self.shape(node, &declared, change.region)? {
                check_slots(change.region, shape, &change.removed_slots)?;
                check_added(change.region, shape, &change.added)?;
            }
        }
        Ok(())
    }

    pub(super) fn change_regions(
        &mut self,
        handle: u32,
        session: SessionId,
        delta: &Delta,
        effects: &mut Vec<Effect>,
    ) {
        for region in &delta.regions_removed {
            self.remove_region(handle, *region);
        }
        for declaration in &delta.regions_added {
            self.declare(handle, session, declaration, effects);
        }
    }

    /// Tolerates a region that is not there: that is the state it asks for.
    fn remove_region(&mut self, handle: u32, region: RegionId) {
        if let Some(node) = self.nodes.get_mut(handle)
            && let Some(Standing::Accepted(region)) = node.regions.remove(&region)
        {
            self.catalog.remove_alone(region);
        }
    }

    /// Declares a region that does not stand accepted yet. A refusal is told and remembered.
    pub(super) fn declare(
        &mut self,
        handle: u32,
        session: SessionId,
        declaration: &RegionDeclaration,
        effects: &mut Vec<Effect>,
    ) {
        let Some(node) = self.nodes.get_mut(handle) else {
            return;
        };
        let id = declaration.region;
        let deleted = node.regions.get(&id) == Some(&Standing::Deleted);
        let outcome = if deleted && !sabotage::is(Bug::DeletedRegionsReturn) {
            Err(RegionRefusal::NamespaceDeleted {
                namespace: declaration.namespace.name.clone(),
            })
        } else if let Some(denied) = &declaration.denied {
            Err(RegionRefusal::Denied((**denied).clone()))
        } else if node.accepted().count() >= self.config.bounds.regions_per_node as usize {
            Err(BoundReached::regions(&self.config.bounds).into())
        } else {
            self.catalog.declare(handle, declaration)
        };
        let standing = match outcome {
            Ok(region) => Standing::Accepted(region),
            Err(refusal) => {
                let standing = match refusal {
                    RegionRefusal::NamespaceDeleted { .. } => Standing::Deleted,
                    _ => Standing::Refused,
                };
                effects.push(Effect::RegionRefused {
                    session,
                    region: id,
                    refusal,
                });
                standing
            }
        };
        node.regions.insert(id, standing);
        if let Standing::Accepted(region) = standing {
            self.write_row(region);
        }
    }

    /// What the region's slots must look like; None where they are ignored.
    pub(super) fn shape(
        &self,
        node: &Node,
        declared: &Declared<'_>,
        region: RegionId,
    ) -> Result<Option<Shape>, ProtocolError> {
        if let Some(declaration) = declared.get(&region) {
            return Ok(Some(Shape {
                slots: declaration.geometry.slots(),
                hash_len: declaration.namespace.hash_len,
            }));
        }
        match node.regions.get(&region) {
            None => Err(ProtocolError::RegionUnknown { region }),
            Some(Standing::Refused | Standing::Deleted) => Ok(None),
            Some(Standing::Accepted(handle)) => Ok(self.catalog.region(*handle).map(|r| Shape {
                slots: r.slot_count(),
                hash_len: r.hash_len,
            })),
        }
    }

    /// Each of `more` declarations may be refused, and refusals are remembered.
    pub(super) fn check_refused_bound(&self, node: &Node, more: usize) -> Result<(), BoundReached> {
        if more > 0 && node.refused() + more > MAX_REFUSED_PER_NODE {
            return Err(BoundReached::refused_regions());
        }
        Ok(())
    }
}

pub(super) fn check_declared_once(
    declarations: &[RegionDeclaration],
) -> Result<Declared<'_>, ProtocolError> {
    let mut declared = Declared::new();
    for declaration in declarations {
        let region = declaration.region;
        if declared.insert(region, declaration).is_some() {
            return Err(ProtocolError::RegionDeclaredTwice { region });
        }
    }
    Ok(declared)
}

fn check_slots(region: RegionId, shape: Shape, slots: &[u32]) -> Result<(), ProtocolError> {
    match slots.iter().find(|slot| **slot >= shape.slots) {
        Some(&slot) => Err(ProtocolError::SlotOutOfRegion {
            region,
            slot,
            slots: shape.slots,
        }),
        None => Ok(()),
    }
}

pub(super) fn check_added(
    region: RegionId,
    shape: Shape,
    added: &SealedSlots,
) -> Result<(), ProtocolError> {
    let hashes = added.hashes.as_ref().map_or(0, PackedHashes::len);
    let (slots, generations) = (added.slots.len(), added.generations.len());
    let checksums = added.checksums.len();
    if hashes != slots || generations != slots || (checksums != 0 && checksums != slots) {
        return Err(ProtocolError::Ragged {
            region,
            hashes,
            slots,
            generations,
            checksums,
        });
    }
    let got = added.hashes.as_ref().map(PackedHashes::hash_len);
    if let Some(got) = got.filter(|got| *got != shape.hash_len) {
        return Err(ProtocolError::HashLength {
            region,
            got: got.get(),
            want: shape.hash_len.get(),
        });
    }
    check_slots(region, shape, &added.slots)?;
    let mut sealed = added.slots.iter().zip(&added.generations);
    match sealed.find(|(_, generation)| !Generation(**generation).is_sealed()) {
        Some((&slot, &generation)) => Err(ProtocolError::NotSealed {
            region,
            slot,
            generation,
        }),
        None => Ok(()),
    }
}
