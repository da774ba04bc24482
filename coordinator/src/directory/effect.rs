//! What a directory wants done, and why it ends sessions and refuses regions.

use kvferry_proto::{GeometryError, Incarnation, NamespaceName, NodeId, RegionId};

use kvferry_security::Denied;

use super::{BoundReached, SessionId, SurplusCopy};

/// Something the shell is to do. Order matters within a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Tell the agent it is in.
    Welcome {
        /// To whom.
        session: SessionId,
        /// The next delta expected.
        expect_delta: u64,
        /// Send an inventory instead.
        resync: bool,
    },
    /// Everything up to `seq` is in the directory.
    Ack {
        /// To whom.
        session: SessionId,
        /// The last delta applied.
        seq: u64,
    },
    /// A gap was seen: ask for an inventory.
    ResyncRequest {
        /// To whom.
        session: SessionId,
        /// The delta that was due.
        expected: u64,
        /// The delta that came, or that a heartbeat said comes next.
        got: u64,
    },
    /// Nothing is missing, but a region that was refused might not be any more: ask for an inventory, which declares it again.
    DeclareAgain {
        /// To whom.
        session: SessionId,
    },
    /// Answer a heartbeat.
    HeartbeatAck {
        /// To whom.
        session: SessionId,
        /// As sent.
        number: u64,
    },
    /// A region is not part of the directory.
    RegionRefused {
        /// To whom.
        session: SessionId,
        /// Which region.
        region: RegionId,
        /// Why.
        refusal: RegionRefusal,
    },
    /// Copies that others hold often enough: the agent may evict them before others.
    Surplus {
        /// To whom.
        session: SessionId,
        /// Which.
        copies: Vec<SurplusCopy>,
    },
    /// End the stream. The session is forgotten already.
    Close {
        /// Which one.
        session: SessionId,
        /// Why.
        cause: CloseCause,
    },
    /// For the log: readers are not sent to this node any more.
    NodeHidden {
        /// Which node.
        node: NodeId,
    },
    /// For the log: a hidden node spoke again.
    NodeShown {
        /// Which node.
        node: NodeId,
    },
    /// For the log: everything this incarnation held is gone.
    NodeRemoved {
        /// Which node.
        node: NodeId,
        /// The lifetime that ended.
        incarnation: Incarnation,
        /// Why.
        cause: RemovalCause,
    },
}

/// Why a node went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemovalCause {
    /// It said so.
    Goodbye,
    /// A later incarnation of it came.
    Fenced,
    /// It was silent too long.
    Silent,
}

/// Why a region is refused. Its further changes are acknowledged and ignored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegionRefusal {
    /// Its blocks are not what the namespace's blocks are. Use another namespace.
    #[error("{0}")]
    NamespaceMismatch(String),
    /// Its planes do not make a block of its own layout. Fix the declaration.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// No room. Make some, then declare it again under a new id.
    #[error(transparent)]
    Bound(#[from] BoundReached),
    /// Its agent may not publish in the namespace. Ask an operator, or use another.
    #[error(transparent)]
    Denied(Denied),
    /// An operator deleted the namespace under it. Register it anew if it is still wanted.
    #[error(
        "namespace {namespace} was deleted by force; register the region again if it is still wanted"
    )]
    NamespaceDeleted {
        /// The namespace that was deleted.
        namespace: NamespaceName,
    },
}

/// Why a session ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseCause {
    /// The agent said goodbye: end the stream without an error.
    #[error("goodbye")]
    Goodbye,
    /// A later incarnation speaks for the node. This one is void; stop.
    #[error(
        "incarnation {by} of node {node} has taken over; everything incarnation {incarnation} said is void"
    )]
    Fenced {
        /// The node.
        node: NodeId,
        /// This session's lifetime.
        incarnation: Incarnation,
        /// The later one.
        by: Incarnation,
    },
    /// A later incarnation is known. Wait until it is purged, or use another name.
    #[error(
        "incarnation {got} of node {node} is older than the known {known}: another agent runs under this node \
         name, or the clock stepped back; it is accepted once incarnation {known} said goodbye or was purged"
    )]
    OldIncarnation {
        /// The node.
        node: NodeId,
        /// The one that is known.
        known: Incarnation,
        /// This session's lifetime.
        got: Incarnation,
    },
    /// The same incarnation reconnected on a newer stream; that one goes on.
    #[error("incarnation {incarnation} of node {node} has opened a newer session")]
    Replaced {
        /// The node.
        node: NodeId,
        /// Its lifetime.
        incarnation: Incarnation,
    },
    /// Silent for so long that the node was purged. Connect again.
    #[error("node {node} was silent for {silent_ms} ms and was purged; connect again")]
    Silent {
        /// The node.
        node: NodeId,
        /// How long, in milliseconds.
        silent_ms: u64,
    },
    /// No room for the node or its regions.
    #[error(transparent)]
    Bound(#[from] BoundReached),
    /// The agent broke the protocol. Nothing of the message was applied.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// A message that no correct agent sends. Nothing of it was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A second hello on one stream.
    #[error("a second hello; open a new stream to introduce another incarnation")]
    SecondHello,
    /// A region that was never declared, or was removed.
    #[error("region {region} is not declared")]
    RegionUnknown {
        /// Which region.
        region: RegionId,
    },
    /// A region id that is in use.
    #[error("region {region} is declared already; ids are used once per incarnation")]
    RegionDeclaredTwice {
        /// Which region.
        region: RegionId,
    },
    /// An inventory tells another shape of a region than was declared.
    #[error("region {region} was declared differently before; ids are used once per incarnation")]
    RegionChanged {
        /// Which region.
        region: RegionId,
    },
    /// A slot that the region doesn't have.
    #[error("slot {slot} is not in region {region} of {slots} slots")]
    SlotOutOfRegion {
        /// Which region.
        region: RegionId,
        /// The slot named.
        slot: u32,
        /// How many the region has.
        slots: u32,
    },
    /// Hashes of another length than the namespace's.
    #[error(
        "region {region}: block hashes of {got} bytes; its namespace has hashes of {want} bytes"
    )]
    HashLength {
        /// Which region.
        region: RegionId,
        /// Bytes given.
        got: usize,
        /// Bytes wanted.
        want: usize,
    },
    /// A slot whose generation says it is being written.
    #[error(
        "region {region}: slot {slot} has the odd generation {generation}, so it is not sealed"
    )]
    NotSealed {
        /// Which region.
        region: RegionId,
        /// Which slot.
        slot: u32,
        /// Its generation.
        generation: u64,
    },
    /// Columns that belong together have different lengths.
    #[error(
        "region {region}: columns of {hashes} hashes, {slots} slots, {generations} generations, {checksums} checksums"
    )]
    Ragged {
        /// Which region.
        region: RegionId,
        /// Length of a column.
        hashes: usize,
        /// Length of a column.
        slots: usize,
        /// Length of a column.
        generations: usize,
        /// Length of a column; 0 is allowed.
        checksums: usize,
    },
    /// A part of an inventory that was not started.
    #[error("an inventory part without a first part before it")]
    InventoryNotStarted,
    /// Parts of one inventory that name different deltas.
    #[error("an inventory part at delta {got}; its first part said {want}")]
    InventorySeq {
        /// What the part says.
        got: u64,
        /// What the first part said.
        want: u64,
    },
}
