//! Parts of blocks, as the driver of a pull sees blocks.

use std::{ops::Range, sync::Arc};

use kvferry_proto::Checksum;
use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::{
    coordinators::{Located, LocatedCandidate},
    transfer::{
        command::BlockIndex,
        driver::{LandError, Landing, Locate, LocateError, NoSpace},
        plan::Destination,
    },
    transport::BoxFuture,
};

/// Part `n` is of block `n % blocks`, and of stage `n / blocks`.
fn block_of(part: BlockIndex, blocks: u32) -> BlockIndex {
    part % blocks.max(1)
}

/// Owners of parts: those of their blocks, asked for once however many parts are.
pub(super) struct PieceLocate<L> {
    pub(super) whole: Arc<L>,
    blocks: u32,
}

impl<L> PieceLocate<L> {
    pub(super) fn new(whole: Arc<L>, blocks: u32) -> Self {
        Self { whole, blocks }
    }
}

impl<L: Locate> Locate for PieceLocate<L> {
    fn locate<'a>(
        &'a self,
        parts: &'a [BlockIndex],
    ) -> BoxFuture<'a, Result<Located, LocateError>> {
        Box::pin(async move {
            // In order of the parts, so that an answer that is too short answers for the first of them.
            let (mut blocks, mut places) = (Vec::new(), vec![None; self.blocks as usize]);
            for part in parts {
                let block = block_of(*part, self.blocks);
                if let Some(place @ None) = places.get_mut(block as usize) {
                    *place = Some(blocks.len());
                    blocks.push(block);
                }
            }
            let located = self.whole.locate(&blocks).await?;
            let place = |part: &BlockIndex| {
                let block = block_of(*part, self.blocks) as usize;
                places.get(block).copied().flatten()
            };
            let answered = parts
                .iter()
                .map_while(|part| place(part).filter(|place| *place < located.len()));
            // A checksum is of a whole block.
            let bare = |candidate: &LocatedCandidate| LocatedCandidate {
                checksum: None,
                ..*candidate
            };
            let candidates =
                answered.map(|place| located.candidates(place).iter().map(bare).collect());
            let candidates: Vec<_> = candidates.collect();
            Ok(Located::new(located.owners, candidates))
        })
    }
}

/// Where one block stands.
#[derive(Default)]
struct Book {
    /// Of each stage, while the block has a place that is ours.
    destinations: Vec<Destination>,
    /// Parts that have a destination and have not ended: something may write there.
    open: u32,
    landed: usize,
    /// No part gets a destination any more.
    failed: bool,
    /// Its other parts were given up.
    given_up: bool,
}

impl Book {
    /// True once, when a block that failed can be written to by nothing any more: its place is to be given back. A part
    /// may write from its `prepare` until it has landed or was abandoned, and when the block has failed no other begins to.
    fn is_over(&mut self) -> bool {
        let over = self.failed && self.open == 0 && !self.destinations.is_empty();
        if over {
            self.destinations = Vec::new();
        }
        over
    }
}

/// A place for parts: of each block one place, which is prepared with its first part, lands with its last, and is given
/// back when the last read into it has settled.
pub(super) struct Pieces<D> {
    whole: Arc<D>,
    blocks: u32,
    stages: Arc<[Range<u64>]>,
    books: Mutex<Vec<Book>>,
}

impl<D: Landing> Pieces<D> {
    pub(super) fn new(whole: Arc<D>, blocks: u32, stages: Arc<[Range<u64>]>) -> Self {
        Self {
            whole,
            blocks,
            stages,
            books: Mutex::new((0..blocks).map(|_| Book::default()).collect()),
        }
    }

    fn block_of(&self, part: BlockIndex) -> BlockIndex {
        block_of(part, self.blocks)
    }

    /// Does something with a block's book; gives the block's place back where that was the last of it.
    fn with<T>(&self, part: BlockIndex, change: impl FnOnce(&mut Book) -> T) -> Option<T> {
        let block = self.block_of(part);
        let (answer, over) = {
            let mut books = self.books.lock();
            let book = books.get_mut(block as usize)?;
            (change(book), book.is_over())
        };
        if over {
            self.whole.abandon(block);
        }
        Some(answer)
    }
}

impl<D: Landing> Landing for Pieces<D> {
    /// The block's, with its last part.
    type Landed = Option<D::Landed>;

    fn prepare(&self, part: BlockIndex) -> Result<Destination, NoSpace> {
        let (block, stage) = (self.block_of(part), self.part(part));
        let prepared = self.with(part, |book| {
            if book.failed {
                return None;
            }
            if book.destinations.is_empty() {
                match self.whole.prepare(block) {
                    Ok(place) => book.destinations = cut(&place, &self.stages),
                    Err(NoSpace) => book.failed = true,
                }
            }
            let destination = book.destinations.get(stage)?.clone();
            book.open += 1;
            Some(destination)
        });
        prepared.flatten().ok_or(NoSpace)
    }

    /// Not asked for: no part has a checksum.
    fn verify(&self, _: BlockIndex, _: &Destination, _: Checksum) -> bool {
        false
    }

    fn land(
        &self,
        part: BlockIndex,
        checksum: Option<Checksum>,
    ) -> Result<Self::Landed, LandError> {
        let mut landed = self.land_many(&[(part, checksum)]);
        landed.pop().unwrap_or(Ok(None))
    }

    fn land_many(
        &self,
        parts: &[(BlockIndex, Option<Checksum>)],
    ) -> Vec<Result<Self::Landed, LandError>> {
        // The last part of a block stays open until the block has landed: where that fails it is abandoned.
        let last: Vec<bool> = parts
            .iter()
            .map(|(part, _)| {
                let land = |book: &mut Book| {
                    let last = !book.failed && book.landed + 1 == self.stages.len();
                    if !last {
                        book.landed += 1;
                        book.open = book.open.saturating_sub(1);
                    }
                    last
                };
                self.with(*part, land).unwrap_or(false)
            })
            .collect();
        let whole: Vec<_> = parts
            .iter()
            .zip(&last)
            .filter(|(_, last)| **last)
            .map(|((part, _), _)| (self.block_of(*part), None))
            .collect();
        let mut landed = match whole.is_empty() {
            true => Vec::new(),
            false => self.whole.land_many(&whole),
        }
        .into_iter();
        let answers = parts.iter().zip(last).map(|((part, _), last)| {
            if !last {
                return Ok(None);
            }
            let held = landed.next().unwrap_or(Err(LandError {
                detail: "nobody said whether it was sealed",
            }))?;
            self.with(*part, |book| {
                book.destinations = Vec::new();
                book.landed += 1;
                book.open = book.open.saturating_sub(1);
            });
            Ok(Some(held))
        });
        answers.collect()
    }

    fn abandon(&self, part: BlockIndex) {
        self.with(part, |book| {
            book.open = book.open.saturating_sub(1);
            book.failed = true;
        });
    }

    fn parts(&self) -> &[Range<u64>] {
        &self.stages
    }

    fn part(&self, block: BlockIndex) -> usize {
        (block / self.blocks.max(1)) as usize
    }

    fn in_vain(&self, part: BlockIndex) -> Vec<BlockIndex> {
        let first = self.with(part, |book| {
            book.failed = true;
            !std::mem::replace(&mut book.given_up, true)
        });
        if first != Some(true) {
            return Vec::new();
        }
        let block = self.block_of(part);
        let stages = 0..u32::try_from(self.stages.len()).unwrap_or(u32::MAX);
        let all = stages.map(|stage| stage.saturating_mul(self.blocks).saturating_add(block));
        all.filter(|other| *other != part).collect()
    }
}

/// Where each stage's bytes of a block go. Stages follow each other.
fn cut(place: &Destination, stages: &[Range<u64>]) -> Vec<Destination> {
    let mut ranges = place.ranges.iter().cloned();
    let mut left = 0..0;
    let mut cut = Vec::with_capacity(stages.len());
    for stage in stages {
        let (mut want, mut part) = (stage.end.saturating_sub(stage.start), SmallVec::new());
        while want > 0 {
            if left.is_empty() {
                match ranges.next() {
                    Some(next) => left = next,
                    // Shorter than the owner's part: the plan refuses it.
                    None => break,
                }
                continue;
            }
            let len = want.min(left.end - left.start);
            part.push(left.start..left.start + len);
            left.start += len;
            want -= len;
        }
        cut.push(Destination {
            memory: place.memory.clone(),
            ranges: part,
        });
    }
    cut
}
