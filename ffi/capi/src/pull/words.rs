//! A pull as C sees it.

use std::{
    ffi::{c_char, c_void},
    mem::offset_of,
};

use kvferry_client::Unanswered;
use kvferry_proto::pb::OutcomeKind;

use super::kvf_pull;
use crate::{boundary::Growing, words::kvf_hashes};

/// What became of one block. 1 to 63 are the agent's, with the numbers of `OutcomeKind` in agent.proto.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum kvf_outcome_kind {
    /// The bytes are the block.
    KVF_OUTCOME_PULLED = 1,
    /// It was here already; in a region's slot it has been copied there.
    KVF_OUTCOME_LOCAL = 2,
    /// No node holds it: compute it.
    KVF_OUTCOME_MISSING = 3,
    /// Every owner had overwritten it: compute it.
    KVF_OUTCOME_STALE = 4,
    /// Its bytes did not have the checksum they were sealed with: compute it.
    KVF_OUTCOME_CORRUPT = 5,
    /// No owner could be reached: compute it, or pull again later.
    KVF_OUTCOME_UNREACHABLE = 6,
    /// The deadline came first; whether the block exists is unknown.
    KVF_OUTCOME_TIMED_OUT = 7,
    /// The coordinator could not be asked: not a miss.
    KVF_OUTCOME_LOCATE_FAILED = 8,
    /// No room: every slot is pinned or reserved.
    KVF_OUTCOME_NO_SPACE = 9,
    /// Given up by kvf_pull_cancel, kvf_pull_free or kvf_close, or because the agent stops.
    KVF_OUTCOME_CANCELLED = 10,
    /// Who holds it does not let this agent read it: with no ticket that it can get, or not its user. Compute it. Neither a
    /// miss nor an outage, and pulling again does not help: get the right, compare clocks and the coordinator's key, look at
    /// the owner's allow_uids.
    KVF_OUTCOME_DENIED = 11,
    /// The agent refused the whole pull; kvf_pull_wait says why. Nothing was written.
    KVF_OUTCOME_REFUSED = 64,
    /// The connection to the agent ended meanwhile.
    KVF_OUTCOME_AGENT_LOST = 65,
    /// The agent said something that this library does not know: take it for a failure.
    KVF_OUTCOME_UNKNOWN = 66,
}

use kvf_outcome_kind::{
    KVF_OUTCOME_AGENT_LOST, KVF_OUTCOME_CANCELLED, KVF_OUTCOME_CORRUPT, KVF_OUTCOME_DENIED,
    KVF_OUTCOME_LOCAL, KVF_OUTCOME_LOCATE_FAILED, KVF_OUTCOME_MISSING, KVF_OUTCOME_NO_SPACE,
    KVF_OUTCOME_PULLED, KVF_OUTCOME_REFUSED, KVF_OUTCOME_STALE, KVF_OUTCOME_TIMED_OUT,
    KVF_OUTCOME_UNKNOWN, KVF_OUTCOME_UNREACHABLE,
};

impl From<OutcomeKind> for kvf_outcome_kind {
    fn from(kind: OutcomeKind) -> Self {
        match kind {
            OutcomeKind::Unspecified => KVF_OUTCOME_UNKNOWN,
            OutcomeKind::Pulled => KVF_OUTCOME_PULLED,
            OutcomeKind::Local => KVF_OUTCOME_LOCAL,
            OutcomeKind::Missing => KVF_OUTCOME_MISSING,
            OutcomeKind::Stale => KVF_OUTCOME_STALE,
            OutcomeKind::Corrupt => KVF_OUTCOME_CORRUPT,
            OutcomeKind::Unreachable => KVF_OUTCOME_UNREACHABLE,
            OutcomeKind::TimedOut => KVF_OUTCOME_TIMED_OUT,
            OutcomeKind::LocateFailed => KVF_OUTCOME_LOCATE_FAILED,
            OutcomeKind::NoSpace => KVF_OUTCOME_NO_SPACE,
            OutcomeKind::Cancelled => KVF_OUTCOME_CANCELLED,
            OutcomeKind::Denied => KVF_OUTCOME_DENIED,
        }
    }
}

impl From<Unanswered> for kvf_outcome_kind {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Cancelled => KVF_OUTCOME_CANCELLED,
            Unanswered::TimedOut => KVF_OUTCOME_TIMED_OUT,
            Unanswered::Refused => KVF_OUTCOME_REFUSED,
            Unanswered::AgentLost => KVF_OUTCOME_AGENT_LOST,
            Unanswered::Unknown => KVF_OUTCOME_UNKNOWN,
        }
    }
}

/// What became of one block. Its texts belong to the pull and last until kvf_pull_free.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_outcome {
    /// Which of the pull's hashes.
    pub index: u32,
    /// What.
    pub kind: kvf_outcome_kind,
    /// Where it lies now (pulled and local only).
    pub region: u32,
    /// The slot there.
    pub slot: u32,
    /// That slot's generation.
    pub generation: u64,
    /// False where the destination may still be written to. Leave the slot alone: kvf_reserve says
    /// KVF_SLOT_BUSY until it is free.
    pub settled: bool,
    /// The node it came from; empty where it came from none. Never NULL.
    pub source_node: *const c_char,
    /// How ("tcp", "shm", "rdma"); empty where it was not moved. Never NULL.
    pub transport: *const c_char,
    /// What happened, to whom, and what to do, for people; empty on success. Never NULL.
    pub detail: *const c_char,
}

/// Called when a pull has something new to say: `done` is 1 exactly once, with the last call, and 0 before; a pull
/// that is freed first is not called for any more.
/// Calls of one agent handle come one after another, from one thread of the library: a slow one delays the
/// others, not the transfers. Every function may be called from it but kvf_close; also kvf_pull_free of this
/// very pull. The first call may come before kvf_pull_start has returned.
pub type kvf_pull_callback =
    Option<unsafe extern "C" fn(pull: *mut kvf_pull, done: i32, user: *mut c_void)>;

/// What to bring, and where to. All bits zero but `size`, `namespace_name` and `hashes` pulls into the
/// agent's pool.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct kvf_pull_request {
    /// sizeof(kvf_pull_request).
    pub size: usize,
    /// The namespace.
    pub namespace_name: *const c_char,
    /// The blocks: one outcome each.
    pub hashes: kvf_hashes,
    /// Where the blocks go in `region`, one slot per hash: `hashes.count` of them. The call reserves them.
    /// NULL: into the agent's pool, where they stay pinned until they are released.
    pub slots: *const u32,
    /// The caller's region, where `slots` is not NULL.
    pub region: u32,
    /// Every outcome is there by then; 0 means 10,000; at most KVF_MAX_TIMEOUT_MS. Where the agent itself
    /// has stopped answering the pull ends 2 seconds later.
    pub timeout_ms: u32,
    /// How long blocks in the pool stay pinned after the pull; 0 means 30,000; at most 600,000.
    pub pin_ttl_ms: u32,
    /// KVF_NO_REPLICA, KVF_CHAINED.
    pub flags: u32,
    /// With KVF_CHAINED: the first hash's parent, `hashes.hash_len` bytes, or NULL.
    pub parent: *const u8,
    /// Called when there is something new; NULL for never.
    pub callback: kvf_pull_callback,
    /// Given to the callback.
    pub user: *mut c_void,
    /// Delivery layer by layer, into slots only: the planes of the first stage, of the second, ...; each at least 1,
    /// together the layout's planes. The first stage of every block comes before the second of any, and so on; see
    /// kvf_pull_wait_stages. NULL: no stages, every block comes whole.
    pub stages: *const u32,
    /// How many `stages`.
    pub stage_count: usize,
}

// SAFETY: repr(C), begins with its size; pointers, integers and an optional function only.
unsafe impl Growing for kvf_pull_request {
    const FIRST_SIZE: usize = offset_of!(Self, stages);
}

/// What a pull that has ended amounts to.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct kvf_pull_summary {
    /// sizeof(kvf_pull_summary).
    pub size: usize,
    /// Blocks that were moved.
    pub pulled: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Microseconds until owners were known.
    pub locate_us: u64,
    /// Microseconds of connecting to them.
    pub connect_us: u64,
    /// Microseconds of reading.
    pub wire_us: u64,
    /// Microseconds of all.
    pub total_us: u64,
    /// Releases all of the pull's blocks in the pool (kvf_release); 0 where there is nothing to release.
    pub pin: u64,
}

// SAFETY: repr(C), begins with its size, integers only.
unsafe impl Growing for kvf_pull_summary {
    const FIRST_SIZE: usize = size_of::<Self>();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_outcomes_keep_their_numbers() {
        for number in 1..64 {
            let Ok(kind) = OutcomeKind::try_from(number) else {
                continue;
            };
            assert_eq!(kvf_outcome_kind::from(kind) as i32, number, "{kind:?}");
        }
    }
}
