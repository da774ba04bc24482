//! What can be said to `kvferry bench`.

pub(crate) mod replay;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use kvferry_agent::config::ByteSize;
use kvferry_bench::transfer::point::Transport;

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) what: BenchCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Measure pulls between real agents on this host, beside plain sockets and copies.
    #[command(after_help = "\
Without a list of shapes the points are measured whose figures are documented, and a sweep over block
sizes. Any list given (block sizes, planes, batches, ...) measures every combination instead.

Examples:
  kvferry bench transfer --report transfer.html
  kvferry bench transfer --transport tcp --block-bytes 64KiB,1MiB --batch 1,64 --json > now.jsonl
  kvferry bench transfer --planes 80x8KiB,64x32KiB --batch 64
  kvferry bench transfer --transport tcp,tcp-tls                     # what does TLS cost?")]
    Transfer(TransferArgs),
    /// Measure a coordinator on this host: publish, locate in a closed and an open loop, churn, a vanishing node.
    #[command(after_help = "\
Examples:
  kvferry bench coordinator --blocks 1M --json > now.jsonl
  kvferry bench coordinator --parts locate,open --reader full --rate 5000
  kvferry bench coordinator --report coordinator.html
  kvferry bench coordinator --parts in-process")]
    Coordinator(kvferry_bench::coordinator::Options),
    /// Drive a request trace through a cluster: hit ratio, bytes pulled, prefill time saved.
    #[command(after_help = "\
Each request asks how far its prompt exists anywhere, pulls what its node lacks into the node's pool, and
computes and keeps the rest. Lists (nodes, pools, routes) replay every combination. Real agents hold
real bytes: give them few requests and small blocks. Simulated ones are the same directory, stores, eviction and
pull engines over a modelled network, in virtual time.

Examples:
  kvferry bench replay trace.jsonl --nodes 3 --block-bytes 256KiB --pool 64MiB --requests 300 --speed 20
  kvferry bench replay trace.jsonl --simulate --nodes 10,100 --pool 64GiB,256GiB --report plan.html
  kvferry bench replay trace.jsonl --simulate --nodes 1000 --copies 100 --model llama-3-70b --pool 1TiB")]
    Replay(replay::ReplayArgs),
    /// What changed between two runs of `bench transfer`, `bench replay` or `bench coordinator` with `--json`?
    #[command(after_help = "Example:\n  kvferry bench compare before.jsonl after.jsonl")]
    Compare(CompareArgs),
    /// Measure pulls between two agents that run already: `tests/rdma` puts them beside `ib_read_bw`.
    #[command(hide = true)]
    Pulls(PullsArgs),
    /// One of the yardstick's two processes.
    #[command(hide = true)]
    Yardstick(YardstickArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TransferArgs {
    /// Few points and short rounds: does everything work?
    #[arg(long)]
    pub(crate) quick: bool,
    /// How bytes travel: tcp, tcp-tls, shm or rdma [default: tcp and shm]. tcp-tls: payload by TLS
    /// (`data_tls`), and all that is said between processes too, with certificates made for the run. Over
    /// software RDMA devices blocks always carry checksums.
    #[arg(long, value_delimiter = ',', value_parser = transport)]
    pub(crate) transport: Vec<Transport>,
    /// Block sizes, for blocks in one piece.
    #[arg(long, value_delimiter = ',', value_name = "SIZE,...")]
    pub(crate) block_bytes: Vec<ByteSize>,
    /// Blocks in many pieces: how many, and of which size.
    #[arg(long, value_delimiter = ',', value_name = "NxSIZE,...", value_parser = planes)]
    pub(crate) planes: Vec<(u32, ByteSize)>,
    /// Blocks of one pull call [default: 64].
    #[arg(long, value_delimiter = ',', value_name = "N,...", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) batch: Vec<u32>,
    /// Most data connections between two agents [default: 4].
    #[arg(long, value_delimiter = ',', value_name = "N,...", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) connections: Vec<u32>,
    /// Engines that pull at the same time, each beside an agent of its own [default: 1].
    #[arg(long, value_delimiter = ',', value_name = "N,...", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) readers: Vec<u32>,
    /// Pull calls of one engine at a time [default: 1].
    #[arg(long, value_delimiter = ',', value_name = "N,...", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) calls: Vec<u32>,
    /// Do blocks carry checksums? Validation by generation is always on [default: off].
    #[arg(long, value_delimiter = ',')]
    pub(crate) checksum: Vec<Checksum>,
    /// Publish the blocks anew for every call, within the time that is taken: a prompt's whole way.
    #[arg(long)]
    pub(crate) publish: bool,
    /// Rounds that count [default: 7; 1 where quick].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: Option<u32>,
    /// Of each side in each round [default: 300; 50 where quick].
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..=600_000))]
    pub(crate) slice_ms: Option<u32>,
    /// How long a point may wait for others to leave the machine alone [default: 10; 0 where quick].
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(..=3600))]
    pub(crate) patience_s: Option<u32>,
    /// Print a JSON object per point and line.
    #[arg(long)]
    pub(crate) json: bool,
    /// Write a page with plots.
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,
}

/// Whether blocks carry checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Checksum {
    Off,
    Always,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// The earlier run.
    pub(crate) before: PathBuf,
    /// The later one.
    pub(crate) after: PathBuf,
}

/// Prints `figure BLOCK_BYTES MIB_PER_S`. Every byte that was pulled is compared.
#[derive(Debug, Args)]
pub(crate) struct PullsArgs {
    /// The owner's local API.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) owner: PathBuf,
    /// The reader's.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) reader: PathBuf,
    /// The way they must take.
    #[arg(long, value_parser = way)]
    pub(crate) transport: Transport,
    /// Bytes of a block.
    #[arg(long)]
    pub(crate) block_bytes: ByteSize,
    /// Bytes of a call.
    #[arg(long, default_value = "16MiB")]
    pub(crate) call_bytes: ByteSize,
    /// Calls at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) calls: u32,
    /// Do blocks carry checksums?
    #[arg(long, default_value = "always")]
    pub(crate) checksum: Checksum,
    /// How long.
    #[arg(long, default_value_t = 3000)]
    pub(crate) slice_ms: u32,
    /// Tells these blocks from those of other runs.
    #[arg(long, default_value_t = 0)]
    pub(crate) number: usize,
}

#[derive(Debug, Args)]
pub(crate) struct YardstickArgs {
    #[arg(long)]
    pub(crate) role: YardstickRole,
    #[arg(long)]
    pub(crate) bytes: u64,
    #[arg(long, default_value_t = 0)]
    pub(crate) port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum YardstickRole {
    Owner,
    Reader,
}

fn transport(word: &str) -> Result<Transport, &'static str> {
    let named = |transport: &Transport| transport.as_str() == word;
    let found = Transport::ALL.into_iter().find(named);
    found.ok_or("tcp, tcp-tls, shm or rdma")
}

/// As outcomes of agents that run already have it: they do not say whether it was by TLS.
fn way(word: &str) -> Result<Transport, &'static str> {
    let found = transport(word).ok().filter(|way| way.of_agent() == word);
    found.ok_or("tcp, shm or rdma")
}

/// What `--planes` is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a number of pieces and their size, such as 80x8KiB")]
struct NotPlanes;

fn planes(word: &str) -> Result<(u32, ByteSize), NotPlanes> {
    let parts = word.split_once('x').and_then(|(count, bytes)| {
        let count: u32 = count.trim().parse().ok()?;
        let bytes: ByteSize = bytes.trim().parse().ok()?;
        (count > 0 && bytes.0 > 0).then_some((count, bytes))
    });
    parts.ok_or(NotPlanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transports_have_the_names_that_reports_have() {
        assert_eq!(transport("tcp-tls"), Ok(Transport::TcpTls));
        assert!(transport("tls").is_err());
        assert_eq!(way("tcp"), Ok(Transport::Tcp));
        assert!(way("tcp-tls").is_err());
    }

    #[test]
    fn pieces_are_a_number_and_a_size() {
        assert_eq!(planes("80x8KiB"), Ok((80, ByteSize(8 << 10))));
        for wrong in ["80", "x8KiB", "0x8KiB", "80x", "80x0"] {
            assert!(planes(wrong).is_err(), "{wrong}");
        }
    }
}
