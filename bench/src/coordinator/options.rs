//! What is to be measured of a coordinator.

use std::num::IntErrorKind;

use clap::{Args, ValueEnum};

use crate::locate::Reader;

/// How much, how long, and what.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Distinct blocks; k, M and G count in thousands [default: 10M; 20k where quick].
    #[arg(long, value_name = "N", value_parser = count)]
    pub blocks: Option<u64>,
    /// Nodes that hold them.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(2..=4096))]
    pub nodes: u64,
    /// Blocks of the in-process look-up, where it is asked for.
    #[arg(long, value_name = "N", default_value = "100M", value_parser = count)]
    pub in_process_blocks: u64,
    /// Rounds a figure is the median of [default: 5; 1 where quick].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: Option<u32>,
    /// Seconds a round [default: 2; 0.1 where quick].
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub seconds: Option<f64>,
    /// Worker threads of the coordinator.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub server_threads: u32,
    /// Worker threads of all clients together.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub client_threads: u32,
    /// Connections of readers.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub connections: u64,
    /// Requests under way on each connection, for requests of 64 and 1,000 hashes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub in_flight: u64,
    /// Hashes of a request, in the closed loop.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1_000, 64, 1], value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub hashes: Vec<u64>,
    /// How much work readers do themselves.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Reader::Full, Reader::Light])]
    pub reader: Vec<Reader>,
    /// Requests a second of the open loop [default: half of what the closed loop of the same size gave].
    #[arg(long, value_name = "N", value_parser = rate)]
    pub rate: Option<f64>,
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Publish, Part::Locate, Part::Open, Part::Claims, Part::Watch, Part::Churn, Part::Vanish])]
    pub parts: Vec<Part>,
    /// Small and short: does everything work?
    #[arg(long)]
    pub quick: bool,
    /// Print a JSON object per figure and line.
    #[arg(long)]
    pub json: bool,
    /// Write a page with plots.
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<std::path::PathBuf>,
}

impl Options {
    /// Distinct blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
            .unwrap_or(if self.quick { 20_000 } else { 10_000_000 })
    }

    /// Rounds a figure is the median of.
    #[must_use]
    pub fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 1 } else { 5 }) as usize
    }

    /// Seconds a round.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.seconds.unwrap_or(if self.quick { 0.1 } else { 2.0 })
    }

    pub(super) fn wants(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }
}

/// A workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Publish through sessions, and what it takes in memory.
    Publish,
    /// Locate of 1,000, 64 and 1: as many as are answered (closed loop).
    Locate,
    /// Locate of 64 and 1 at a fixed rate, timed from when each was due (open loop).
    Open,
    /// Nodes claim blocks and give the claims back (closed loop).
    Claims,
    /// A router watches: from the start, while blocks are replaced, and one block at a time (closed loop).
    Watch,
    /// Nodes replace blocks as fast as they can while readers ask.
    Churn,
    /// A node with half of the blocks goes.
    Vanish,
    /// Random look-ups without a wire.
    InProcess,
}

/// Why a word is no number of blocks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CountError {
    /// No number.
    #[error("not a count: digits, and k, M or G for thousands, millions or billions")]
    Unreadable,
    /// Fewer than a request of 1,000 needs on every node.
    #[error("too few: at least {MIN_BLOCKS}")]
    TooFew,
    /// More than a directory takes.
    #[error("too many: at most {MAX_BLOCKS}")]
    TooMany,
}

/// Nodes publish in runs of a thousand blocks, and readers ask for a thousand neighbours.
const MIN_BLOCKS: u64 = 2_000;
/// At 66 bytes each, more than a terabyte.
const MAX_BLOCKS: u64 = 20_000_000_000;

/// "10M", "5k", "1000".
fn count(text: &str) -> Result<u64, CountError> {
    let (digits, factor) = match text.as_bytes() {
        [.., b'k'] => (&text[..text.len() - 1], 1_000),
        [.., b'M'] => (&text[..text.len() - 1], 1_000_000),
        [.., b'G'] => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1u64),
    };
    let number: u64 =
        digits
            .parse()
            .map_err(|error: std::num::ParseIntError| match error.kind() {
                IntErrorKind::PosOverflow => CountError::TooMany,
                _ => CountError::Unreadable,
            })?;
    match number.saturating_mul(factor) {
        blocks if blocks < MIN_BLOCKS => Err(CountError::TooFew),
        blocks if blocks > MAX_BLOCKS => Err(CountError::TooMany),
        blocks => Ok(blocks),
    }
}

/// Why a word is no number of seconds, or of requests in one.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("a number from {least} to {most}")]
pub struct RangeError {
    least: f64,
    most: f64,
}

fn within(text: &str, least: f64, most: f64) -> Result<f64, RangeError> {
    match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(RangeError { least, most }),
    }
}

/// An hour at most.
fn seconds(text: &str) -> Result<f64, RangeError> {
    within(text, 0.01, 3600.0)
}

/// As fast as one thread can start requests.
fn rate(text: &str) -> Result<f64, RangeError> {
    within(text, 0.1, 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_in_thousands() {
        assert_eq!(count("10M"), Ok(10_000_000));
        assert_eq!(count("5k"), Ok(5_000));
        assert_eq!(count("2000"), Ok(2_000));
        assert_eq!(count("1k"), Err(CountError::TooFew));
        assert_eq!(count("99999999999999G"), Err(CountError::TooMany));
        assert_eq!(count("99999999999999999999999"), Err(CountError::TooMany));
        for wrong in ["", "k", "-1", "1.5M", "1KM", "10m"] {
            assert_eq!(count(wrong), Err(CountError::Unreadable), "{wrong}");
        }
    }

    #[test]
    fn times_and_rates_are_within_their_bounds() {
        assert_eq!(seconds("0.5"), Ok(0.5));
        assert!(seconds("0").is_err() && seconds("nan").is_err() && rate("inf").is_err());
    }
}
