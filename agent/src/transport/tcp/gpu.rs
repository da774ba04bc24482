//! A response's bytes out of a GPU, on their way through pinned memory.

use std::{
    ops::Range,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use kvferry_cuda::{Chunk, Outbound, StagingError};
use kvferry_memory::{AccessError, Piece};
use kvferry_proto::{Part, RemoteSpan};

use crate::{
    gpu::{GpuMemory, StagedWay},
    region::Region,
};

/// Longest wait for a chunk, or for a buffer to copy it to: a thousand times what its copy takes. A GPU that takes
/// longer hangs, or its ring is held by readers that take nothing; the reader is better off elsewhere.
const CHUNK_BOUND: Duration = Duration::from_secs(5);

/// Neighbouring spans of one GPU's memory. Copies run ahead of the socket.
pub(super) struct GpuRun {
    memory: Arc<GpuMemory>,
    /// How many.
    spans: usize,
    outbound: Outbound,
    chunk: Option<Chunk>,
    /// Bytes of the chunk that the kernel has taken.
    sent: u64,
}

impl GpuRun {
    /// Of the spans in front; None where they are not of a GPU. Nothing is copied yet.
    pub(super) fn begin(spans: &[(Arc<Region>, RemoteSpan)]) -> Option<Result<Self, StagingError>> {
        let memory = spans.first().and_then(memory_of)?;
        let same = |part: &&(Arc<Region>, RemoteSpan)| {
            memory_of(part).is_some_and(|other| Arc::ptr_eq(other, memory))
        };
        let ranges: Vec<Range<u64>> = spans
            .iter()
            .take_while(same)
            .map(|(_, span)| span.offset..span.offset + span.len)
            .collect();
        let count = ranges.len();
        let outbound = memory.gpu().serve().read(memory.device_memory(), ranges);
        Some(outbound.map(|outbound| Self {
            memory: Arc::clone(memory),
            spans: count,
            outbound,
            chunk: None,
            sent: 0,
        }))
    }

    /// Waits until bytes are here to send. False at the end.
    pub(super) async fn ready(&mut self) -> Result<bool, StagingError> {
        if self.chunk.is_some() {
            return Ok(true);
        }
        let begun = Instant::now();
        loop {
            match self.outbound.poll_next()? {
                Poll::Ready(chunk) => {
                    if let Some(range) = chunk.as_ref().map(Chunk::range) {
                        let bytes = range.end - range.start;
                        self.memory.gpu().count(StagedWay::Serve, bytes);
                    }
                    self.chunk = chunk;
                    self.sent = 0;
                    return Ok(self.chunk.is_some());
                }
                Poll::Pending if begun.elapsed() >= CHUNK_BOUND => {
                    let buffers = self.memory.gpu().serve().options().buffers;
                    return Err(StagingError::NoBuffer { buffers });
                }
                Poll::Pending => self.memory.gpu().ticker().pause(begun).await,
            }
        }
    }

    /// The bytes that are here.
    pub(super) fn piece(&self) -> Option<Result<Piece<'_>, AccessError>> {
        let chunk = self.chunk.as_ref()?;
        let range = chunk.range();
        let len = range.end - range.start - self.sent;
        Some(Piece::new(chunk.memory(), range.start + self.sent, len))
    }

    /// Copies of the bytes that are here.
    pub(super) fn copy(&self, into: &mut [u8]) -> Result<usize, AccessError> {
        let Some(chunk) = &self.chunk else {
            return Ok(0);
        };
        let range = chunk.range();
        let from = range.start + self.sent;
        let len = (range.end - from).min(into.len() as u64) as usize;
        chunk.memory().read_at(from, &mut into[..len])?;
        Ok(len)
    }

    /// How many spans it is of.
    pub(super) fn spans(&self) -> usize {
        self.spans
    }

    /// Bytes follow those that are here.
    pub(super) fn goes_on(&self) -> bool {
        self.outbound.left() > 0
    }

    /// Every byte was taken.
    pub(super) fn is_over(&self) -> bool {
        self.chunk.is_none() && !self.goes_on()
    }

    /// The kernel took that many bytes of the piece. Its buffer is free when it has taken all.
    pub(super) fn advance(&mut self, bytes: u64) {
        self.sent += bytes;
        let is_sent = |chunk: &mut Chunk| chunk.range().end - chunk.range().start <= self.sent;
        drop(self.chunk.take_if(is_sent));
    }
}

fn memory_of((region, span): &(Arc<Region>, RemoteSpan)) -> Option<&Arc<GpuMemory>> {
    match span.part {
        Part::Data => region.memory.gpu(),
        Part::Generations => None,
    }
}
