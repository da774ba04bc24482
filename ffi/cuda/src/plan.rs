//! From byte ranges to copies: as few as the GPU lets us.

use std::ops::Range;

use crate::{Rows, copy::MAX_ROWS};

/// Most ranges of one transfer: a thousand planes (the most a geometry has) of a thousand blocks.
pub const MAX_RANGES: usize = 1 << 20;

/// The copies that pack ranges of GPU memory into host memory without gaps, or unpack them, in order: neighbours become one, pieces
/// of one length at one distance become rows of one strided copy. Strides longer than `max_pitch` are copied one by one.
#[must_use]
pub fn plan_rows(ranges: &[Range<u64>], max_pitch: u64) -> Vec<Rows> {
    let mut plan: Vec<Rows> = Vec::new();
    let mut host_offset = 0;
    for range in coalesce(ranges) {
        let len = range.end - range.start;
        match plan.last_mut() {
            Some(last) if continues(last, &range, max_pitch) => {
                last.device_stride = stride(last, range.start);
                last.rows += 1;
            }
            _ => plan.push(Rows {
                device_offset: range.start,
                device_stride: len,
                host_offset,
                host_stride: len,
                row_bytes: len,
                rows: 1,
            }),
        }
        host_offset += len;
    }
    plan
}

/// From the first row of `rows` to one at `start`, per row.
fn stride(rows: &Rows, start: u64) -> u64 {
    start.saturating_sub(rows.device_offset) / rows.rows
}

fn continues(last: &Rows, range: &Range<u64>, max_pitch: u64) -> bool {
    let stride = stride(last, range.start);
    range.end - range.start == last.row_bytes
        && stride >= last.row_bytes
        && stride <= max_pitch
        && last.device_offset + stride * last.rows == range.start
        && (last.rows == 1 || stride == last.device_stride)
}

/// The same bytes in as few ranges.
fn coalesce(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges.iter().filter(|range| !range.is_empty()) {
        match merged.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => merged.push(range.clone()),
        }
    }
    merged
}

/// Cuts ranges into chunks of at most a buffer's bytes, in order.
pub(crate) struct Cutter {
    ranges: Vec<Range<u64>>,
    /// The first range that is not all cut, and how much of it is.
    at: usize,
    cut: u64,
    left: u64,
}

impl Cutter {
    /// None where the ranges are too many, turned around, not within `len` bytes, or nothing.
    pub(crate) fn new(ranges: Vec<Range<u64>>, len: u64) -> Option<Self> {
        if ranges.len() > MAX_RANGES
            || ranges
                .iter()
                .any(|range| range.start > range.end || range.end > len)
        {
            return None;
        }
        let left = ranges
            .iter()
            .try_fold(0_u64, |sum, range| sum.checked_add(range.end - range.start))?;
        (left > 0).then_some(Self {
            ranges,
            at: 0,
            cut: 0,
            left,
        })
    }

    /// Bytes that were not cut yet.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// The next chunk, and its bytes. None at the end.
    pub(crate) fn next(&mut self, buffer_bytes: u64) -> Option<(Vec<Range<u64>>, u64)> {
        let mut chunk = Vec::new();
        let mut room = buffer_bytes;
        // A chunk of so many pieces is one copy, however the pieces lie.
        while room > 0 && chunk.len() < MAX_ROWS {
            let Some(range) = self.ranges.get(self.at) else {
                break;
            };
            let start = range.start + self.cut;
            let take = (range.end - start).min(room);
            if take > 0 {
                chunk.push(start..start + take);
            }
            room -= take;
            self.cut += take;
            if start + take == range.end {
                self.at += 1;
                self.cut = 0;
            }
        }
        let bytes = buffer_bytes - room;
        self.left -= bytes;
        (bytes > 0).then_some((chunk, bytes))
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // a transfer of one range is meant
mod tests {
    use super::*;

    fn rows(
        device_offset: u64,
        device_stride: u64,
        host_offset: u64,
        row_bytes: u64,
        rows: u64,
    ) -> Rows {
        Rows {
            device_offset,
            device_stride,
            host_offset,
            host_stride: row_bytes,
            row_bytes,
            rows,
        }
    }

    #[test]
    fn regular_planes_become_one_copy() {
        let planes: Vec<_> = (0..8)
            .map(|plane| plane * 1000 + 64..plane * 1000 + 96)
            .collect();
        assert_eq!(plan_rows(&planes, 1 << 31), [rows(64, 1000, 0, 32, 8)]);
        // A stride longer than the GPU takes.
        assert_eq!(plan_rows(&planes, 999).len(), 8);
    }

    #[test]
    fn neighbours_are_joined_and_the_irregular_is_copied_piece_by_piece() {
        let plan = plan_rows(
            &[
                0..10,
                10..20,
                30..50,
                60..80,
                90..110,
                100..120,
                0..20,
                7..7,
                200..201,
            ],
            1 << 31,
        );
        assert_eq!(
            plan,
            [
                rows(0, 30, 0, 20, 4),
                rows(100, 20, 80, 20, 1),
                rows(0, 20, 100, 20, 1),
                rows(200, 1, 120, 1, 1)
            ]
        );
        assert_eq!(plan_rows(&[5..5], 1 << 31), []);
    }

    /// Numbers that a seed derives: xorshift.
    fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        move |below| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        }
    }

    #[test]
    fn a_plan_moves_every_byte_to_its_place() {
        // Miri takes a second for ten of them.
        for seed in 0..if cfg!(miri) { 50 } else { 3000 } {
            let mut pick = numbers(seed);
            let mut ranges = Vec::new();
            for _ in 0..=pick(4) {
                // A run that is regular, or nearly.
                let (mut at, step, len) = (pick(2000), pick(40), pick(30));
                for _ in 0..=pick(8) {
                    ranges.push(at..at + len);
                    at += step + if pick(6) == 0 { pick(5) } else { 0 };
                }
            }
            let expected: Vec<u64> = ranges.iter().cloned().flatten().collect();
            let max_pitch = [0, 25, 1 << 31][pick(3) as usize];
            let mut seen = vec![u64::MAX; expected.len()];
            for piece in plan_rows(&ranges, max_pitch) {
                assert!(piece.rows == 1 || piece.device_stride.max(piece.host_stride) <= max_pitch);
                assert!(
                    piece.rows == 1 || piece.device_stride >= piece.row_bytes,
                    "seed {seed}: {piece:?}"
                );
                for row in 0..piece.rows {
                    for byte in 0..piece.row_bytes {
                        let to = &mut seen
                            [(piece.host_offset + row * piece.host_stride + byte) as usize];
                        assert_eq!(*to, u64::MAX, "seed {seed}: written twice");
                        *to = piece.device_offset + row * piece.device_stride + byte;
                    }
                }
            }
            assert_eq!(seen, expected, "seed {seed}: {ranges:?}");
        }
    }

    #[test]
    fn chunks_hold_every_byte_once_and_in_order() {
        let ranges = vec![0..10, 20..20, 30..37, 100..200];
        for buffer in [1, 3, 7, 10, 64, 1000] {
            let mut cutter = Cutter::new(ranges.clone(), 200).unwrap();
            let mut seen = Vec::new();
            while let Some((chunk, bytes)) = cutter.next(buffer) {
                assert!(bytes <= buffer);
                assert_eq!(
                    chunk
                        .iter()
                        .map(|range| range.end - range.start)
                        .sum::<u64>(),
                    bytes
                );
                seen.extend(chunk.into_iter().flatten());
            }
            assert_eq!(cutter.left(), 0);
            assert_eq!(
                seen,
                (0..10).chain(30..37).chain(100..200).collect::<Vec<u64>>()
            );
        }
    }

    #[test]
    fn what_is_no_transfer_is_refused() {
        assert!(Cutter::new(vec![], 10).is_none());
        assert!(Cutter::new(vec![3..3], 10).is_none());
        assert!(Cutter::new(vec![3..11], 10).is_none());
        let turned = Range { start: 5, end: 3 };
        assert!(Cutter::new(vec![turned], 10).is_none());
        assert!(Cutter::new(vec![0..u64::MAX, 0..u64::MAX], u64::MAX).is_none());
    }

    #[test]
    fn a_chunk_has_bounded_pieces() {
        let ranges: Vec<_> = (0..MAX_ROWS as u64 + 5)
            .map(|at| at * 2..at * 2 + 1)
            .collect();
        let mut cutter = Cutter::new(ranges, 1 << 20).unwrap();
        assert_eq!(cutter.next(1 << 20).unwrap().1, MAX_ROWS as u64);
        assert_eq!(cutter.next(1 << 20).unwrap().1, 5);
        assert!(cutter.next(1 << 20).is_none());
    }
}
