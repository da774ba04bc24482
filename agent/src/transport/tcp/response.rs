//! One response on its way out.

use std::{io, sync::Arc};

use kvferry_memory::{MAX_PIECES, Piece};
use kvferry_proto::{Part, RegionId, RemoteSpan};

use super::frame::ResponseHead;
use crate::{region::Region, transport::spans::WORD_BYTES};

/// Generation words loaded at a time; fits the first level cache.
const STAGED_BYTES: usize = 8 << 10;
/// Payload offered to the kernel in one call: more than a send buffer holds, so that a call is never
/// shorter than it could be, and not so much that pieces are listed in vain.
const OFFERED_BYTES: u64 = 8 << 20;

/// The head, then spans in order. Data is sent from the region's memory; generation words are loaded one
/// by one, so that none is torn, only when everything before them was handed to the kernel.
pub(super) struct Response<'a> {
    /// The head, later generation words.
    staged: Vec<u8>,
    staged_sent: usize,
    spans: &'a [(Arc<Region>, RemoteSpan)],
    /// The first span that is neither sent nor staged in full.
    next: usize,
    /// Bytes of it that are.
    within: u64,
}

impl<'a> Response<'a> {
    pub(super) fn new(head: ResponseHead, spans: &'a [(Arc<Region>, RemoteSpan)]) -> Self {
        Self {
            staged: head.encode().to_vec(),
            staged_sent: 0,
            spans,
            next: 0,
            within: 0,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.staged_sent == self.staged.len() && self.next == self.spans.len()
    }

    /// Loads generation words, if they come next.
    pub(super) fn stage(&mut self) -> io::Result<()> {
        if self.staged_sent == self.staged.len() {
            self.staged.clear();
            self.staged_sent = 0;
        }
        while let Some((region, span)) = self.spans.get(self.next)
            && span.part == Part::Generations
            && self.staged.len() + WORD_BYTES as usize <= STAGED_BYTES
        {
            let slot = (span.offset + self.within) / WORD_BYTES;
            let word = u32::try_from(slot)
                .ok()
                .and_then(|slot| region.generations.load(slot))
                // The span was found to be inside the table.
                .ok_or(io::ErrorKind::InvalidInput)?;
            self.staged.extend_from_slice(&word.to_le_bytes());
            self.skip(WORD_BYTES);
        }
        Ok(())
    }

    /// What to send now, and whether something is left for another call.
    pub(super) fn pieces(&self) -> io::Result<(Vec<Piece<'_>>, bool)> {
        let rest = &self.spans[self.next..];
        let mut pieces = Vec::with_capacity((rest.len() + 1).min(MAX_PIECES));
        if self.staged_sent < self.staged.len() {
            pieces.push(Piece::of_bytes(&self.staged[self.staged_sent..]));
        }
        let (mut taken, mut offered, mut within) = (0, 0, self.within);
        for (region, span) in rest {
            if span.part != Part::Data || pieces.len() == MAX_PIECES || offered >= OFFERED_BYTES {
                break;
            }
            let len = span.len - within;
            let piece = Piece::new(&region.memory, span.offset + within, len)
                .map_err(|_| io::ErrorKind::InvalidInput)?;
            pieces.push(piece);
            offered += len;
            taken += 1;
            within = 0;
        }
        Ok((pieces, taken < rest.len()))
    }

    /// The kernel took that many bytes of what [`Response::pieces`] gave.
    pub(super) fn advance(&mut self, bytes: u64) {
        let staged = (self.staged.len() - self.staged_sent) as u64;
        let of_staged = bytes.min(staged);
        self.staged_sent += of_staged as usize;
        let mut rest = bytes - of_staged;
        while rest > 0
            && let Some((_, span)) = self.spans.get(self.next)
        {
            let step = rest.min(span.len - self.within);
            self.skip(step);
            rest -= step;
        }
    }

    /// Whose memory comes next.
    pub(super) fn region(&self) -> Option<RegionId> {
        self.spans.get(self.next).map(|(region, _)| region.id)
    }

    fn skip(&mut self, bytes: u64) {
        self.within += bytes;
        if let Some((_, span)) = self.spans.get(self.next)
            && self.within >= span.len
        {
            (self.next, self.within) = (self.next + 1, 0);
        }
    }
}
