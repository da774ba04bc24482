//! What a call came to: one number for each thing a caller can do about it.

use std::ffi::{CStr, c_char};

use kvferry_client::Cause;

/// What a call came to. 1 to 99 are the agent's reasons, with the same numbers as `ErrorDetail.Reason` in
/// agent.proto; from 100 on the library speaks for itself.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum kvf_status {
    /// Done.
    KVF_OK = 0,
    /// An argument is wrong: correct the program.
    KVF_INVALID_ARGUMENT = 1,
    /// No such namespace: register a region of it first.
    KVF_NAMESPACE_UNKNOWN = 2,
    /// Others use this namespace with another layout: do not start.
    KVF_NAMESPACE_MISMATCH = 3,
    /// Hashes of another length than the namespace's: correct the program.
    KVF_HASH_LENGTH = 4,
    /// The region has ended: register it again.
    KVF_REGION_UNKNOWN = 5,
    /// The geometry reaches beyond the memory: correct it.
    KVF_SPAN_OUT_OF_REGION = 6,
    /// The region does not have that slot: correct the program.
    KVF_SLOT_OUT_OF_REGION = 7,
    /// The slot is pinned, reserved, or still being written to: use another one, or try again later.
    KVF_SLOT_BUSY = 8,
    /// The slot is sealed already: reserve it before it is written to.
    KVF_SLOT_ALREADY_SEALED = 9,
    /// The slot is not reserved by this connection: reserve it first.
    KVF_SLOT_NOT_RESERVED = 10,
    /// Every slot of the pool is pinned or reserved: release some, or try again later.
    KVF_POOL_FULL = 11,
    /// Too much at once: split the call, or wait until others have ended.
    KVF_BOUND_REACHED = 12,
    /// The coordinator cannot be asked: never a miss; try again later.
    KVF_COORDINATOR_UNREACHABLE = 13,
    /// A newer lifetime of the node has taken over: stop.
    KVF_FENCED = 14,
    /// No such node.
    KVF_NODE_UNKNOWN = 15,
    /// The agent is stopping: open it again when it is back.
    KVF_SHUTTING_DOWN = 16,
    /// The memory cannot be used: the message says why.
    KVF_MEMORY = 17,
    /// The namespace still has blocks: evict them first.
    KVF_NAMESPACE_IN_USE = 18,
    /// Not done in time; whether it will still be done is unknown: ask again.
    KVF_DEADLINE = 19,
    /// The pin has expired or was released: nothing to do.
    KVF_PIN_UNKNOWN = 20,
    /// A block the call needs is not there.
    KVF_BLOCK_MISSING = 21,
    /// The memory is registered already, or something still writes to it: call again later.
    KVF_MEMORY_IN_USE = 22,
    /// The namespace has a pool: use it.
    KVF_POOL_EXISTS = 23,
    /// No such source, or its workers have ended.
    KVF_SOURCE_UNKNOWN = 40,
    /// The source has no worker that is ready: try again later.
    KVF_SOURCE_NOT_READY = 41,
    /// Other tensors are published under that name here: withdraw them first, or name these otherwise.
    KVF_SOURCE_EXISTS = 42,
    /// The agent has no libcuda, not that GPU, or cannot use it: give it the GPU, or restart it.
    KVF_GPU_UNAVAILABLE = 50,
    /// The CUDA IPC handle does not open: send a new one of memory that can be shared.
    KVF_GPU_HANDLE = 51,
    /// The agent's identity may not do that there: an operator grants it in the coordinator's policy file.
    KVF_PERMISSION_DENIED = 60,
    /// The coordinator does not know who asks: give the agent a certificate or a token.
    KVF_UNAUTHENTICATED = 61,

    /// A defect in the library: report it with the message.
    KVF_INTERNAL = 100,
    /// No agent listens there: start it, or correct the path.
    KVF_AGENT_UNREACHABLE = 101,
    /// The connection has ended, and with it every reservation, pin and region made by it: close the
    /// handle, open anew, register again.
    KVF_AGENT_LOST = 102,
    /// Nothing wrong: the pull has not ended yet.
    KVF_NOT_DONE = 103,
    /// The pull was given up by kvf_pull_cancel or kvf_close.
    KVF_CANCELLED = 104,
    /// The operating system refused something: the message says what.
    KVF_SYSTEM = 105,
    /// The agent does not serve this user.
    KVF_NOT_ALLOWED = 106,
    /// Not from a callback: call it from another thread.
    KVF_WRONG_THREAD = 107,
    /// The agent gave a reason that this library does not know: it is newer.
    KVF_UNKNOWN_REASON = 108,
}

use kvf_status::{
    KVF_AGENT_LOST, KVF_AGENT_UNREACHABLE, KVF_BLOCK_MISSING, KVF_BOUND_REACHED, KVF_CANCELLED,
    KVF_COORDINATOR_UNREACHABLE, KVF_DEADLINE, KVF_FENCED, KVF_GPU_HANDLE, KVF_GPU_UNAVAILABLE,
    KVF_HASH_LENGTH, KVF_INTERNAL, KVF_INVALID_ARGUMENT, KVF_MEMORY, KVF_MEMORY_IN_USE,
    KVF_NAMESPACE_IN_USE, KVF_NAMESPACE_MISMATCH, KVF_NAMESPACE_UNKNOWN, KVF_NODE_UNKNOWN,
    KVF_NOT_ALLOWED, KVF_NOT_DONE, KVF_OK, KVF_PERMISSION_DENIED, KVF_PIN_UNKNOWN, KVF_POOL_EXISTS,
    KVF_POOL_FULL, KVF_REGION_UNKNOWN, KVF_SHUTTING_DOWN, KVF_SLOT_ALREADY_SEALED, KVF_SLOT_BUSY,
    KVF_SLOT_NOT_RESERVED, KVF_SLOT_OUT_OF_REGION, KVF_SOURCE_EXISTS, KVF_SOURCE_NOT_READY,
    KVF_SOURCE_UNKNOWN, KVF_SPAN_OUT_OF_REGION, KVF_SYSTEM, KVF_UNAUTHENTICATED,
    KVF_UNKNOWN_REASON, KVF_WRONG_THREAD,
};

impl From<Cause> for kvf_status {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::InvalidArgument => KVF_INVALID_ARGUMENT,
            Cause::NamespaceUnknown => KVF_NAMESPACE_UNKNOWN,
            Cause::NamespaceMismatch => KVF_NAMESPACE_MISMATCH,
            Cause::HashLength => KVF_HASH_LENGTH,
            Cause::RegionUnknown => KVF_REGION_UNKNOWN,
            Cause::SpanOutOfRegion => KVF_SPAN_OUT_OF_REGION,
            Cause::SlotOutOfRegion => KVF_SLOT_OUT_OF_REGION,
            Cause::SlotBusy => KVF_SLOT_BUSY,
            Cause::SlotAlreadySealed => KVF_SLOT_ALREADY_SEALED,
            Cause::SlotNotReserved => KVF_SLOT_NOT_RESERVED,
            Cause::PoolFull => KVF_POOL_FULL,
            Cause::BoundReached => KVF_BOUND_REACHED,
            Cause::CoordinatorUnreachable => KVF_COORDINATOR_UNREACHABLE,
            Cause::Fenced => KVF_FENCED,
            Cause::NodeUnknown => KVF_NODE_UNKNOWN,
            Cause::ShuttingDown => KVF_SHUTTING_DOWN,
            Cause::Memory => KVF_MEMORY,
            Cause::NamespaceInUse => KVF_NAMESPACE_IN_USE,
            Cause::Deadline => KVF_DEADLINE,
            Cause::PinUnknown => KVF_PIN_UNKNOWN,
            Cause::BlockMissing => KVF_BLOCK_MISSING,
            Cause::MemoryInUse => KVF_MEMORY_IN_USE,
            Cause::PoolExists => KVF_POOL_EXISTS,
            Cause::GpuUnavailable => KVF_GPU_UNAVAILABLE,
            Cause::GpuHandle => KVF_GPU_HANDLE,
            Cause::PermissionDenied => KVF_PERMISSION_DENIED,
            Cause::Unauthenticated => KVF_UNAUTHENTICATED,
            Cause::SourceUnknown => KVF_SOURCE_UNKNOWN,
            Cause::SourceNotReady => KVF_SOURCE_NOT_READY,
            Cause::SourceExists => KVF_SOURCE_EXISTS,
            Cause::Internal => KVF_INTERNAL,
            Cause::AgentUnreachable => KVF_AGENT_UNREACHABLE,
            Cause::AgentLost => KVF_AGENT_LOST,
            Cause::NotDone => KVF_NOT_DONE,
            Cause::Cancelled => KVF_CANCELLED,
            Cause::System => KVF_SYSTEM,
            Cause::NotAllowed => KVF_NOT_ALLOWED,
            Cause::WrongThread => KVF_WRONG_THREAD,
            Cause::UnknownReason => KVF_UNKNOWN_REASON,
        }
    }
}

/// Every status with its name.
const NAMES: [(kvf_status, &CStr); 40] = [
    (KVF_OK, c"KVF_OK"),
    (KVF_INVALID_ARGUMENT, c"KVF_INVALID_ARGUMENT"),
    (KVF_NAMESPACE_UNKNOWN, c"KVF_NAMESPACE_UNKNOWN"),
    (KVF_NAMESPACE_MISMATCH, c"KVF_NAMESPACE_MISMATCH"),
    (KVF_HASH_LENGTH, c"KVF_HASH_LENGTH"),
    (KVF_REGION_UNKNOWN, c"KVF_REGION_UNKNOWN"),
    (KVF_SPAN_OUT_OF_REGION, c"KVF_SPAN_OUT_OF_REGION"),
    (KVF_SLOT_OUT_OF_REGION, c"KVF_SLOT_OUT_OF_REGION"),
    (KVF_SLOT_BUSY, c"KVF_SLOT_BUSY"),
    (KVF_SLOT_ALREADY_SEALED, c"KVF_SLOT_ALREADY_SEALED"),
    (KVF_SLOT_NOT_RESERVED, c"KVF_SLOT_NOT_RESERVED"),
    (KVF_POOL_FULL, c"KVF_POOL_FULL"),
    (KVF_BOUND_REACHED, c"KVF_BOUND_REACHED"),
    (KVF_COORDINATOR_UNREACHABLE, c"KVF_COORDINATOR_UNREACHABLE"),
    (KVF_FENCED, c"KVF_FENCED"),
    (KVF_NODE_UNKNOWN, c"KVF_NODE_UNKNOWN"),
    (KVF_SHUTTING_DOWN, c"KVF_SHUTTING_DOWN"),
    (KVF_MEMORY, c"KVF_MEMORY"),
    (KVF_NAMESPACE_IN_USE, c"KVF_NAMESPACE_IN_USE"),
    (KVF_DEADLINE, c"KVF_DEADLINE"),
    (KVF_PIN_UNKNOWN, c"KVF_PIN_UNKNOWN"),
    (KVF_BLOCK_MISSING, c"KVF_BLOCK_MISSING"),
    (KVF_MEMORY_IN_USE, c"KVF_MEMORY_IN_USE"),
    (KVF_POOL_EXISTS, c"KVF_POOL_EXISTS"),
    (KVF_SOURCE_UNKNOWN, c"KVF_SOURCE_UNKNOWN"),
    (KVF_SOURCE_NOT_READY, c"KVF_SOURCE_NOT_READY"),
    (KVF_SOURCE_EXISTS, c"KVF_SOURCE_EXISTS"),
    (KVF_GPU_UNAVAILABLE, c"KVF_GPU_UNAVAILABLE"),
    (KVF_GPU_HANDLE, c"KVF_GPU_HANDLE"),
    (KVF_PERMISSION_DENIED, c"KVF_PERMISSION_DENIED"),
    (KVF_UNAUTHENTICATED, c"KVF_UNAUTHENTICATED"),
    (KVF_INTERNAL, c"KVF_INTERNAL"),
    (KVF_AGENT_UNREACHABLE, c"KVF_AGENT_UNREACHABLE"),
    (KVF_AGENT_LOST, c"KVF_AGENT_LOST"),
    (KVF_NOT_DONE, c"KVF_NOT_DONE"),
    (KVF_CANCELLED, c"KVF_CANCELLED"),
    (KVF_SYSTEM, c"KVF_SYSTEM"),
    (KVF_NOT_ALLOWED, c"KVF_NOT_ALLOWED"),
    (KVF_WRONG_THREAD, c"KVF_WRONG_THREAD"),
    (KVF_UNKNOWN_REASON, c"KVF_UNKNOWN_REASON"),
];

/// The name of a status ("KVF_SLOT_BUSY"); "?" for a number that is none. Lasts as long as the process.
#[unsafe(no_mangle)]
pub extern "C" fn kvf_status_text(status: u32) -> *const c_char {
    NAMES
        .iter()
        .find(|(known, _)| *known as u32 == status)
        .map_or(c"?", |(_, name)| name)
        .as_ptr()
}

#[cfg(test)]
mod tests {
    use kvferry_proto::Reason;

    use super::*;

    #[test]
    fn the_agents_reasons_keep_their_numbers() {
        for number in 1..=99 {
            let Ok(reason) = Reason::try_from(number) else {
                continue;
            };
            let status = kvf_status::from(Cause::from(reason));
            // Said by coordinators to routers.
            let not_ours = matches!(
                reason,
                Reason::WatchRestarted | Reason::WatchTooOld | Reason::WatchTooSlow
            );
            match not_ours {
                true => assert_eq!(status, KVF_UNKNOWN_REASON, "{reason:?}"),
                false => assert_eq!(status as i32, number, "{reason:?}"),
            }
        }
    }

    #[test]
    fn every_status_has_its_name() {
        for (status, name) in NAMES {
            assert_eq!(format!("{status:?}"), name.to_str().unwrap());
            assert_eq!(kvf_status_text(status as u32), name.as_ptr());
        }
        assert_eq!(kvf_status_text(77), c"?".as_ptr());
    }
}
