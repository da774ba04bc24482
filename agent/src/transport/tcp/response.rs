//! One response on its way out.

use std::{io, sync::Arc};

use kvferry_cuda::StagingError;
use kvferry_memory::{AccessError, MAX_PIECES, Piece};
use kvferry_proto::{Part, RegionId, RemoteSpan};

use super::{frame::ResponseHead, gpu::GpuRun};
use crate::{region::Region, transport::spans::WORD_BYTES};

/// Generation words loaded at a time; fits the first level cache.
const STAGED_BYTES: usize = 8 << 10;
/// Payload offered to the kernel in one call: more than a send buffer holds, so that a call is never
/// shorter than it could be, and not so much that pieces are listed in vain.
const OFFERED_BYTES: u64 = 8 << 20;

/// The head, then spans in order. Data is sent from the region's memory, a GPU's by way of pinned memory; generation
/// words are loaded one by one, so that none is torn, only when everything before them was handed to the kernel. It
/// has copied that by then (nothing is sent with MSG_ZEROCOPY): words validate the data before them in the same response.
pub(super) struct Response<'a> {
    /// The head, later generation words.
    staged: Vec<u8>,
    staged_sent: usize,
    spans: &'a [(Arc<Region>, RemoteSpan)],
    /// The first span that is neither sent nor staged in full.
    next: usize,
    /// Bytes of it that are.
    within: u64,
    /// The spans from `next` on, where they are of a GPU and were begun.
    gpu: Option<GpuRun>,
    /// The span behind them.
    gpu_end: usize,
}

impl<'a> Response<'a> {
    /// `gpu`: of the first spans, where they are of a GPU.
    pub(super) fn new(
        head: ResponseHead,
        spans: &'a [(Arc<Region>, RemoteSpan)],
        gpu: Option<GpuRun>,
    ) -> Self {
        Self {
            staged: head.encode().to_vec(),
            staged_sent: 0,
            spans,
            next: 0,
            within: 0,
            gpu_end: gpu.as_ref().map_or(0, GpuRun::spans),
            gpu,
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

    /// Waits for bytes out of a GPU, if they come next. Only when what comes before them is on its way.
    pub(super) async fn fetch(&mut self) -> Result<(), StagingError> {
        if self.staged_sent < self.staged.len() {
            return Ok(());
        }
        if self.gpu.is_none() {
            self.gpu = GpuRun::begin(&self.spans[self.next..]).transpose()?;
            self.gpu_end = self.next + self.gpu.as_ref().map_or(0, GpuRun::spans);
        }
        if let Some(gpu) = &mut self.gpu {
            gpu.ready().await?;
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
        if let Some(gpu) = &self.gpu {
            // Said only where it is so: the kernel waits for what is said to follow.
            let more = gpu.goes_on() || self.gpu_end < self.spans.len();
            if let Some(piece) = gpu.piece() {
                pieces.push(piece.map_err(|_| io::ErrorKind::InvalidInput)?);
            }
            return Ok((pieces, more));
        }
        let (mut taken, mut offered, mut within) = (0, 0, self.within);
        for (region, span) in rest {
            if span.part != Part::Data || pieces.len() == MAX_PIECES || offered >= OFFERED_BYTES {
                break;
            }
            // What is a GPU's comes later.
            let Some(memory) = region.memory.host() else {
                break;
            };
            let len = span.len - within;
            let piece = Piece::new(memory, span.offset + within, len)
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
        if let Some(gpu) = &mut self.gpu {
            gpu.advance(rest);
        }
        while rest > 0
            && let Some((_, span)) = self.spans.get(self.next)
        {
            let step = rest.min(span.len - self.within);
            self.skip(step);
            rest -= step;
        }
    }

    /// Copies what comes next into a record, and counts it as taken. Ends where the record does, and before what must be
    /// staged or fetched first.
    pub(super) fn copy(&mut self, record: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < record.len() {
            let room = &mut record[filled..];
            let staged = &self.staged[self.staged_sent..];
            let copied = if !staged.is_empty() {
                let len = staged.len().min(room.len());
                room[..len].copy_from_slice(&staged[..len]);
                len
            } else if let Some(gpu) = &self.gpu {
                gpu.copy(room).map_err(|error| unreadable(&error))?
            } else {
                self.copy_data(room).map_err(|error| unreadable(&error))?
            };
            if copied == 0 {
                break;
            }
            self.advance(copied as u64);
            filled += copied;
        }
        Ok(filled)
    }

    /// Copies of the span that comes next, where it is of host memory.
    fn copy_data(&self, room: &mut [u8]) -> Result<usize, AccessError> {
        let next = self.spans.get(self.next);
        let next = next.filter(|(_, span)| span.part == Part::Data);
        let Some((memory, span)) =
            next.and_then(|(region, span)| Some((region.memory.host()?, span)))
        else {
            return Ok(0);
        };
        let len = (span.len - self.within).min(room.len() as u64) as usize;
        memory.read_at(span.offset + self.within, &mut room[..len])?;
        Ok(len)
    }

    /// It holds staging memory of a GPU.
    pub(super) fn holds_gpu_buffers(&self) -> bool {
        self.gpu.is_some()
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
            let run_is_over = |run: &mut GpuRun| run.is_over();
            drop(self.gpu.take_if(run_is_over));
        }
    }
}

/// As the kernel would have put it.
fn unreadable(error: &AccessError) -> io::Error {
    match error {
        AccessError::Gone(_) => rustix::io::Errno::FAULT.into(),
        _ => io::ErrorKind::InvalidInput.into(),
    }
}
