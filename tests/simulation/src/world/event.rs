//! What will happen, and to whom.

use kvferry_agent::{
    region::{ClientId, Held, PinId},
    transfer::{ConnectFailure, OpId, ReadFailure, SourceKey},
    transport::PeerTarget,
};
use kvferry_coordinator::sources::Announcer;
use kvferry_proto::{Incarnation, NodeId, pb};

use super::{
    Pid,
    claims::{ClaimAnswer, ClaimCall},
    network,
    routers::RouterEvent,
    sets::{Say, Set},
    storage::StorageCall,
};

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum Event {
    /// A fault begins.
    Fault(usize),
    /// A node's next process starts.
    Start {
        node: usize,
        clock_behind: bool,
        elsewhere: bool,
    },
    /// A coordinator comes back, knowing nothing.
    CoordinatorStarts(usize),
    /// It looks for the silent.
    CoordinatorTick(usize),
    /// The front of a stream's pipe may have arrived.
    Deliver { stream: u64, up: bool },
    /// A locate arrives.
    Locate {
        coordinator: usize,
        pid: Pid,
        pull: u64,
        op: OpId,
        request: Box<pb::LocateRequest>,
    },
    /// A connect arrives at its owner.
    Connect {
        pid: Pid,
        pull: u64,
        source: SourceKey,
    },
    /// A read fetches its next piece from its owner's memory.
    Fetch {
        pid: Pid,
        pull: u64,
        op: OpId,
        read: usize,
    },
    /// A process does something.
    Process(Pid, Act),
    /// Somebody claims blocks.
    Claim,
    /// That arrives.
    ClaimCall(Box<ClaimCall>),
    /// Something happens to a router.
    Router(usize, RouterEvent),
    /// Somebody says where blocks lie in storage, or asks.
    Storage,
    /// That arrives.
    StorageCall {
        coordinator: usize,
        blocks: Vec<u64>,
        call: StorageCall,
    },
    /// A coordinator looks for what lacks copies.
    CopyTick(usize),
    /// Something happens to sets of tensors.
    Sets,
    /// Something happens to tensors' bytes.
    Tensors,
    /// What an agent says of its sets arrives.
    SetsSaid {
        coordinator: usize,
        pid: Pid,
        who: Box<Announcer>,
        say: Box<Say>,
    },
    /// A coordinator looks which nodes with sets are there.
    SetsTick(usize),
    /// A node is drained no longer.
    Undrain(usize),
    /// A suspect is asked whether it is there.
    Hello { pid: Pid, peer: Box<PeerTarget> },
    /// Promises that can be checked at any time are.
    Probe,
}

/// What happens in a process; while it stands still, nothing does.
#[derive(Debug)]
pub(crate) enum Act {
    SessionTimer(usize),
    Connected {
        session: usize,
        attempt: u64,
        ok: bool,
    },
    FromCoordinator {
        session: usize,
        stream: u64,
        said: network::Down,
    },
    LogChanged,
    LateInventory {
        session: usize,
        stream: u64,
    },
    Work,
    LastWork,
    Write {
        job: u64,
    },
    StoreTick,
    /// What is published is announced to one coordinator; again and again.
    Announce {
        session: usize,
        again: bool,
    },
    /// It answers.
    SetsTold {
        session: usize,
        unknown: Vec<(usize, Set)>,
        removed: Vec<(usize, Set)>,
    },
    /// Suspects are probed.
    Upkeep,
    /// A claimant is answered.
    ClaimAnswered(Box<ClaimCall>, ClaimAnswer),
    /// Or not, in its time.
    ClaimUnanswered(Box<ClaimCall>),
    /// A pull of tensors asks for what it lacks.
    Tensors(u64),
    /// One answers: whom it was taken for, and who it is.
    HelloAnswered {
        node: NodeId,
        asked: Incarnation,
        found: Incarnation,
    },
    Release {
        client: ClientId,
        pin: PinId,
        blocks: Vec<(u64, Held)>,
    },
    Located {
        pull: u64,
        op: OpId,
        answer: Result<Box<pb::LocateResponse>, bool>,
    },
    LinkUp {
        pull: u64,
        source: SourceKey,
        owner: Pid,
    },
    LinkFailed {
        pull: u64,
        source: SourceKey,
        failure: ConnectFailure,
    },
    Arrive {
        pull: u64,
        op: OpId,
        read: usize,
        bytes: Vec<u8>,
    },
    ReadFails {
        pull: u64,
        op: OpId,
        failure: ReadFailure,
    },
    Settle {
        pull: u64,
        op: OpId,
    },
    PullTimer(u64),
    PullDeadline(u64),
    EngineDies,
    Leave,
    Exit,
}
