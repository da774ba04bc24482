//! Messages into events. What cannot be parsed is an error that ends the session. Public, so that the
//! simulation's messages go through the very same code.

use kvferry_proto::{
    HashError, HashLen, Incarnation, InvalidMessage, Labels, NodeAddresses, NodeId, PackedHashes,
    RegionId, pb,
};

use crate::directory::{Delta, Hello, InventoryPart, RegionChange, RegionDeclaration, SealedSlots};

/// Most slots one delta or inventory part may name, removed and added together: some twenty
/// milliseconds of work, in slices that others come between. Where the message declares regions as
/// well, other sessions (not look-ups) wait for all of it. Agents send a sixteenth.
const MAX_SLOTS_PER_MESSAGE: usize = 65_536;
/// Most regions one message may declare or remove: as many as a node has by default.
pub(super) const MAX_REGIONS_PER_MESSAGE: usize = 256;
/// Most nodes a heartbeat names as read from: those an agent reads most from in a second.
const MAX_READS_PER_HEARTBEAT: usize = 64;
/// Most entries of changes in a message. A region may be named more than once.
const MAX_CHANGES_PER_MESSAGE: usize = 4_096;

/// Who an agent is.
///
/// # Errors
/// [`InvalidMessage`].
pub fn hello(message: pb::Hello) -> Result<Hello, InvalidMessage> {
    Ok(Hello {
        node: NodeId::new(&message.node)?,
        incarnation: Incarnation::new(message.incarnation)?,
        addresses: match message.addresses {
            Some(addresses) => addresses.try_into()?,
            None => NodeAddresses::default(),
        },
        labels: Labels::new(message.labels)?,
        coordinator_epoch: message.coordinator_epoch,
        oldest_delta: message.oldest_delta,
        next_delta: message.next_delta,
    })
}

/// A change of what a node holds.
///
/// # Errors
/// [`InvalidMessage`].
pub fn delta(message: pb::Delta) -> Result<Delta, InvalidMessage> {
    at_most(
        "regions_removed",
        message.regions_removed.len(),
        MAX_REGIONS_PER_MESSAGE,
    )?;
    check_changes("changes", &message.changes)?;
    Ok(Delta {
        seq: message.seq,
        regions_removed: message.regions_removed.into_iter().map(RegionId).collect(),
        regions_added: declarations(message.regions_added)?,
        changes: message
            .changes
            .into_iter()
            .map(change)
            .collect::<Result<_, _>>()?,
    })
}

/// A part of a full inventory.
///
/// # Errors
/// [`InvalidMessage`].
pub fn inventory(message: pb::Inventory) -> Result<InventoryPart, InvalidMessage> {
    check_changes("sealed", &message.sealed)?;
    let sealed = message.sealed.into_iter().map(|message| {
        // An inventory names what is held. What it removes it just doesn't name.
        at_most(
            "removed_slots of an inventory",
            message.removed_slots.len(),
            0,
        )?;
        let change = change(message)?;
        Ok((change.region, change.added))
    });
    Ok(InventoryPart {
        seq: message.seq,
        first: message.first,
        last: message.last,
        sealed: sealed.collect::<Result<_, InvalidMessage>>()?,
        regions: declarations(message.regions)?,
    })
}

/// Which delta a heartbeat says comes next. Agents that do not say are not asked.
#[must_use]
pub fn next_delta(said: u64) -> Option<u64> {
    (said > 0).then_some(said)
}

/// What a node has read from others.
///
/// # Errors
/// [`InvalidMessage`].
pub fn reads(messages: Vec<pb::SourceReads>) -> Result<Vec<(NodeId, u64)>, InvalidMessage> {
    at_most("reads", messages.len(), MAX_READS_PER_HEARTBEAT)?;
    let read = |told: pb::SourceReads| Ok((NodeId::new(&told.node)?, told.bytes));
    messages.into_iter().map(read).collect()
}

fn declarations(
    messages: Vec<pb::RegionDeclaration>,
) -> Result<Vec<RegionDeclaration>, InvalidMessage> {
    at_most("regions", messages.len(), MAX_REGIONS_PER_MESSAGE)?;
    let declaration = |message: pb::RegionDeclaration| {
        Ok(RegionDeclaration {
            region: RegionId(message.region),
            namespace: message
                .namespace
                .ok_or(InvalidMessage::Missing("namespace"))?
                .try_into()?,
            geometry: message
                .geometry
                .ok_or(InvalidMessage::Missing("geometry"))?
                .try_into()?,
            denied: None,
        })
    };
    messages.into_iter().map(declaration).collect()
}

fn change(message: pb::RegionChange) -> Result<RegionChange, InvalidMessage> {
    let added = message.added.unwrap_or_default();
    Ok(RegionChange {
        region: RegionId(message.region),
        removed_slots: message.removed_slots,
        added: SealedSlots {
            hashes: added.hashes.map(packed).transpose()?.flatten(),
            slots: added.slots,
            generations: added.generations,
            checksums: added.checksums,
        },
    })
}

/// None for an empty message: it names no length, and needs none.
fn packed(message: pb::PackedHashes) -> Result<Option<PackedHashes>, HashError> {
    if message.hashes.is_empty() {
        return Ok(None);
    }
    hashes(message).map(Some)
}

/// Hashes of any length a namespace may have; the directory compares it with the namespace's.
pub(super) fn hashes(message: pb::PackedHashes) -> Result<PackedHashes, HashError> {
    PackedHashes::new(HashLen::new(message.hash_len as usize)?, message.hashes)
}

fn check_changes(what: &'static str, changes: &[pb::RegionChange]) -> Result<(), InvalidMessage> {
    at_most(what, changes.len(), MAX_CHANGES_PER_MESSAGE)?;
    let slots = |change: &pb::RegionChange| {
        let added = change.added.as_ref().map_or(0, |added| added.slots.len());
        change.removed_slots.len() + added
    };
    at_most(
        "slots of one message",
        changes.iter().map(slots).sum(),
        MAX_SLOTS_PER_MESSAGE,
    )
}

pub(super) fn at_most(what: &'static str, got: usize, max: usize) -> Result<(), InvalidMessage> {
    if got > max {
        return Err(InvalidMessage::OutOfBounds {
            what,
            got: got as u64,
            max: max as u64,
        });
    }
    Ok(())
}
