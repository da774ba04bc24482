//! Spans: finding what they name at an owner, and joining neighbours.

use std::{ops::Range, sync::Arc};

use kvferry_proto::{Part, RegionId, RemoteSpan};
use kvferry_security::ticket::Refusal;

use crate::{
    region::{Region, RegionCatalog},
    tickets::Permit,
};

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
    /// The owner's GPU gives no bytes: it failed, or is too busy.
    GpuFailed,
    /// The reader's ticket does not let it.
    Ticket(Refusal),
}

impl SpanRefusal {
    /// For messages to people.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::OutOfRange => "it ends outside the region",
            Self::NotWholeWords => "generations are read as whole, aligned words",
            Self::TooManyBytes => "more bytes than the owner sends at once",
            Self::MemoryCut => "the file behind the owner's memory was cut",
            Self::GpuFailed => "the owner's GPU gives no bytes; its log says why",
            Self::Ticket(_) => "the ticket does not let this reader",
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

/// The region a span names, where the permit covers it and the span is inside it. Nothing is said of a region that the
/// permit does not cover but that.
pub(super) fn find_region(
    catalog: &RegionCatalog,
    permit: Option<&Permit>,
    span: &RemoteSpan,
) -> Result<Arc<Region>, SpanFault> {
    let region = catalog
        .get(span.region)
        .ok_or(SpanFault::RegionGone(span.region))?;
    if permit.is_some_and(|permit| !permit.covers(&region)) {
        return Err(SpanFault::Refused(SpanRefusal::Ticket(
            Refusal::OtherNamespace,
        )));
    }
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
