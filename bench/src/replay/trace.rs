//! A request trace in Mooncake's form: JSON lines with a prompt's blocks of 512 tokens by number.

use std::{io::BufRead, time::Duration};

use serde::Deserialize;

/// Tokens of a block in such a trace.
pub const TOKENS_PER_BLOCK: u64 = 512;
/// Most requests of a trace: at 30 blocks each, 2.5 GB of numbers.
const MAX_REQUESTS: usize = 10_000_000;
/// Most bytes of a line: a prompt of 16 M tokens.
const MAX_LINE: usize = 1 << 20;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Since the trace began.
    pub at: Duration,
    /// Of the prompt.
    pub input_tokens: u64,
    /// Of the answer. Nothing is known of the blocks these fill.
    pub output_tokens: u64,
    /// The prompt's blocks, in order; equal numbers are equal prefixes.
    pub blocks: Vec<u64>,
}

/// Requests in the order of their arrival.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trace {
    /// Not empty.
    pub requests: Vec<Request>,
}

/// Why a trace is none. Lines count from 1.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A line is no request.
    #[error("line {line}: not a request of a trace: {source}")]
    Line {
        /// Which.
        line: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A line is longer than any request.
    #[error("line {line}: longer than {MAX_LINE} bytes")]
    LineTooLong {
        /// Which.
        line: usize,
    },
    /// Requests are not in order.
    #[error("line {line}: its timestamp is before the one above: sort the trace by timestamp")]
    BackInTime {
        /// Which.
        line: usize,
    },
    /// Length and blocks disagree.
    #[error(
        "line {line}: {input_length} tokens fill {want} blocks of {TOKENS_PER_BLOCK}, but hash_ids has {got}: is it a trace with other blocks?"
    )]
    Blocks {
        /// Which.
        line: usize,
        /// Tokens.
        input_length: u64,
        /// Blocks there should be.
        want: u64,
        /// Blocks there are.
        got: usize,
    },
    /// There are too many.
    #[error("more than {MAX_REQUESTS} requests: cut the trace")]
    TooMany,
    /// There is none.
    #[error("there is no request in it")]
    Empty,
}

#[derive(Deserialize)]
struct Line {
    timestamp: u64,
    input_length: u64,
    output_length: u64,
    hash_ids: Vec<u64>,
}

impl Trace {
    /// Reads at most `most` requests that arrive within `within`.
    ///
    /// # Errors
    /// [`TraceError`] names the line.
    pub fn read(mut from: impl BufRead, most: usize, within: Duration) -> Result<Self, TraceError> {
        let mut requests: Vec<Request> = Vec::new();
        let mut text = Vec::new();
        for line in 1.. {
            text.clear();
            let limit = MAX_LINE as u64 + 1;
            if std::io::Read::take(&mut from, limit).read_until(b'\n', &mut text)? == 0
                || requests.len() >= most
            {
                break;
            }
            if text.len() > MAX_LINE {
                return Err(TraceError::LineTooLong { line });
            }
            if text.trim_ascii().is_empty() {
                continue;
            }
            let request = parse(&text, line)?;
            if requests.last().is_some_and(|last| request.at < last.at) {
                return Err(TraceError::BackInTime { line });
            }
            if request.at > within {
                break;
            }
            if requests.len() == MAX_REQUESTS {
                return Err(TraceError::TooMany);
            }
            requests.push(request);
        }
        match requests.is_empty() {
            true => Err(TraceError::Empty),
            false => Ok(Self { requests }),
        }
    }

    /// The trace laid over itself: as many independent crowds, which share no block, at times evenly
    /// shifted. What a cluster of many nodes needs to have something to do.
    ///
    /// # Errors
    /// [`TraceError::TooMany`].
    pub fn copies(self, copies: u32) -> Result<Self, TraceError> {
        if copies <= 1 {
            return Ok(self);
        }
        let many = u64::from(copies);
        if self.requests.len().saturating_mul(copies as usize) > MAX_REQUESTS {
            return Err(TraceError::TooMany);
        }
        let gap = self.span() / self.requests.len() as u32;
        let mut requests = Vec::with_capacity(self.requests.len() * copies as usize);
        for request in &self.requests {
            for copy in 0..many {
                let of = |block: &u64| block.wrapping_mul(many).wrapping_add(copy);
                requests.push(Request {
                    at: request.at + gap.mul_f64(copy as f64 / many as f64),
                    blocks: request.blocks.iter().map(of).collect(),
                    ..request.clone()
                });
            }
        }
        requests.sort_by_key(|request| request.at);
        Ok(Self { requests })
    }

    /// From the start to the last arrival.
    #[must_use]
    pub fn span(&self) -> Duration {
        self.requests.last().map_or(Duration::ZERO, |last| last.at)
    }

    /// The share of tokens that a single cache without end would have had: no cluster has more.
    #[must_use]
    pub fn best_hit(&self) -> f64 {
        let mut seen = std::collections::HashSet::<u64>::new();
        let (mut hits, mut all) = (0, 0);
        for request in &self.requests {
            let known = request
                .blocks
                .iter()
                .take_while(|block| seen.contains(*block));
            hits += tokens_of(request, known.count());
            all += request.input_tokens;
            seen.extend(&request.blocks);
        }
        hits as f64 / all.max(1) as f64
    }

    /// Different blocks.
    #[must_use]
    pub fn distinct_blocks(&self) -> u64 {
        let blocks = self.requests.iter().flat_map(|request| &request.blocks);
        blocks.collect::<std::collections::HashSet<_>>().len() as u64
    }
}

/// Tokens of the first `blocks` blocks of a prompt, whose last one may be filled in part.
pub(crate) fn tokens_of(request: &Request, blocks: usize) -> u64 {
    request.input_tokens.min(blocks as u64 * TOKENS_PER_BLOCK)
}

fn parse(text: &[u8], line: usize) -> Result<Request, TraceError> {
    let read: Line =
        serde_json::from_slice(text).map_err(|source| TraceError::Line { line, source })?;
    let want = read.input_length.div_ceil(TOKENS_PER_BLOCK);
    if read.hash_ids.len() as u64 != want {
        return Err(TraceError::Blocks {
            line,
            input_length: read.input_length,
            want,
            got: read.hash_ids.len(),
        });
    }
    Ok(Request {
        at: Duration::from_millis(read.timestamp),
        input_tokens: read.input_length,
        output_tokens: read.output_length,
        blocks: read.hash_ids,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn request(at_ms: u64, blocks: &[u64]) -> Request {
        Request {
            at: Duration::from_millis(at_ms),
            input_tokens: blocks.len() as u64 * TOKENS_PER_BLOCK,
            output_tokens: 1,
            blocks: blocks.to_vec(),
        }
    }

    fn read(text: &str) -> Result<Trace, TraceError> {
        Trace::read(text.as_bytes(), usize::MAX, Duration::MAX)
    }

    const TWO: &str = "{\"timestamp\": 0, \"input_length\": 1000, \"output_length\": 5, \"hash_ids\": [0, 1]}\n\n\
        {\"timestamp\": 2000, \"input_length\": 1025, \"output_length\": 5, \"hash_ids\": [0, 1, 2], \"more\": true}\n";

    #[test]
    fn lines_are_requests() {
        let trace = read(TWO).unwrap();
        assert_eq!(trace.requests.len(), 2);
        assert_eq!(trace.requests[1].at, Duration::from_secs(2));
        assert_eq!(trace.requests[1].blocks, [0, 1, 2]);
        let one = Trace::read(TWO.as_bytes(), 1, Duration::MAX).unwrap();
        let early = Trace::read(TWO.as_bytes(), 9, Duration::from_secs(1)).unwrap();
        assert_eq!((one.requests.len(), early.requests.len()), (1, 1));
    }

    #[test]
    fn what_is_no_trace_is_refused_by_line() {
        assert!(matches!(read(""), Err(TraceError::Empty)));
        let wrong = TWO.replace("1025", "1024");
        assert!(matches!(
            read(&wrong),
            Err(TraceError::Blocks {
                line: 3,
                want: 2,
                got: 3,
                ..
            })
        ));
        let back = TWO.replace("\"timestamp\": 0", "\"timestamp\": 2001");
        assert!(matches!(
            read(&back),
            Err(TraceError::BackInTime { line: 3 })
        ));
        assert!(matches!(read("{}"), Err(TraceError::Line { line: 1, .. })));
        let long = " ".repeat(MAX_LINE + 1);
        assert!(matches!(
            read(&long),
            Err(TraceError::LineTooLong { line: 1 })
        ));
    }

    #[test]
    fn copies_share_nothing_and_stay_in_order() {
        let trace = read(TWO).unwrap();
        let best = trace.best_hit();
        // The second prompt's first two blocks, of 2,025 tokens in all.
        assert!((best - 1024.0 / 2025.0).abs() < 1e-9, "{best}");
        let copies = trace.clone().copies(3).unwrap();
        assert_eq!(copies.requests.len(), 6);
        assert_eq!(copies.distinct_blocks(), 3 * trace.distinct_blocks());
        assert!(copies.requests.is_sorted_by_key(|request| request.at));
        assert!((copies.best_hit() - best).abs() < 1e-9);
    }
}
