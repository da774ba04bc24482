//! Blocks that come in stages: their first bytes before anything else of any block.
//!
//! The pull engine is left as it is. What it is told to pull are parts of blocks, numbered stage by stage, and it reads the
//! lowest numbers first: so the stages come in order, their reads overlap as any do, and the wire never rests between them.
//! Each part is validated by itself: its bytes have arrived, and then the owner's word is the one that was located. So each
//! stage holds what the block holds, whichever owners its parts came from. [`Parts`] of the caller see whole blocks only:
//! one `prepare`, and then one `land` or one `abandon` ([`pieces`]).

mod ending;
mod pieces;

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, ops::Range, sync::Arc, time::Duration};

use kvferry_proto::NodeId;
use tokio::sync::mpsc;

use self::{
    ending::Endings,
    pieces::{PieceLocate, Pieces},
};
use super::{
    command::BlockIndex,
    config::TransferConfig,
    driver::{self, Aborted, BlockOutcome, Connect, Landing, Locate, Parts, PullSummary},
    engine::PullRequest,
    outcome::Outcome,
};

/// What is to be pulled in stages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedRequest {
    /// How many blocks; as in [`PullRequest`].
    pub blocks: u32,
    /// Which of a block's bytes each stage brings, in order; they follow each other.
    pub stages: Arc<[Range<u64>]>,
    /// From now on; every outcome is given by then.
    pub timeout: Duration,
}

/// What is told of a pull in stages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageEvent<L> {
    /// These bytes of a block are in its destination, and are the block's. It may still fail. A stage may come before an
    /// earlier one of its block, from another owner say.
    Landed {
        /// Which block.
        block: BlockIndex,
        /// Which of the request's stages.
        stage: usize,
        /// Who gave them.
        node: Option<NodeId>,
    },
    /// The block's outcome. Nothing follows of this block.
    Ended(BlockOutcome<L>),
}

impl<L> StageEvent<L> {
    fn is_pulled(&self) -> bool {
        matches!(self, Self::Ended(it) if it.outcome == Outcome::Pulled)
    }
}

/// As [`pull`](super::pull), in stages. Checksums are of whole blocks and are not compared: blocks that must be verified are
/// for `pull`. A block's outcome is given when all its parts have ended; it is unsettled if one of them is.
///
/// # Errors
/// [`Aborted`].
pub async fn pull_in_stages<L: Locate, C: Connect, D: Landing>(
    parts: Parts<L, C, D>,
    config: TransferConfig,
    request: StagedRequest,
    events: mpsc::UnboundedSender<Vec<StageEvent<D::Landed>>>,
) -> Result<PullSummary, Aborted> {
    let StagedRequest {
        blocks,
        stages,
        timeout,
    } = request;
    let count = u32::try_from(stages.len()).unwrap_or(u32::MAX);
    let length = |range: &Range<u64>| range.end.saturating_sub(range.start);
    let all = PullRequest {
        blocks: blocks.saturating_mul(count),
        must_verify: BTreeSet::new(),
        // Windows are filled as if all were as long.
        block_bytes: stages.iter().map(length).max().unwrap_or_default(),
        timeout,
    };
    let config = TransferConfig {
        // All parts of a block are asked for in one question, of as many blocks as one may have.
        locate_blocks: all.blocks as usize,
        // Who waits for a stage does not wait for the next one.
        group_blocks: blocks,
        ..config
    };
    let parts = Parts {
        locate: Arc::new(PieceLocate::new(parts.locate, blocks)),
        connect: parts.connect,
        landing: Arc::new(Pieces::new(parts.landing, blocks, Arc::clone(&stages))),
        metrics: parts.metrics,
    };
    let (sender, mut outcomes) = mpsc::unbounded_channel();
    let pull = driver::pull(parts, config, all, sender);
    let tell = async move {
        let mut endings = Endings::new(blocks, count);
        let mut pulled = 0;
        loop {
            let batch = tokio::select! {
                batch = outcomes.recv() => batch,
                // Ends the pull, too.
                () = events.closed() => None,
            };
            let Some(batch) = batch else {
                return pulled;
            };
            let under_way = batch.is_empty();
            let told: Vec<_> = batch.into_iter().flat_map(|it| endings.add(it)).collect();
            pulled += told.iter().filter(|it| it.is_pulled()).count() as u64;
            if under_way || !told.is_empty() {
                let _ = events.send(told);
            }
        }
    };
    let (summary, pulled) = tokio::join!(pull, tell);
    let block_bytes: u64 = stages.iter().map(length).sum();
    Ok(PullSummary {
        pulled,
        bytes: pulled.saturating_mul(block_bytes),
        ..summary?
    })
}
