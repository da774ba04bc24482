//! Why the store refused: one enum per operation, each variant another next move of the caller.

use kvferry_memory::MemoryError;
use kvferry_proto::{Generation, GeometryError, NamespaceName, RegionId, Slot};

use super::{MemoryFault, PinId};

/// A region was not registered. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Local regions of that name hold blocks of another kind.
    #[error("{detail}")]
    NamespaceMismatch {
        /// What differs, with both fingerprints.
        detail: String,
    },
    /// The namespace has its pool already.
    #[error(
        "namespace {namespace} already has a pool, region {region}: use it, or unregister it first"
    )]
    PoolExists {
        /// The namespace.
        namespace: NamespaceName,
        /// Its pool.
        region: RegionId,
    },
    /// Not one block fits.
    #[error("a pool of {bytes} bytes holds no block of {block_bytes} bytes: ask for more bytes")]
    PoolTooSmall {
        /// As asked for.
        bytes: u64,
        /// Bytes of one block.
        block_bytes: u64,
    },
    /// The slots do not fit the layout or the memory.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The kernel refused the memory or the generation table.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A bound of [`StoreLimits`](super::StoreLimits) is reached.
    #[error("this agent has room for {max} {what}, and they are in use: unregister regions first")]
    BoundReached {
        /// Of what.
        what: &'static str,
        /// The bound.
        max: u64,
    },
    /// Ids are never reused, and none is left.
    #[error("this agent has used up its region ids: restart it")]
    RegionIdsUsedUp,
}

/// A region was not unregistered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnregisterError {
    /// No such region, or not any more.
    #[error("region {region} is not registered: nothing is left to unregister")]
    UnknownRegion {
        /// As named.
        region: RegionId,
    },
}

/// No slots of a pool were reserved. Nothing was evicted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReservePoolError {
    /// No such region, or not any more.
    #[error("region {region} is not registered: register a pool and name its id")]
    UnknownRegion {
        /// As named.
        region: RegionId,
    },
    /// The region belongs to an engine.
    #[error("region {region} belongs to an engine, which chooses its slots: name the slots")]
    NotAPool {
        /// The region.
        region: RegionId,
    },
    /// Not enough slots are free or may be evicted.
    #[error(
        "pool {region} cannot give {wanted} slots: of {slots}, {free} are free, {pinned} pinned, \
         {reserved} reserved, {quarantined} wait for a transport; release pins, seal or abort \
         reservations, or register a larger pool"
    )]
    PoolFull {
        /// The pool.
        region: RegionId,
        /// All its slots.
        slots: u32,
        /// Slots nobody uses.
        free: u32,
        /// Sealed slots that may not be evicted.
        pinned: u32,
        /// Slots that are being written.
        reserved: u32,
        /// Slots a transport may still write to.
        quarantined: u32,
        /// Slots asked for.
        wanted: u32,
    },
}

/// No slots of an engine's region were reserved, and no block was removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReserveSlotsError {
    /// No such region, or not any more.
    #[error("region {region} is not registered: register it again")]
    UnknownRegion {
        /// As named.
        region: RegionId,
    },
    /// The region is a pool.
    #[error("region {region} is a pool, which chooses its slots: give a count")]
    IsAPool {
        /// The region.
        region: RegionId,
    },
    /// A slot the region does not have.
    #[error("region {region} has no slot {slot}: it has {slots} slots, from 0 on")]
    SlotOutOfRange {
        /// The region.
        region: RegionId,
        /// As named.
        slot: Slot,
        /// Slots there are.
        slots: u32,
    },
    /// A slot was named more than once.
    #[error("slot {slot} of region {region} is named twice: name each slot once")]
    SlotTwice {
        /// The region.
        region: RegionId,
        /// As named.
        slot: Slot,
    },
    /// The block in it is promised to somebody.
    #[error("slot {slot} of region {region} holds a pinned block: release its pins, then reserve")]
    SlotPinned {
        /// The region.
        region: RegionId,
        /// The slot.
        slot: Slot,
    },
    /// Somebody else writes to it, or a transport may still do.
    #[error(
        "slot {slot} of region {region} is being written by somebody else: try again, or take \
         another slot"
    )]
    SlotBusy {
        /// The region.
        region: RegionId,
        /// The slot.
        slot: Slot,
    },
}

/// Nothing was sealed; what was reserved still is.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// No such region, or not any more.
    #[error("region {region} is not registered, and its reservations are void: register it again")]
    UnknownRegion {
        /// As named.
        region: RegionId,
    },
    /// Slots, hashes and given checksums are not equally many.
    #[error("{slots} slots but {got} {what}: give one for each slot")]
    Columns {
        /// Slots given.
        slots: usize,
        /// Which other column.
        what: &'static str,
        /// Its length.
        got: usize,
    },
    /// A hash of another length than the namespace's.
    #[error("a block hash of {got} bytes; namespace {namespace} has hashes of {want} bytes")]
    HashLength {
        /// The namespace.
        namespace: NamespaceName,
        /// As given.
        got: usize,
        /// The namespace's.
        want: usize,
    },
    /// A slot was named more than once.
    #[error("slot {slot} of region {region} is named twice: name each slot once")]
    SlotTwice {
        /// The region.
        region: RegionId,
        /// As named.
        slot: Slot,
    },
    /// The caller does not hold the slot, or lost it while the seal was under way.
    #[error("slot {slot} of region {region} is not reserved by the caller: reserve and write it")]
    SlotNotReserved {
        /// The region.
        region: RegionId,
        /// The slot.
        slot: Slot,
    },
    /// The slot was sealed before.
    #[error(
        "slot {slot} of region {region} is already sealed, with generation {generation}: to \
         overwrite it, reserve it first"
    )]
    AlreadySealed {
        /// The region.
        region: RegionId,
        /// The slot.
        slot: Slot,
        /// Its generation.
        generation: Generation,
    },
    /// The bytes could not be read for their checksum.
    #[error("region {region}, slot {slot}: the block cannot be read: {source}")]
    Unreadable {
        /// The region.
        region: RegionId,
        /// The slot.
        slot: Slot,
        /// What the memory said.
        source: MemoryFault,
    },
}

/// Nothing was given back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AbortError {
    /// No such region, or not any more; its reservations ended with it.
    #[error("region {region} is not registered: its reservations ended with it")]
    UnknownRegion {
        /// As named.
        region: RegionId,
    },
    /// The caller does not hold the slot.
    #[error(
        "slot {slot} of region {region} is not reserved by the caller: leave it out of the call"
    )]
    SlotNotReserved {
        /// The region.
        region: RegionId,
        /// The slot.
        slot: Slot,
    },
}

/// Nothing was taken out of quarantine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnquarantineError {
    /// No such region, or not any more: there is nothing to do.
    #[error("region {region} is not registered: its quarantine ended with it")]
    UnknownRegion {
        /// As named.
        region: RegionId,
    },
    /// The slot is in no quarantine.
    #[error("slot {slot} of region {region} is not quarantined")]
    NotQuarantined {
        /// The region.
        region: RegionId,
        /// The slot.
        slot: Slot,
    },
}

/// Nothing was pinned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// No region of this agent has that namespace.
    #[error("namespace {namespace} has no region here: register one first")]
    UnknownNamespace {
        /// As named.
        namespace: NamespaceName,
    },
    /// The pin to extend was released, has expired, or is another client's.
    #[error("there is no pin {pin} of this client, or not any more: make a new one")]
    UnknownPin {
        /// As named.
        pin: PinId,
    },
    /// Longer than any pin may last.
    #[error("a pin of {ttl_ms} ms; at most {max_ms} ms are allowed: pin again before it ends")]
    TtlTooLong {
        /// As asked for.
        ttl_ms: u128,
        /// The bound.
        max_ms: u128,
    },
    /// The client has as many pins as it may.
    #[error("this client holds {max} pins, as many as it may: release some")]
    TooManyPins {
        /// The bound.
        max: usize,
    },
    /// The client's pins name as many blocks as they may.
    #[error("this client's pins would name more than {max} blocks: release some")]
    TooManyPinnedBlocks {
        /// The bound.
        max: usize,
    },
}

/// Nothing was released.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// It was released, has expired, or is another client's.
    #[error("there is no pin {pin} of this client, or not any more: nothing is left to release")]
    UnknownPin {
        /// As named.
        pin: PinId,
    },
}

/// Nothing was evicted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvictError {
    /// No region of this agent has that namespace.
    #[error("namespace {namespace} has no region here: there is nothing to evict")]
    UnknownNamespace {
        /// As named.
        namespace: NamespaceName,
    },
}
