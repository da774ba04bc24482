//! The shell around the pull engine: asks, connects, reads and lands for it, on tokio's clock.

mod flight;
mod run;
mod scratch;

#[cfg(test)]
mod tests;

use std::{ops::Range, sync::Arc, time::Duration};

use kvferry_proto::{Checksum, NodeId};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    command::BlockIndex, config::TransferConfig, engine::PullRequest, metrics::TransferMetrics,
    outcome::Outcome, plan::Destination,
};
use crate::{
    coordinators::Located,
    transport::{BoxFuture, ConnectError, Link, PeerTarget, TransportKind},
};

/// Why nobody could say who holds a block. Never means that nobody does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocateError {
    /// No coordinator answers: it is asked again while time allows.
    #[error("no coordinator answers: {detail}")]
    Unavailable {
        /// What happened.
        detail: String,
    },
    /// It refuses the question: asking again is of no use.
    #[error("the coordinator refuses: {detail}")]
    Refused {
        /// Why.
        detail: String,
    },
}

/// Knows who holds the pull's blocks.
pub trait Locate: Send + Sync + 'static {
    /// Asks for these blocks: the answer is in their order, and what it is too short for is asked for
    /// again. May be dropped at any time.
    fn locate<'a>(
        &'a self,
        blocks: &'a [BlockIndex],
    ) -> BoxFuture<'a, Result<Located, LocateError>>;
}

/// Has links to owners, and remembers which did not answer.
pub trait Connect: Send + Sync + 'static {
    /// A link that is not lost: one that is open already, or a new one. May be dropped at any time.
    fn link<'a>(
        &'a self,
        peer: &'a PeerTarget,
    ) -> BoxFuture<'a, Result<Arc<dyn Link>, ConnectError>>;

    /// A link that is open already, at no cost.
    fn open_link(&self, _peer: &PeerTarget) -> Option<Arc<dyn Link>> {
        None
    }

    /// This owner stood still or could not be reached: other pulls should prefer others.
    fn suspect(&self, peer: &PeerTarget);

    /// Bytes that came over this link were not what was sealed: it must not be given out again.
    fn distrust(&self, peer: &PeerTarget, link: &Arc<dyn Link>);

    /// It is suspected now.
    fn is_suspect(&self, peer: &PeerTarget) -> bool;

    /// As [`Capabilities::distance`](crate::transport::Capabilities), as far as the addresses tell.
    fn distance(&self, peer: &PeerTarget) -> u8;
}

/// There is no room for a block: every slot is pinned or reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("every slot is pinned or reserved; release some, or give the pool more memory")]
pub struct NoSpace;

/// A block could not be sealed: its region is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the destination cannot be sealed: {detail}")]
pub struct LandError {
    /// Why.
    pub detail: &'static str,
}

/// Where blocks go. Calls are short and do not wait; per block: `prepare`, then `verify` any number
/// of times, then either `land` or `abandon` (both, where `land` fails).
pub trait Landing: Send + Sync + 'static {
    /// Where a block lies now.
    type Landed: Send + 'static;

    /// Reserves a place; its generation is odd from then on.
    ///
    /// # Errors
    /// [`NoSpace`].
    fn prepare(&self, block: BlockIndex) -> Result<Destination, NoSpace>;

    /// Have the destination's bytes this checksum? Called on a blocking thread when they are many.
    fn verify(&self, block: BlockIndex, destination: &Destination, checksum: Checksum) -> bool;

    /// Seals the block and publishes it as is wanted.
    ///
    /// # Errors
    /// [`LandError`]; the block is abandoned then.
    fn land(
        &self,
        block: BlockIndex,
        checksum: Option<Checksum>,
    ) -> Result<Self::Landed, LandError>;

    /// Seals some blocks, as [`Landing::land`] does each: one answer per block, in their order.
    fn land_many(
        &self,
        blocks: &[(BlockIndex, Option<Checksum>)],
    ) -> Vec<Result<Self::Landed, LandError>> {
        let each = blocks.iter();
        each.map(|(block, checksum)| self.land(*block, *checksum))
            .collect()
    }

    /// Takes the place back: nothing writes to it any more. May come long after the pull's deadline.
    fn abandon(&self, block: BlockIndex);

    /// Where the pull's blocks are parts of owners' blocks: which bytes the parts are. Empty: they are whole blocks.
    fn parts(&self) -> &[Range<u64>] {
        &[]
    }

    /// Which of [`Landing::parts`] a block is.
    fn part(&self, _block: BlockIndex) -> usize {
        0
    }

    /// This block was not brought: blocks that are of no use without it, and are given up.
    fn in_vain(&self, _block: BlockIndex) -> Vec<BlockIndex> {
        Vec::new()
    }
}

/// What became of one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockOutcome<L> {
    /// Which.
    pub block: BlockIndex,
    /// What.
    pub outcome: Outcome,
    /// Where it lies; for pulled blocks.
    pub landed: Option<L>,
    /// Who gave it, or failed last.
    pub node: Option<NodeId>,
    /// How that node was reached, if it was.
    pub transport: Option<TransportKind>,
    /// What happened, for people; empty on success.
    pub detail: String,
}

/// Where a pull's time went. Parts overlap, and do not add up to the total.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PullSummary {
    /// Blocks pulled.
    pub pulled: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Until the first locate was answered.
    pub locate: Duration,
    /// From the first connect until there was a link.
    pub connect: Duration,
    /// From the start of the first read until the last one settled.
    pub wire: Duration,
    /// From the call until the last outcome.
    pub total: Duration,
}

/// The pull ended without all its outcomes: the runtime stops, or the pull panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the pull was aborted; what became of its blocks is unknown")]
pub struct Aborted;

/// What a pull works with.
#[derive(Debug)]
pub struct Parts<L, C, D> {
    /// Who holds what.
    pub locate: Arc<L>,
    /// How to reach them.
    pub connect: Arc<C>,
    /// Where blocks go.
    pub landing: Arc<D>,
    /// What is counted, over all pulls.
    pub metrics: Arc<TransferMetrics>,
}

/// Pulls. Sends one outcome per block to `outcomes`, in batches as they come (and one without any where the pull takes
/// longer than [`TransferConfig::progress_tick`]), and returns after the
/// last one, by the request's timeout. (The channel has no bound of its own: it never holds more than
/// one outcome per block.)
///
/// Dropping the future, or the other end of `outcomes`, cancels the pull. Reads that have not settled
/// by the end are waited for in the background, and their destinations abandoned then.
///
/// # Errors
/// [`Aborted`].
pub async fn pull<L: Locate, C: Connect, D: Landing>(
    parts: Parts<L, C, D>,
    config: TransferConfig,
    request: PullRequest,
    outcomes: mpsc::UnboundedSender<Vec<BlockOutcome<D::Landed>>>,
) -> Result<PullSummary, Aborted> {
    let (summary, summed) = oneshot::channel();
    let cancel = CancellationToken::new();
    let _dropped = cancel.clone().drop_guard();
    let run = run::Run::new(parts, config, request, outcomes);
    tokio::spawn(run.drive(cancel, summary).in_current_span());
    summed.await.map_err(|_| Aborted)
}
