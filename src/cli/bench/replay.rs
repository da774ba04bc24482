//! What can be said to `kvferry bench replay`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use kvferry_agent::config::{ByteSize, SizeError};
use kvferry_bench::{
    replay::{
        model::{Kept, PRESETS, Shape},
        route::Routing,
    },
    transfer::point::Transport,
};

use super::transport;

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// A trace in Mooncake's form: JSON lines with timestamp (ms), input_length, output_length, and
    /// hash_ids (blocks of 512 tokens).
    pub(crate) trace: PathBuf,
    /// Agents.
    #[arg(long, value_delimiter = ',', value_name = "N,...", default_values_t = [2], value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) nodes: Vec<u32>,
    /// Memory of each agent's pool [default: 1GiB; 256GiB where simulated].
    #[arg(long, value_delimiter = ',', value_name = "SIZE,...")]
    pub(crate) pool: Vec<ByteSize>,
    /// Which node gets a request: one after the other, or the one that had most of its prompt last.
    #[arg(long, value_delimiter = ',', default_values_t = [RoutingChoice::RoundRobin])]
    pub(crate) route: Vec<RoutingChoice>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// At most so many requests of the trace.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) requests: Option<u32>,
    /// Only requests of the trace's first seconds.
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) seconds: Option<u32>,
    /// Replay so many times as fast: arrivals and prefill are compressed, pulls cannot be.
    #[arg(long, value_name = "X", default_value = "1", value_parser = positive)]
    pub(crate) speed: f64,
    /// Lay the trace over itself as so many independent crowds: load for many nodes.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) copies: u32,
    /// Tokens a node computes in a second; the default is in the order of an 8 B model on one
    /// datacentre GPU: measure yours.
    #[arg(long, value_name = "N", default_value = "10000", value_parser = positive)]
    pub(crate) prefill_tokens_per_s: f64,
    /// How bytes travel between real agents.
    #[arg(long, default_value = "tcp", value_parser = transport, conflicts_with = "simulate")]
    pub(crate) transport: Transport,
    /// In virtual time, over a modelled network: thousands of nodes on paper.
    #[arg(long)]
    pub(crate) simulate: bool,
    /// Speed of each simulated node's port, in each direction.
    #[arg(long, value_name = "GBIT", default_value = "100", value_parser = positive, requires = "simulate")]
    pub(crate) nic_gbit_per_s: f64,
    /// A simulated round trip between any two processes.
    #[arg(long, value_name = "US", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000_000), requires = "simulate")]
    pub(crate) rtt_us: u32,
    /// Print a JSON object per replay and line.
    #[arg(long)]
    pub(crate) json: bool,
    /// Write a page with plots.
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,
}

/// How many bytes a block takes.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// A model whose shape is known.
    #[arg(long, default_value = "llama-3-8b", value_parser = model_names())]
    pub(crate) model: String,
    /// Another model: its layers.
    #[arg(long, requires = "head_dim", requires = "kv_heads", conflicts_with = "model", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) layers: Option<u32>,
    /// KV heads of a layer.
    #[arg(long, requires = "layers", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) kv_heads: Option<u32>,
    /// Numbers of a head.
    #[arg(long, requires = "layers", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) head_dim: Option<u32>,
    /// Bytes of a number: 2 for bf16, 1 for fp8.
    #[arg(long, default_value_t = 2, requires = "layers", value_parser = clap::value_parser!(u32).range(1..=8))]
    pub(crate) dtype_bytes: u32,
    /// No model: blocks of this many bytes.
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["model", "layers"], value_parser = block_bytes)]
    pub(crate) block_bytes: Option<ByteSize>,
}

impl ModelArgs {
    /// Bytes of a block, and where they come from.
    pub(crate) fn block_bytes(&self) -> (u64, String) {
        if let Some(bytes) = self.block_bytes {
            return (bytes.0, "given".to_owned());
        }
        if let (Some(layers), Some(count), Some(dim)) = (self.layers, self.kv_heads, self.head_dim)
        {
            let shape = Shape {
                layers,
                kept: Kept::Heads { count, dim },
                dtype_bytes: self.dtype_bytes,
            };
            let name = format!(
                "{layers} layers x {count} heads x {dim} x {} B",
                self.dtype_bytes
            );
            return (shape.block_bytes(), name);
        }
        let preset = PRESETS.iter().find(|preset| preset.name == self.model);
        // Parsed from among them.
        let bytes = preset.map_or(0, |preset| preset.shape.block_bytes());
        (bytes, self.model.clone())
    }
}

/// Which node gets a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoutingChoice {
    RoundRobin,
    Prefix,
}

impl From<RoutingChoice> for Routing {
    fn from(choice: RoutingChoice) -> Self {
        match choice {
            RoutingChoice::RoundRobin => Self::RoundRobin,
            RoutingChoice::Prefix => Self::Prefix,
        }
    }
}

impl std::fmt::Display for RoutingChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(Routing::from(*self).as_str())
    }
}

fn model_names() -> clap::builder::PossibleValuesParser {
    PRESETS.map(|preset| preset.name).into()
}

/// A number that times and speeds can be divided by.
fn positive(word: &str) -> Result<f64, &'static str> {
    match word.parse() {
        Ok(number) if (1e-3..=1e9).contains(&number) => Ok(number),
        _ => Err("a number from 0.001 to 1e9"),
    }
}

/// Why a word is no size of a block.
#[derive(Debug, thiserror::Error)]
enum BlockBytesError {
    #[error(transparent)]
    Size(#[from] SizeError),
    #[error("a block has bytes")]
    Zero,
}

fn block_bytes(word: &str) -> Result<ByteSize, BlockBytesError> {
    match word.parse::<ByteSize>()? {
        ByteSize(0) => Err(BlockBytesError::Zero),
        size => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: ReplayArgs,
    }

    fn parse(words: &str) -> Result<ReplayArgs, clap::Error> {
        let words = ["replay", "trace"]
            .into_iter()
            .chain(words.split_whitespace());
        Line::try_parse_from(words).map(|line| line.args)
    }

    #[test]
    fn a_block_has_the_bytes_of_its_model() {
        let bytes = |words: &str| parse(words).unwrap().model.block_bytes().0;
        assert_eq!(bytes(""), 64 << 20);
        assert_eq!(bytes("--model llama-3-70b"), 160 << 20);
        assert_eq!(
            bytes("--layers 10 --kv-heads 2 --head-dim 64 --dtype-bytes 1"),
            2560 * 512
        );
        assert_eq!(bytes("--block-bytes 64KiB"), 64 << 10);
    }

    #[test]
    fn what_makes_no_sense_together_is_refused() {
        for wrong in [
            "--model gpt-9",
            "--layers 10",
            "--model llama-3-8b --block-bytes 1KiB",
            "--block-bytes 0",
            "--nic-gbit-per-s 10",
            "--simulate --transport tcp",
            "--speed 0",
            "--speed nan",
            "--nodes 0",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let both = parse("--simulate --nodes 1,1000 --route prefix,round-robin").unwrap();
        assert_eq!((both.nodes, both.route.len()), (vec![1, 1000], 2));
    }
}
