//! Delivery in stages: what a request may ask for, and how far a pull is.

use std::{ops::Range, sync::Arc};

use kvferry_proto::{Layout, Reason, refusal};
use tonic::{Code, Status};

/// Most stages times blocks of one pull. Each is a part with books of its own, some 300 bytes: 40 MB, for 1,600 blocks of 80
/// layers; an engine that has more takes several layers into a stage.
const MAX_PARTS: usize = 131_072;

/// The stages of one pull: which of a block's bytes come first, second, ...
#[derive(Debug, Clone)]
pub(in super::super) struct Stages(Arc<[Range<u64>]>);

impl Stages {
    /// Of numbers of planes, for so many blocks; None where all is to come at once.
    #[allow(clippy::result_large_err)] // tonic's signature
    pub(super) fn parse(
        planes: &[u32],
        layout: &Layout,
        blocks: usize,
        into_pool: bool,
    ) -> Result<Option<Self>, Status> {
        if planes.is_empty() {
            return Ok(None);
        }
        let invalid = |text| {
            Err(refusal(
                Code::InvalidArgument,
                Reason::InvalidArgument,
                text,
            ))
        };
        if into_pool {
            return invalid(
                "stages are for slots of an engine's region: which slot of a pool a block gets is not known before its end"
                    .to_owned(),
            );
        }
        let (count, sum) = planes.iter().fold((0usize, 0u64), |(count, sum), planes| {
            (count + 1, sum + u64::from(*planes))
        });
        let want = u64::from(layout.plane_count());
        if planes.contains(&0) || sum != want {
            return invalid(format!(
                "stages are numbers of planes, each at least 1, together the layout's {want}: got {count}, together {sum}"
            ));
        }
        if count.saturating_mul(blocks) > MAX_PARTS {
            return Err(refusal(
                Code::ResourceExhausted,
                Reason::BoundReached,
                format!(
                    "{count} stages of {blocks} blocks; at most {MAX_PARTS} of one times the other are allowed: take more planes into a stage"
                ),
            ));
        }
        let mut end = 0;
        let ranges = planes.iter().map(|planes| {
            let start = end;
            end += u64::from(*planes) * layout.plane_bytes();
            start..end
        });
        Ok(Some(Self(ranges.collect())))
    }

    /// How many.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Which bytes.
    pub(super) fn ranges(&self) -> Arc<[Range<u64>]> {
        Arc::clone(&self.0)
    }
}

/// Which stages of which blocks have landed.
pub(super) struct StageBook {
    stages: usize,
    /// Block by block.
    landed: Vec<bool>,
    /// Per stage: blocks without an outcome that lack it.
    lacking: Vec<usize>,
    /// All stages before this one have landed.
    first: usize,
}

impl StageBook {
    pub(super) fn new(stages: usize, blocks: usize) -> Self {
        Self {
            stages,
            landed: vec![false; stages.saturating_mul(blocks)],
            lacking: vec![blocks; stages],
            // Of no blocks there is nothing to wait for.
            first: if blocks == 0 { stages } else { 0 },
        }
    }

    /// A stage of a block has landed.
    pub(super) fn land(&mut self, block: usize, stage: usize) {
        if stage >= self.stages {
            return;
        }
        if let Some(landed) = self.landed.get_mut(block * self.stages + stage)
            && !std::mem::replace(landed, true)
        {
            self.lacking[stage] -= 1;
            self.advance();
        }
    }

    /// A block has its outcome, whatever it is: nobody waits for its stages.
    pub(super) fn end(&mut self, block: usize) {
        (0..self.stages).for_each(|stage| self.land(block, stage));
    }

    fn advance(&mut self) {
        while self.lacking.get(self.first) == Some(&0) {
            self.first += 1;
        }
    }

    /// As [`PullEvent.stages_landed`](kvferry_proto::pb::PullEvent::stages_landed).
    pub(super) fn told(&self) -> u32 {
        self.first as u32 // at most MAX_PARTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout::new("u8", 16, 6, 8).unwrap()
    }

    #[test]
    fn stages_are_ranges_of_a_blocks_bytes() {
        let stages = Stages::parse(&[1, 3, 2], &layout(), 4, false).unwrap();
        assert_eq!(stages.unwrap().ranges().to_vec(), [0..8, 8..32, 32..48]);
        assert!(Stages::parse(&[], &layout(), 4, true).unwrap().is_none());
    }

    #[test]
    fn what_cannot_be_is_refused_and_the_text_says_what_can() {
        let refused = |planes: &[u32], blocks, pool| {
            let status = Stages::parse(planes, &layout(), blocks, pool).unwrap_err();
            (status.code(), status.message().to_owned())
        };
        for planes in [&[1, 2][..], &[6, 1], &[0, 6], &[u32::MAX; 6]] {
            let (code, text) = refused(planes, 1, false);
            assert_eq!(code, Code::InvalidArgument);
            assert!(text.contains("together the layout's 6"), "{text}");
        }
        let (code, text) = refused(&[6], 1, true);
        assert_eq!(code, Code::InvalidArgument);
        assert!(text.contains("an engine's region"), "{text}");
        let (code, text) = refused(&[1; 6], MAX_PARTS / 6 + 1, false);
        assert_eq!(code, Code::ResourceExhausted);
        assert!(text.contains("131072"), "{text}");
        assert!(Stages::parse(&[1; 6], &layout(), MAX_PARTS / 6, false).is_ok());
    }

    #[test]
    fn a_stage_is_told_when_no_block_without_an_outcome_lacks_it() {
        let mut book = StageBook::new(3, 2);
        book.land(0, 1);
        book.land(0, 0);
        assert_eq!(book.told(), 0);
        // Twice is once, and what is not there is nothing.
        book.land(0, 0);
        book.land(7, 0);
        book.land(0, 3);
        assert_eq!(book.told(), 0);
        book.land(1, 0);
        assert_eq!(book.told(), 1);
        // It failed: the other one's second stage has come long ago.
        book.end(1);
        assert_eq!(book.told(), 2);
        book.end(1);
        book.end(0);
        assert_eq!(book.told(), 3);
        assert_eq!(StageBook::new(3, 0).told(), 3);
    }
}
