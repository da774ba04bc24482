//! From slots and destinations to what a link is asked for.

use std::{ops::Range, sync::Arc};

use kvferry_memory::HostMemory;
use kvferry_proto::{Geometry, Part, RegionId, RemoteSpan, Slot};
use smallvec::SmallVec;

use crate::{
    region::Memory,
    transport::{Capabilities, LocalSpans, ReadRequest},
};

/// Bytes of one generation word.
pub const WORD_BYTES: u64 = 8;

/// Where a block is to go.
#[derive(Debug, Clone)]
pub struct Destination {
    /// Kept alive by every read into it.
    pub memory: Memory,
    /// Byte ranges of it, in block order; as many bytes as the block has. One, where blocks lie in one piece.
    pub ranges: SmallVec<[Range<u64>; 1]>,
}

/// One read, into memory of any kind. See [`staged::read`](crate::transport::staged::read).
#[derive(Debug, Clone)]
pub struct PlannedRead {
    /// What to fetch, in order.
    pub remote: Vec<RemoteSpan>,
    /// Where to put it, in order; as many bytes as `remote` has.
    pub local: Destination,
}

impl PlannedRead {
    /// As a link takes it; None where it is into a GPU.
    #[must_use]
    pub fn into_host(self) -> Option<ReadRequest> {
        Some(ReadRequest {
            remote: self.remote,
            local: LocalSpans {
                memory: Arc::clone(self.local.memory.host()?),
                ranges: self.local.ranges.into_vec(),
            },
        })
    }
}

/// One block to be read.
#[derive(Debug, Clone, Copy)]
pub struct BlockRead<'a> {
    /// The owner's region.
    pub region: RegionId,
    /// Where its slots lie.
    pub geometry: &'a Geometry,
    /// Which slot.
    pub slot: Slot,
    /// Where to.
    pub destination: &'a Destination,
}

/// Why blocks cannot be read as they were located.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The owner's geometry has no such slot: the hint is wrong.
    #[error("the owner's region has no slot {slot}")]
    NoSuchSlot {
        /// Which.
        slot: Slot,
    },
    /// The two sides' blocks differ in size: the hint or the destination is wrong.
    #[error("the owner's block has {remote} bytes, the destination {local}")]
    LengthMismatch {
        /// At the owner.
        remote: u64,
        /// Here.
        local: u64,
    },
    /// The link takes no reads at all.
    #[error("the link allows reads of no bytes or no spans")]
    NoRoom,
    /// More words than the scratch memory holds.
    #[error("{words} generation words do not fit the scratch memory")]
    Scratch {
        /// Words asked for.
        words: usize,
    },
}

/// The reads that fetch these blocks into their destinations: as few as the link's bounds and the
/// destinations' memories allow, neighbours merged on both sides.
///
/// # Errors
/// [`PlanError`]; nothing is to be read then.
pub fn data_reads(
    blocks: &[BlockRead<'_>],
    link: &Capabilities,
) -> Result<Vec<PlannedRead>, PlanError> {
    let mut cutter = Cutter::new(link, 1)?;
    for block in blocks {
        let remote = || block.geometry.ranges(block.slot);
        if !block.geometry.contains(block.slot) {
            return Err(PlanError::NoSuchSlot { slot: block.slot });
        }
        let local = &block.destination.ranges;
        let (there, here) = (block.geometry.block_bytes(), total(local.iter().cloned()));
        if there != here {
            return Err(PlanError::LengthMismatch {
                remote: there,
                local: here,
            });
        }
        let mut targets = local.iter().filter(|range| !range.is_empty()).cloned();
        let mut target = 0..0;
        for mut source in remote() {
            while !source.is_empty() {
                if target.is_empty() {
                    match targets.next() {
                        Some(next) => target = next,
                        None => break, // the totals are equal
                    }
                }
                let len = (source.end - source.start).min(target.end - target.start);
                cutter.add(
                    RemoteSpan {
                        region: block.region,
                        part: Part::Data,
                        offset: source.start,
                        len,
                    },
                    &block.destination.memory,
                    target.start,
                );
                source.start += len;
                target.start += len;
            }
        }
    }
    Ok(cutter.requests)
}

/// The reads of these slots' generation words into `scratch`, and for each slot the offset in it
/// where its word will be. Words are read in order of region and slot, so that neighbours merge; words between them that
/// cost less than a span of their own would are read too, where `scratch` has the room.
///
/// # Errors
/// [`PlanError::NoRoom`] or [`PlanError::Scratch`].
pub fn generation_reads(
    slots: &[(RegionId, Slot)],
    scratch: &Arc<HostMemory>,
    link: &Capabilities,
) -> Result<(Vec<ReadRequest>, Vec<u64>), PlanError> {
    if slots.len() as u64 > scratch.len() / WORD_BYTES {
        return Err(PlanError::Scratch { words: slots.len() });
    }
    let mut order: Vec<usize> = (0..slots.len()).collect();
    order.sort_by_key(|&place| slots[place]);
    let mut runs = runs(slots, &order, link.span_bytes);
    if runs.iter().map(|run| run.len).sum::<u64>() > scratch.len() {
        runs = self::runs(slots, &order, 0);
    }
    let mut offsets = vec![0; slots.len()];
    let mut cutter = Cutter::new(link, WORD_BYTES)?;
    let memory = Memory::from(Arc::clone(scratch));
    let (mut order, mut start) = (order.into_iter().peekable(), 0);
    for run in runs {
        while let Some(place) = order.next_if(|&place| holds(&run, slots[place])) {
            offsets[place] = start + word_at(slots[place].1) - run.offset;
        }
        let len = run.len;
        cutter.add(run, &memory, start);
        start += len;
    }
    let reads = cutter.requests.into_iter();
    Ok((reads.filter_map(PlannedRead::into_host).collect(), offsets))
}

fn word_at(slot: Slot) -> u64 {
    u64::from(slot.0) * WORD_BYTES
}

/// Is a slot's word in this span?
fn holds(run: &RemoteSpan, (region, slot): (RegionId, Slot)) -> bool {
    let at = word_at(slot);
    region == run.region && at >= run.offset && at - run.offset < run.len
}

/// The words of slots, in this order, with gaps of at most `gap` bytes.
fn runs(slots: &[(RegionId, Slot)], order: &[usize], gap: u64) -> Vec<RemoteSpan> {
    let mut runs: Vec<RemoteSpan> = Vec::new();
    for &place in order {
        let (region, slot) = slots[place];
        let (start, end) = (word_at(slot), word_at(slot) + WORD_BYTES);
        match runs.last_mut() {
            // Asked for twice is read once.
            Some(last) if last.region == region && start <= last.offset + last.len + gap => {
                last.len = last.len.max(end - last.offset);
            }
            _ => runs.push(RemoteSpan {
                region,
                part: Part::Generations,
                offset: start,
                len: WORD_BYTES,
            }),
        }
    }
    runs
}

/// The read, where there is one only and it is into host memory; else `reads` stay as they are.
pub fn only_host_read(reads: &mut Vec<PlannedRead>) -> Option<ReadRequest> {
    match reads.as_slice() {
        [read] if read.local.memory.host().is_some() => reads.pop()?.into_host(),
        _ => None,
    }
}

/// What a link takes in one read beside `data`; None where that is nothing.
#[must_use]
pub fn left_beside(data: &ReadRequest, link: &Capabilities) -> Option<Capabilities> {
    let left = Capabilities {
        max_spans: link.max_spans.checked_sub(data.remote.len())?,
        max_bytes: link.max_bytes.checked_sub(data.local.len_bytes())?,
        ..*link
    };
    (left.max_spans > 0 && left.max_bytes >= WORD_BYTES).then_some(left)
}

fn total(ranges: impl Iterator<Item = Range<u64>>) -> u64 {
    ranges.fold(0, |sum, range| {
        sum.saturating_add(range.end.saturating_sub(range.start))
    })
}

/// Appends pieces to requests, and begins the next request where a bound is reached.
struct Cutter {
    max_bytes: u64,
    max_spans: usize,
    bytes: u64,
    requests: Vec<PlannedRead>,
}

impl Cutter {
    /// Every piece is cut at multiples of `grain` bytes only.
    fn new(link: &Capabilities, grain: u64) -> Result<Self, PlanError> {
        let max_bytes = link.max_bytes - link.max_bytes % grain;
        if max_bytes == 0 || link.max_spans == 0 {
            return Err(PlanError::NoRoom);
        }
        Ok(Self {
            max_bytes,
            max_spans: link.max_spans,
            bytes: 0,
            requests: Vec::new(),
        })
    }

    fn add(&mut self, mut span: RemoteSpan, memory: &Memory, mut local: u64) {
        while span.len > 0 {
            let len = span.len.min(self.room(&span, memory));
            if len == 0 {
                self.bytes = 0;
                self.requests.push(PlannedRead {
                    remote: Vec::new(),
                    local: Destination {
                        memory: memory.clone(),
                        ranges: SmallVec::new(),
                    },
                });
                continue;
            }
            if let Some(request) = self.requests.last_mut() {
                append(request, RemoteSpan { len, ..span }, local);
            }
            self.bytes += len;
            span.offset += len;
            span.len -= len;
            local += len;
        }
    }

    /// Bytes of this span that the last request may still take.
    fn room(&self, span: &RemoteSpan, memory: &Memory) -> u64 {
        match self.requests.last() {
            Some(request)
                if request.local.memory.is_same(memory)
                    && (request.remote.len() < self.max_spans || continues(request, span)) =>
            {
                self.max_bytes - self.bytes
            }
            _ => 0,
        }
    }
}

fn continues(request: &PlannedRead, span: &RemoteSpan) -> bool {
    request.remote.last().is_some_and(|last| {
        (last.region, last.part, last.end()) == (span.region, span.part, Some(span.offset))
    })
}

fn append(request: &mut PlannedRead, span: RemoteSpan, local: u64) {
    let merges = continues(request, &span);
    match request.remote.last_mut() {
        Some(last) if merges => last.len += span.len,
        _ => request.remote.push(span),
    }
    match request.local.ranges.last_mut() {
        Some(last) if last.end == local => last.end += span.len,
        _ => request.local.ranges.push(local..local + span.len),
    }
}

#[cfg(test)]
mod tests;
