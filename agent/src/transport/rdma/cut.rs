//! How a read falls into READs. Pure.

use std::ops::Range;

/// One READ: consecutive remote bytes into local pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cut {
    /// Which of the remote spans.
    pub(super) span: usize,
    /// From the span's first byte on.
    pub(super) offset: u64,
    /// Where the bytes go, in order.
    pub(super) into: Vec<Range<u64>>,
}

impl Cut {
    pub(super) fn len_bytes(&self) -> u64 {
        self.into.iter().map(|range| range.end - range.start).sum()
    }
}

/// Cuts remote spans (their lengths) and local ranges of equal total length into READs of at most so many
/// bytes and pieces. Nothing may be empty.
pub(super) fn cut(
    remote: impl IntoIterator<Item = u64>,
    local: impl IntoIterator<Item = Range<u64>>,
    most_bytes: u64,
    most_pieces: usize,
) -> Vec<Cut> {
    let mut local = local.into_iter();
    let mut rest = local.next();
    let mut cuts: Vec<Cut> = Vec::new();
    for (span, len) in remote.into_iter().enumerate() {
        let mut offset = 0;
        while offset < len {
            let mut into = Vec::new();
            let mut bytes = 0;
            let room = most_bytes.min(len - offset);
            while bytes < room
                && into.len() < most_pieces
                && let Some(range) = &mut rest
            {
                let step = (room - bytes).min(range.end - range.start);
                into.push(range.start..range.start + step);
                bytes += step;
                range.start += step;
                if range.is_empty() {
                    rest = local.next();
                }
            }
            if bytes == 0 {
                // The caller checked that the two are of equal length.
                return cuts;
            }
            cuts.push(Cut { span, offset, into });
            offset += bytes;
        }
    }
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks byte by byte: which remote byte lands where.
    fn walk(cuts: &[Cut], starts: &[u64]) -> Vec<(u64, u64)> {
        let mut seen = Vec::new();
        for cut in cuts {
            let mut at = starts[cut.span] + cut.offset;
            for local in cut.into.iter().cloned().flatten() {
                seen.push((at, local));
                at += 1;
            }
        }
        seen
    }

    #[test]
    fn every_byte_goes_where_it_belongs_within_the_bounds() {
        let (starts, lens) = ([0, 1000, 5000], [10, 37, 100]);
        let locals = [0..1, 5..40, 40..41, 100..210];
        let expected: Vec<(u64, u64)> = starts
            .iter()
            .zip(lens)
            .flat_map(|(start, len)| *start..*start + len)
            .zip(locals.iter().cloned().flatten())
            .collect();
        for most_bytes in [1, 3, 16, 1000] {
            for most_pieces in [1, 2, 16] {
                let cuts = cut(lens, locals.iter().cloned(), most_bytes, most_pieces);
                assert_eq!(walk(&cuts, &starts), expected);
                assert!(cuts.iter().all(|cut| cut.len_bytes() <= most_bytes
                    && cut.into.len() <= most_pieces
                    && !cut.into.is_empty()));
            }
        }
    }

    #[test]
    fn planes_become_one_read_with_a_scatter_list() {
        let planes = (0..4).map(|i| i * 100..i * 100 + 10);
        let cuts = cut([40], planes, 1 << 20, 16);
        assert_eq!(cuts.len(), 1);
        assert_eq!(cuts[0].into, [0..10, 100..110, 200..210, 300..310]);
    }
}
