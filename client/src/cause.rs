//! Why a call did not succeed: one variant for each thing a caller can do about it.

use kvferry_proto::Reason;

/// Why a call did not succeed. Each is another next move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// An argument is wrong: correct the program.
    InvalidArgument,
    /// No such namespace: register a region of it first.
    NamespaceUnknown,
    /// Others use this namespace with another layout: do not start.
    NamespaceMismatch,
    /// Hashes of another length than the namespace's: correct the program.
    HashLength,
    /// The region has ended: register it again.
    RegionUnknown,
    /// The geometry reaches beyond the memory: correct it.
    SpanOutOfRegion,
    /// The region does not have that slot: correct the program.
    SlotOutOfRegion,
    /// The slot is pinned, reserved, or still being written to: use another one, or try again later.
    SlotBusy,
    /// The slot is sealed already: reserve it before it is written to.
    SlotAlreadySealed,
    /// The slot is not reserved by this connection: reserve it first.
    SlotNotReserved,
    /// Every slot of the pool is pinned or reserved: release some, or try again later.
    PoolFull,
    /// Too much at once: split the call, or wait until others have ended.
    BoundReached,
    /// The coordinator cannot be asked: never a miss; try again later.
    CoordinatorUnreachable,
    /// A newer lifetime of the node has taken over: stop.
    Fenced,
    /// No such node.
    NodeUnknown,
    /// The agent is stopping: open it again when it is back.
    ShuttingDown,
    /// The memory cannot be used: the message says why.
    Memory,
    /// The namespace still has blocks: evict them first.
    NamespaceInUse,
    /// Not done in time; whether it will still be done is unknown: ask again.
    Deadline,
    /// The pin has expired or was released: nothing to do.
    PinUnknown,
    /// A block the call needs is not there.
    BlockMissing,
    /// The memory is registered already, or something still writes to it: call again later.
    MemoryInUse,
    /// The namespace has a pool: use it.
    PoolExists,
    /// The agent has no libcuda, not that GPU, or cannot use it: give it the GPU, or restart it.
    GpuUnavailable,
    /// The CUDA IPC handle does not open: send a new one of memory that can be shared.
    GpuHandle,
    /// The agent's identity may not do that there: an operator grants it in the coordinator's policy file.
    PermissionDenied,
    /// The coordinator does not know who asks: give the agent a certificate or a token.
    Unauthenticated,
    /// No such source, or its workers have ended.
    SourceUnknown,
    /// The source has no worker that is ready: try again later.
    SourceNotReady,
    /// Other tensors are published under that name here: withdraw them first, or name these otherwise.
    SourceExists,
    /// A defect in the library: report it with the message.
    Internal,
    /// No agent listens there: start it, or correct the path.
    AgentUnreachable,
    /// The connection has ended, and with it every reservation, pin and region made by it: close,
    /// open anew, register again.
    AgentLost,
    /// Nothing wrong: the pull has not ended yet.
    NotDone,
    /// It was given up.
    Cancelled,
    /// The operating system refused something: the message says what.
    System,
    /// The agent does not serve this user.
    NotAllowed,
    /// Not from a callback (of the C API): call it from another thread.
    WrongThread,
    /// The agent gave a reason that this library does not know: it is newer.
    UnknownReason,
}

impl From<Reason> for Cause {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Unspecified => Self::UnknownReason,
            Reason::InvalidArgument => Self::InvalidArgument,
            Reason::NamespaceUnknown => Self::NamespaceUnknown,
            Reason::NamespaceMismatch => Self::NamespaceMismatch,
            Reason::HashLength => Self::HashLength,
            Reason::RegionUnknown => Self::RegionUnknown,
            Reason::SpanOutOfRegion => Self::SpanOutOfRegion,
            Reason::SlotOutOfRegion => Self::SlotOutOfRegion,
            Reason::SlotBusy => Self::SlotBusy,
            Reason::SlotAlreadySealed => Self::SlotAlreadySealed,
            Reason::SlotNotReserved => Self::SlotNotReserved,
            Reason::PoolFull => Self::PoolFull,
            Reason::BoundReached => Self::BoundReached,
            Reason::CoordinatorUnreachable => Self::CoordinatorUnreachable,
            Reason::Fenced => Self::Fenced,
            Reason::NodeUnknown => Self::NodeUnknown,
            Reason::ShuttingDown => Self::ShuttingDown,
            Reason::Memory => Self::Memory,
            Reason::NamespaceInUse => Self::NamespaceInUse,
            Reason::Deadline => Self::Deadline,
            Reason::PinUnknown => Self::PinUnknown,
            Reason::BlockMissing => Self::BlockMissing,
            Reason::MemoryInUse => Self::MemoryInUse,
            Reason::PoolExists => Self::PoolExists,
            // Said by coordinators to routers, never by an agent.
            Reason::WatchRestarted | Reason::WatchTooOld | Reason::WatchTooSlow => {
                Self::UnknownReason
            }
            Reason::SourceUnknown => Self::SourceUnknown,
            Reason::SourceNotReady => Self::SourceNotReady,
            Reason::SourceExists => Self::SourceExists,
            Reason::GpuUnavailable => Self::GpuUnavailable,
            Reason::GpuHandle => Self::GpuHandle,
            Reason::PermissionDenied => Self::PermissionDenied,
            Reason::Unauthenticated => Self::Unauthenticated,
        }
    }
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 39] = [
        Self::InvalidArgument,
        Self::NamespaceUnknown,
        Self::NamespaceMismatch,
        Self::HashLength,
        Self::RegionUnknown,
        Self::SpanOutOfRegion,
        Self::SlotOutOfRegion,
        Self::SlotBusy,
        Self::SlotAlreadySealed,
        Self::SlotNotReserved,
        Self::PoolFull,
        Self::BoundReached,
        Self::CoordinatorUnreachable,
        Self::Fenced,
        Self::NodeUnknown,
        Self::ShuttingDown,
        Self::Memory,
        Self::NamespaceInUse,
        Self::Deadline,
        Self::PinUnknown,
        Self::BlockMissing,
        Self::MemoryInUse,
        Self::PoolExists,
        Self::GpuUnavailable,
        Self::GpuHandle,
        Self::PermissionDenied,
        Self::Unauthenticated,
        Self::SourceUnknown,
        Self::SourceNotReady,
        Self::SourceExists,
        Self::Internal,
        Self::AgentUnreachable,
        Self::AgentLost,
        Self::NotDone,
        Self::Cancelled,
        Self::System,
        Self::NotAllowed,
        Self::WrongThread,
        Self::UnknownReason,
    ];

    /// A name that stays: for programs in other languages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::NamespaceUnknown => "namespace_unknown",
            Self::NamespaceMismatch => "namespace_mismatch",
            Self::HashLength => "hash_length",
            Self::RegionUnknown => "region_unknown",
            Self::SpanOutOfRegion => "span_out_of_region",
            Self::SlotOutOfRegion => "slot_out_of_region",
            Self::SlotBusy => "slot_busy",
            Self::SlotAlreadySealed => "slot_already_sealed",
            Self::SlotNotReserved => "slot_not_reserved",
            Self::PoolFull => "pool_full",
            Self::BoundReached => "bound_reached",
            Self::CoordinatorUnreachable => "coordinator_unreachable",
            Self::Fenced => "fenced",
            Self::NodeUnknown => "node_unknown",
            Self::ShuttingDown => "shutting_down",
            Self::Memory => "memory",
            Self::NamespaceInUse => "namespace_in_use",
            Self::Deadline => "deadline",
            Self::PinUnknown => "pin_unknown",
            Self::BlockMissing => "block_missing",
            Self::MemoryInUse => "memory_in_use",
            Self::PoolExists => "pool_exists",
            Self::GpuUnavailable => "gpu_unavailable",
            Self::GpuHandle => "gpu_handle",
            Self::PermissionDenied => "permission_denied",
            Self::Unauthenticated => "unauthenticated",
            Self::SourceUnknown => "source_unknown",
            Self::SourceNotReady => "source_not_ready",
            Self::SourceExists => "source_exists",
            Self::Internal => "internal",
            Self::AgentUnreachable => "agent_unreachable",
            Self::AgentLost => "agent_lost",
            Self::NotDone => "not_done",
            Self::Cancelled => "cancelled",
            Self::System => "system",
            Self::NotAllowed => "not_allowed",
            Self::WrongThread => "wrong_thread",
            Self::UnknownReason => "unknown_reason",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        let mut names: Vec<_> = Cause::ALL.map(Cause::name).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Cause::ALL.len());
    }
}
