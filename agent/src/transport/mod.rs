//! How bytes get from an owner's memory into ours. One contract, several implementations, one
//! conformance suite (`tests/conformance`).
//!
//! # The contract
//!
//! [`Link::read`] fetches remote spans into local spans, in order, the two cut as they like but of
//! equal total length.
//!
//! 1. When it completes with `Ok`, every byte was fetched from the owner's memory at some moment
//!    between the call and the completion.
//! 2. When its [`PendingRead`] has resolved, whatever the result, it has *settled*: nothing will
//!    write to the local spans any more. Until then the local spans belong to the read.
//! 3. [`PendingRead::cancel`] makes it settle soon, also when the peer is dead or stopped. It resolves
//!    with [`ReadError::Cancelled`], or with its result where it was already done.
//! 4. A read that starts after another one has completed sees memory no older than that one saw: a
//!    generation read after the data arrived is newer than the data.
//! 5. Words of [`Part::Generations`](kvferry_proto::Part) are fetched whole, never torn.
//! 6. Where [`Link::reads_in_order`], [`Link::read_with_words`] fetches every word after all the data, so that words
//!    are no older than any byte of it: what 4. promises of two reads, in one.
//!
//! A transport promises nothing else: not that bytes are the right ones. The pull engine validates.

mod chained;
mod health;
mod links;
mod not_secure;
mod operation;
mod pending;
mod random;
pub mod rdma;
pub mod shm;
pub mod sim;
mod spans;
pub mod staged;
mod straight;
pub mod tcp;

use std::{future::Future, ops::Range, pin::Pin, sync::Arc};

use kvferry_cuda::StagingError;
use kvferry_memory::{AccessError, HostMemory};
use kvferry_observe::Label;
use kvferry_proto::{Incarnation, NodeAddresses, NodeId, RemoteSpan};
use kvferry_security::ticket::Refusal;

use crate::tickets::NoTicket;
pub use health::PeerHealth;
pub use links::{FallbackReason, LinkCounters, Links, LinksConfig};
pub use not_secure::NotSecure;
pub use pending::{CancelRead, Completion, PendingRead};
pub use straight::{GpuRead, GpuRequest, GpuSpans};

/// A boxed future, for traits that are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Which transport; in order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TransportKind {
    /// The owner's memory mapped on the same host.
    Shm,
    /// One-sided READs by a network card.
    Rdma,
    /// Sockets.
    Tcp,
    /// The simulated one, in tests.
    Sim,
}

impl TransportKind {
    /// As it is written in outcomes, metrics and flags.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shm => "shm",
            Self::Rdma => "rdma",
            Self::Tcp => "tcp",
            Self::Sim => "sim",
        }
    }

    /// Of what [`TransportKind::as_str`] gives.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let kinds = <Self as Label>::ALL.iter();
        kinds.copied().find(|kind| kind.as_str() == text)
    }
}

impl Label for TransportKind {
    const NAME: &'static str = "transport";
    const ALL: &'static [Self] = &[Self::Shm, Self::Rdma, Self::Tcp, Self::Sim];
    fn as_str(self) -> &'static str {
        self.as_str()
    }
    fn place(self) -> usize {
        self as usize
    }
}

/// Whom to reach.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerTarget {
    /// Its name, for messages to people.
    pub node: NodeId,
    /// The lifetime whose regions are meant; any other must be refused.
    pub incarnation: Incarnation,
    /// Where it can be reached.
    pub addresses: NodeAddresses,
}

/// What a caller may do with a link. Callers ask this, never which transport it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Most remote spans in one read.
    pub max_spans: usize,
    /// Most bytes in one read.
    pub max_bytes: u64,
    /// How many bytes should be asked for ahead, to keep the path full.
    pub window_bytes: u64,
    /// Preference among links to different owners; lower is nearer.
    pub distance: u8,
    /// The path does not vouch for its bytes: what comes over it is taken only where it has the checksum that it was
    /// sealed with. What has none must come another way.
    pub needs_checksum: bool,
    /// What a further span costs, told in bytes that take as long: where no more than that lies between two words, it is
    /// read too. 0: a span costs no more than its own bytes.
    pub span_bytes: u64,
}

/// Local memory to read into: ranges of one mapping, in order.
#[derive(Debug, Clone)]
pub struct LocalSpans {
    /// Kept alive by the read until it settles.
    pub memory: Arc<HostMemory>,
    /// Byte ranges of it.
    pub ranges: Vec<Range<u64>>,
}

impl LocalSpans {
    /// Bytes in all.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.ranges.iter().fold(0, |sum, range| {
            sum.saturating_add(range.end.saturating_sub(range.start))
        })
    }
}

/// One read.
#[derive(Debug, Clone)]
pub struct ReadRequest {
    /// What to fetch, in order.
    pub remote: Vec<RemoteSpan>,
    /// Where to put it, in order; as many bytes as `remote` has.
    pub local: LocalSpans,
}

impl ReadRequest {
    /// Checks what every transport needs: something to read, equal lengths, within the bounds, local
    /// ranges inside their memory. Gives the bytes in all.
    ///
    /// # Errors
    /// [`ReadError::Invalid`].
    pub fn check(&self, bounds: &Capabilities) -> Result<u64, ReadError> {
        let remote = self
            .remote
            .iter()
            .try_fold(0u64, |sum, span| sum.checked_add(span.len));
        let local = self.local.len_bytes();
        let inside =
            |range: &Range<u64>| range.start <= range.end && range.end <= self.local.memory.len();
        let why = match remote {
            Some(0) | None => "there is nothing to read",
            Some(bytes) if bytes != local => "remote and local spans differ in length",
            Some(bytes) if bytes > bounds.max_bytes => "more bytes than one read may have",
            Some(_) if self.remote.len() > bounds.max_spans => "more spans than one read may have",
            Some(_) if !self.local.ranges.iter().all(inside) => {
                "a local span is outside its memory"
            }
            Some(bytes) => return Ok(bytes),
        };
        Err(ReadError::Invalid(why))
    }
}

/// Why a read did not succeed. Each variant is another next move for the caller.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The caller gave it up.
    #[error("cancelled")]
    Cancelled,
    /// The link is gone, with everything on it: connect again, or go to another owner.
    #[error("the link to {node} is lost: {detail}")]
    LinkLost {
        /// Whose link.
        node: NodeId,
        /// What happened.
        detail: String,
    },
    /// The owner does not have that region (any more): the hint was stale. The link is good.
    #[error("{node} does not serve region {region}")]
    RegionGone {
        /// Whose region.
        node: NodeId,
        /// Which.
        region: u32,
    },
    /// The owner refuses the span: the hint contradicts what the owner has. The link is good.
    #[error("{node} refuses a span: {detail}")]
    SpanRefused {
        /// The owner.
        node: NodeId,
        /// What is wrong with it.
        detail: &'static str,
    },
    /// The owner refuses our ticket: it is not shown again. A new link begins with a new one.
    #[error("{node} refuses the ticket: {refusal}")]
    TicketRefused {
        /// The owner.
        node: NodeId,
        /// Why.
        refusal: Refusal,
    },
    /// What is asked for goes not over this link itself, and no other could be opened for it; what the owner says to that is
    /// what there is to do. The link is good.
    #[error("{why}, and there is no other way: {error}")]
    NoLink {
        /// Why this link does not do.
        why: String,
        /// Why there is no other.
        error: ConnectError,
    },
    /// The caller's request is wrong; do not repeat it.
    #[error("not a valid read: {0}")]
    Invalid(&'static str),
    /// The local memory cannot be written to: its engine cut the file.
    #[error("the local memory fails: {0}")]
    Local(#[from] AccessError),
    /// The local GPU takes no bytes: it failed, or its staging buffers are all in use.
    #[error("the local GPU's memory cannot be written: {0}")]
    LocalGpu(#[from] StagingError),
}

/// Why there is no link. Each variant is another next move for the caller.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers there: back off, use another owner.
    #[error("cannot reach {node} at {address}: {detail}")]
    Unreachable {
        /// Whom.
        node: NodeId,
        /// Where.
        address: String,
        /// What happened.
        detail: String,
    },
    /// Another lifetime of the node answers: every hint about the old one is void.
    #[error("{node} was restarted: {found} answers where {expected} was expected")]
    WrongIncarnation {
        /// Whom.
        node: NodeId,
        /// The one the hint named.
        expected: Incarnation,
        /// The one that answered.
        found: Incarnation,
    },
    /// The peer answers and refuses: no use in trying again soon.
    #[error("{node} refuses the connection: {detail}")]
    Refused {
        /// Whom.
        node: NodeId,
        /// Why.
        detail: String,
    },
    /// The peer lets this process's user in by no connection of that transport; by another one it may. No use in trying
    /// again soon.
    #[error("{node} lets this user not in by {transport}: {detail}")]
    UserRefused {
        /// Whom.
        node: NodeId,
        /// Which transport.
        transport: &'static str,
        /// What to look at.
        detail: String,
    },
    /// The peer refuses our ticket, and refused the one before it: no use in trying again soon.
    #[error("{node} refuses the ticket: {refusal}")]
    TicketRefused {
        /// Whom.
        node: NodeId,
        /// Why.
        refusal: Refusal,
    },
    /// There is no ticket to show: whether the peer would let us in is not known.
    #[error("no ticket for {node}: {why}")]
    NoTicket {
        /// Whom.
        node: NodeId,
        /// Why not.
        why: NoTicket,
    },
    /// The way there is not as safe as it must be, and none is taken that is less safe: nothing was sent. An operator is
    /// needed; no use in trying again soon.
    #[error("no payload from {node}: {why}")]
    Insecure {
        /// Whom.
        node: NodeId,
        /// Why not.
        why: NotSecure,
    },
    /// This transport has no way to that peer.
    #[error("no {transport} path to {node}: {detail}")]
    NoPath {
        /// Whom.
        node: NodeId,
        /// Which transport.
        transport: &'static str,
        /// Why not.
        detail: String,
    },
}

impl ConnectError {
    /// Are we kept out? Not where no coordinator could be asked for a ticket: that is an outage.
    #[must_use]
    pub fn is_denial(&self) -> bool {
        matches!(self, Self::UserRefused { .. }) || self.denies_every_way()
    }

    /// Of what several transports to one peer found, what there is to say: that it keeps us out whatever the way, before
    /// what ails any one way, before that one way is not for us. Of two alike the later.
    #[must_use]
    pub(crate) fn or_more_telling(self, later: Self) -> Self {
        match (&self, &later) {
            _ if self.denies_every_way() => self,
            (Self::UserRefused { .. }, _) => later,
            (_, Self::UserRefused { .. }) => self,
            _ => later,
        }
    }

    /// A ticket is asked for whatever the way.
    fn denies_every_way(&self) -> bool {
        matches!(
            self,
            Self::TicketRefused { .. }
                | Self::NoTicket {
                    why: NoTicket::Denied { .. },
                    ..
                }
        )
    }
}

/// A way to reach peers.
pub trait Transport: Send + Sync {
    /// Which one.
    fn kind(&self) -> TransportKind;

    /// Could this peer be reached this way, as far as its addresses tell? Costs nothing.
    fn reaches(&self, peer: &PeerTarget) -> bool;

    /// As [`Capabilities::needs_checksum`], of every link it opens.
    fn needs_checksum(&self) -> bool {
        false
    }

    /// Opens a link. Ends by itself within the transport's named connect bound.
    fn connect<'a>(
        &'a self,
        peer: &'a PeerTarget,
    ) -> BoxFuture<'a, Result<Arc<dyn Link>, ConnectError>>;
}

/// An open path to one incarnation of one peer; may stand for several connections.
pub trait Link: Send + Sync {
    /// Its transport.
    fn kind(&self) -> TransportKind;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Starts a read; see the contract on this module's page.
    fn read(&self, request: ReadRequest) -> PendingRead;

    /// Can it fetch generation words after data within one read? See 6. of the contract.
    fn reads_in_order(&self) -> bool {
        false
    }

    /// Starts a read of data and of the words that validate it, as one: both requests' bytes and spans count together,
    /// and it settles when both have. Only where [`Link::reads_in_order`].
    fn read_with_words(&self, data: ReadRequest, words: ReadRequest) -> PendingRead {
        let _ = (data, words);
        PendingRead::settled(Err(ReadError::Invalid("this link reads in no order")))
    }

    /// Starts a read straight into a GPU's memory, where it can. The contract is that of [`Link::read`]; when it has
    /// succeeded, work that the GPU begins from then on sees the bytes.
    fn read_gpu(&self, request: &GpuRequest) -> GpuRead {
        let _ = request;
        GpuRead::Staged
    }

    /// Payload bytes that arrived so far, also within reads that are not complete: a link whose count
    /// stands still while reads are under way is stalled.
    fn received_bytes(&self) -> u64;

    /// True when it will never complete a read again: open another.
    fn is_lost(&self) -> bool;

    /// Bytes that came over it were not what was sealed: it may give itself up, with what is under way.
    fn distrust(&self) {}
}
