//! From what became of parts to what became of blocks.

use smallvec::SmallVec;

use super::StageEvent;
use crate::transfer::{command::BlockIndex, driver::BlockOutcome, outcome::Outcome};

/// What is known of one block so far.
struct Ending<L> {
    /// Parts without an outcome.
    open: u32,
    /// Why it is not brought: the first failure, or one that may still write to it.
    failed: Option<BlockOutcome<Option<L>>>,
}

/// The outcomes of a pull's blocks, as those of their parts come.
pub(super) struct Endings<L> {
    blocks: Vec<Ending<L>>,
}

impl<L> Endings<L> {
    pub(super) fn new(blocks: u32, stages: u32) -> Self {
        let none = || Ending {
            open: stages,
            failed: None,
        };
        Self {
            blocks: (0..blocks).map(|_| none()).collect(),
        }
    }

    /// A part's outcome; nothing is told of parts whose block has failed, until the last has ended.
    pub(super) fn add(&mut self, part: BlockOutcome<Option<L>>) -> SmallVec<[StageEvent<L>; 2]> {
        let mut told = SmallVec::new();
        let count = self.blocks.len().max(1);
        let (block, stage) = (part.block as usize % count, part.block as usize / count);
        let Some(book) = self.blocks.get_mut(block) else {
            return told;
        };
        book.open = book.open.saturating_sub(1);
        let block = block as BlockIndex; // below the request's count
        let mut part = BlockOutcome { block, ..part };
        if part.outcome != Outcome::Pulled {
            let first = book.failed.is_none();
            if first || !part.outcome.is_settled() {
                book.failed = Some(part);
            }
        } else if book.failed.is_none() {
            told.push(StageEvent::Landed {
                block,
                stage,
                node: part.node.clone(),
            });
            if book.open == 0 {
                // The last part to land is the one that the block landed with.
                let landed = part.landed.take().flatten();
                told.push(StageEvent::Ended(whole(part, landed)));
            }
        }
        if book.open == 0
            && let Some(failed) = book.failed.take()
        {
            told.push(StageEvent::Ended(whole(failed, None)));
        }
        told
    }
}

fn whole<L>(part: BlockOutcome<Option<L>>, landed: Option<L>) -> BlockOutcome<L> {
    BlockOutcome {
        block: part.block,
        outcome: part.outcome,
        landed,
        node: part.node,
        transport: part.transport,
        detail: part.detail,
    }
}
