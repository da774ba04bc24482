//! How fast pulls between two agents that run already are: `tests/rdma` puts it beside `ib_read_bw`.
//!
//! Prints `figure BLOCK_BYTES MIB_PER_S`. Every byte that was pulled is compared.

use std::{path::PathBuf, time::Duration};

use clap::Parser;
use kvferry_agent::config::ByteSize;
use kvferry_bench::transfer::{
    AgentAt, TransferError,
    measure::{Fleet, speed},
    point::{Point, Transport},
};

#[derive(Debug, Parser)]
struct Args {
    /// The owner's directory: where its `agent.sock` is.
    #[arg(long)]
    owner: PathBuf,
    /// The reader's.
    #[arg(long)]
    reader: PathBuf,
    /// Over TCP instead of RDMA.
    #[arg(long)]
    tcp: bool,
    /// Bytes of a block.
    #[arg(long)]
    block_bytes: ByteSize,
    /// Bytes of a call.
    #[arg(long, default_value = "16MiB")]
    call_bytes: ByteSize,
    /// Calls at a time.
    #[arg(long, default_value_t = 1)]
    calls: u32,
    /// How long.
    #[arg(long, default_value_t = 3000)]
    slice_ms: u64,
    /// Blocks without checksums: cards only.
    #[arg(long)]
    no_checksum: bool,
    /// Tells this run's blocks from those of others.
    #[arg(long, default_value_t = 0)]
    number: usize,
}

#[tokio::main]
async fn main() -> Result<(), TransferError> {
    let args = Args::parse();
    let at = |directory: PathBuf| AgentAt {
        node: directory.display().to_string(),
        pid: std::process::id(),
        socket: directory.join("agent.sock"),
        descriptor_socket: directory.join("agent.sock.fds"),
    };
    let fleet = Fleet {
        owner: at(args.owner),
        readers: vec![at(args.reader)],
        coordinator: std::process::id(),
    };
    let transport = match args.tcp {
        true => Transport::Tcp,
        false => Transport::Rdma,
    };
    let block = args.block_bytes.0.max(1);
    let batch = u32::try_from((args.call_bytes.0 / block).max(1)).unwrap_or(u32::MAX);
    let point = Point {
        checksum: !args.no_checksum,
        in_flight: args.calls.max(1),
        ..Point::new(transport, block, batch)
    };
    let slice = Duration::from_millis(args.slice_ms);
    let rate = speed(&point, args.number, &fleet, slice).await?;
    println!("figure {block} {:.1}", rate / f64::from(1 << 20));
    Ok(())
}
