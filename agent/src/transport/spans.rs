//! Spans: finding what they name at an owner, and walking two differently cut lists side by side.

use std::{ops::Range, sync::Arc};

use kvferry_proto::{Part, RegionId, RemoteSpan};

use crate::region::{Region, RegionCatalog};

/// Bytes of a generation word.
pub(super) const WORD_BYTES: u64 = 8;

/// Why an owner does not serve a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpanFault {
    /// No such region (any more).
    RegionGone(RegionId),
    /// The region is there, the span is not.
    Refused(SpanRefusal),
}

/// What is wrong with a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpanRefusal {
    /// It ends outside the region.
    OutOfRange,
    /// A span of generations that does not begin and end with a word.
    NotWholeWords,
    /// The spans of one request have more bytes than the owner sends at once.
    TooManyBytes,
    /// The file behind the owner's memory was cut.
    MemoryCut,
}

impl SpanRefusal {
    /// For messages to people.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::OutOfRange => "it ends outside the region",
            Self::NotWholeWords => "generations are read as whole, aligned words",
            Self::TooManyBytes => "more bytes than the owner sends at once",
            Self::MemoryCut => "the file behind the owner's memory was cut",
        }
    }
}

/// Is it made of whole words, where it must be?
pub(super) fn check_words(span: &RemoteSpan) -> Result<(), SpanRefusal> {
    match span.part {
        Part::Data => Ok(()),
        Part::Generations
            if span.offset.is_multiple_of(WORD_BYTES) && span.len.is_multiple_of(WORD_BYTES) =>
        {
            Ok(())
        }
        Part::Generations => Err(SpanRefusal::NotWholeWords),
    }
}

/// The region a span names, where the span is inside it.
pub(super) fn find_region(
    catalog: &RegionCatalog,
    span: &RemoteSpan,
) -> Result<Arc<Region>, SpanFault> {
    let region = catalog
        .get(span.region)
        .ok_or(SpanFault::RegionGone(span.region))?;
    check_words(span).map_err(SpanFault::Refused)?;
    if !region.covers(span) {
        return Err(SpanFault::Refused(SpanRefusal::OutOfRange));
    }
    Ok(region)
}

/// The same bytes in as few spans: neighbours that continue each other become one.
pub(super) fn coalesce_remote(spans: &[RemoteSpan]) -> Vec<RemoteSpan> {
    let mut merged: Vec<RemoteSpan> = Vec::with_capacity(spans.len());
    for span in spans.iter().filter(|span| span.len > 0) {
        match merged.last_mut() {
            Some(last)
                if last.region == span.region
                    && last.part == span.part
                    && last.end() == Some(span.offset) =>
            {
                // Cannot overflow where the caller has summed the lengths.
                last.len = last.len.saturating_add(span.len);
            }
            _ => merged.push(*span),
        }
    }
    merged
}

/// As [`coalesce_remote`], for local ranges.
pub(super) fn coalesce_local(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges.into_iter().filter(|range| !range.is_empty()) {
        match merged.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => merged.push(range),
        }
    }
    merged
}

/// A piece that is contiguous on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair {
    /// Which remote span.
    pub(super) span: usize,
    /// Where in that span's part of its region.
    pub(super) remote: Range<u64>,
    /// Where it goes.
    pub(super) local: Range<u64>,
}

/// Walks remote spans and local ranges of equal total length, in pieces of at most `limit` bytes.
#[derive(Debug)]
pub(super) struct Pairs {
    remote: Vec<RemoteSpan>,
    local: Vec<Range<u64>>,
    span: usize,
    within_span: u64,
    range: usize,
    within_range: u64,
}

impl Pairs {
    pub(super) fn new(remote: &[RemoteSpan], local: Vec<Range<u64>>) -> Self {
        Self {
            remote: coalesce_remote(remote),
            local: coalesce_local(local),
            span: 0,
            within_span: 0,
            range: 0,
            within_range: 0,
        }
    }

    /// The spans that pieces point to by index.
    pub(super) fn spans(&self) -> &[RemoteSpan] {
        &self.remote
    }

    /// The next piece; None at the end of either list.
    pub(super) fn next_pair(&mut self, limit: u64) -> Option<Pair> {
        let span = self.remote.get(self.span)?;
        let range = self.local.get(self.range)?;
        let (span_left, range_left) = (
            span.len - self.within_span,
            range.end - range.start - self.within_range,
        );
        let len = span_left.min(range_left).min(limit);
        let (from, to) = (
            span.offset.saturating_add(self.within_span),
            range.start + self.within_range,
        );
        let pair = Pair {
            span: self.span,
            remote: from..from.saturating_add(len),
            local: to..to + len,
        };
        self.within_span += len;
        self.within_range += len;
        if self.within_span == span.len {
            (self.span, self.within_span) = (self.span + 1, 0);
        }
        if len == range_left {
            (self.range, self.within_range) = (self.range + 1, 0);
        }
        Some(pair)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(offset: u64, len: u64) -> RemoteSpan {
        RemoteSpan {
            region: RegionId(1),
            part: Part::Data,
            offset,
            len,
        }
    }

    #[test]
    fn neighbours_become_one_and_nothing_else_does() {
        let other = RemoteSpan {
            region: RegionId(2),
            ..span(30, 10)
        };
        let merged = coalesce_remote(&[
            span(0, 10),
            span(10, 0),
            span(10, 20),
            other,
            span(40, 1),
            span(0, 5),
        ]);
        assert_eq!(merged, [span(0, 30), other, span(40, 1), span(0, 5)]);
        assert_eq!(
            coalesce_local(vec![0..4, 4..4, 4..9, 10..11]),
            [0..9, 10..11]
        );
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)]
    fn pieces_are_contiguous_on_both_sides_and_bounded() {
        let mut pairs = Pairs::new(&[span(0, 10), span(20, 5)], vec![100..103, 200..212]);
        let mut seen = Vec::new();
        while let Some(pair) = pairs.next_pair(6) {
            seen.push((pair.span, pair.remote, pair.local));
        }
        assert_eq!(
            seen,
            [
                (0, 0..3, 100..103),
                (0, 3..9, 200..206),
                (0, 9..10, 206..207),
                (1, 20..25, 207..212)
            ]
        );
    }

    #[test]
    fn generations_are_read_in_whole_words() {
        let words = |offset, len| RemoteSpan {
            part: Part::Generations,
            ..span(offset, len)
        };
        assert!(check_words(&words(8, 16)).is_ok());
        assert!(check_words(&words(4, 8)).is_err());
        assert!(check_words(&words(8, 4)).is_err());
        assert!(check_words(&span(3, 1)).is_ok());
    }
}
