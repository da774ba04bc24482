//! Prints the coordinator's figures.

use std::{process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};
use kvferry_bench::{
    BenchError, in_process,
    locate::{self, Load, Reader},
    memory, publish,
    report::{Figure, Format},
    server::Server,
    stats::Rounds,
    vanish,
    workload::Workload,
};

/// Measures a coordinator: locate, publish, memory, a vanishing node, and the index without a wire.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// Distinct blocks; k, M and G count in thousands.
    #[arg(long, default_value = "10M", value_parser = count)]
    blocks: u64,
    /// Nodes that hold them.
    #[arg(long, default_value_t = 8)]
    nodes: u64,
    /// Blocks of the in-process look-up, where it is asked for.
    #[arg(long, default_value = "100M", value_parser = count)]
    in_process_blocks: u64,
    /// Rounds a figure is the median of.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds a round.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Worker threads of the coordinator.
    #[arg(long, default_value_t = 2)]
    server_threads: usize,
    /// Worker threads of all clients together.
    #[arg(long, default_value_t = 2)]
    client_threads: usize,
    /// Connections of readers.
    #[arg(long, default_value_t = 4)]
    connections: u64,
    /// Requests under way on each connection, for requests of 64 and 1,000 hashes.
    #[arg(long, default_value_t = 2)]
    in_flight: u64,
    /// How much work readers do themselves.
    #[arg(long, value_enum, default_values_t = [Reader::Full, Reader::Light])]
    reader: Vec<Reader>,
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Publish, Part::Locate, Part::Vanish])]
    parts: Vec<Part>,
    /// JSON lines in place of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Publish through sessions, and what it takes in memory.
    Publish,
    /// Locate of 1,000, 64 and 1.
    Locate,
    /// A node with half of the blocks goes.
    Vanish,
    /// Random look-ups without a wire.
    InProcess,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coordinator-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), BenchError> {
    let clients = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(options.client_threads)
        .thread_name("clients")
        .enable_all()
        .build()?;
    let wants = |part| options.parts.contains(&part);
    if wants(Part::Publish) || wants(Part::Locate) {
        clients.block_on(publish_and_locate(options))?;
    }
    if wants(Part::Vanish) {
        clients.block_on(vanishing(options))?;
    }
    if wants(Part::InProcess) {
        without_wire(options)?;
    }
    Ok(())
}

async fn publish_and_locate(options: &Options) -> Result<(), BenchError> {
    let workload = Workload {
        blocks: options.blocks,
        nodes: options.nodes,
        first_node_blocks: None,
    };
    let before = memory::resident_bytes();
    let server = Server::start(options.server_threads, 4 * options.blocks + 1_000_000)?;
    let (agents, blocks, time) = publish::publish_all(&server.url(), workload).await?;
    let counted = publish::count(&mut publish::client(&server.url()).await?).await?;
    if counted != blocks {
        let text = format!("{counted} blocks in the directory, {blocks} published");
        return Err(BenchError::Wrong(text));
    }
    let grown = memory::resident_bytes().saturating_sub(before) as f64 / blocks as f64;
    let speed = Rounds::from_iter([blocks as f64 / time.as_secs_f64()]);
    let note = format!("{blocks} blocks on {} nodes, one round", options.nodes);
    let figure = Figure::new("publish through sessions", &speed, "blocks/s");
    show(options, &figure.target(4e6).note(note));
    let memory = Rounds::from_iter([grown]);
    let figure = Figure::new("resident memory, clients' included", &memory, "B/block");
    show(options, &figure.target(80.0));
    if options.parts.contains(&Part::Locate) {
        for reader in &options.reader {
            locates(options, &server.url(), *reader).await?;
        }
    }
    drop(agents);
    tokio::task::block_in_place(|| drop(server));
    Ok(())
}

async fn locates(options: &Options, url: &str, reader: Reader) -> Result<(), BenchError> {
    for (hashes, in_flight, target) in [
        (1_000, options.in_flight, 10e6),
        (64, options.in_flight, 3e6),
        (1, 1, 50e3),
    ] {
        let load = Load {
            first: 0,
            blocks: options.blocks,
            hashes,
            connections: if hashes == 1 { 4 } else { options.connections },
            in_flight,
            time: Duration::from_secs_f64(options.seconds),
            reader,
        };
        let (mut speed, mut p50, mut p99) =
            (Rounds::default(), Rounds::default(), Rounds::default());
        for _ in 0..options.rounds {
            let mut outcome = locate::run(url, load).await?;
            speed.push(match hashes {
                1 => outcome.requests_per_second(),
                _ => outcome.hashes_per_second(),
            });
            p50.push(outcome.samples.percentile(0.5).as_secs_f64() * 1e3);
            p99.push(outcome.samples.percentile(0.99).as_secs_f64() * 1e3);
        }
        let unit = if hashes == 1 {
            "requests/s"
        } else {
            "hashes/s"
        };
        let name = format!("locate of {hashes}, {reader:?} reader").to_lowercase();
        let note = format!("{} connections x {in_flight}", load.connections);
        show(
            options,
            &Figure::new(&name, &speed, unit).target(target).note(note),
        );
        show(options, &Figure::new(format!("{name}: p50"), &p50, "ms"));
        let p99 = Figure::new(format!("{name}: p99"), &p99, "ms");
        show(options, &if hashes == 1 { p99.target(0.5) } else { p99 });
    }
    Ok(())
}

async fn vanishing(options: &Options) -> Result<(), BenchError> {
    let half = options.blocks / 2;
    let workload = Workload {
        blocks: options.blocks,
        nodes: options.nodes,
        first_node_blocks: Some(half),
    };
    let server = Server::start(options.server_threads, 8 * options.blocks + 1_000_000)?;
    let (mut agents, ..) = publish::publish_all(&server.url(), workload).await?;
    if let Some(agent) = agents.first_mut() {
        let mut seen = vanish::run(&server.url(), workload, agent).await?;
        let one = |time: Duration| Rounds::from_iter([time.as_secs_f64() * 1e3]);
        let note = format!(
            "{half} of {} blocks, goodbye to first answer without",
            options.blocks
        );
        let figure = Figure::new("vanished node invisible", &one(seen.invisible), "ms");
        show(options, &figure.target(1.0).note(note));
        show(
            options,
            &Figure::new("vanished node purged", &one(seen.purged), "ms"),
        );
        let before = one(seen.before.percentile(0.99));
        show(
            options,
            &Figure::new("locate of 64: p99 before it goes", &before, "ms"),
        );
        let p99 = one(seen.meanwhile.percentile(0.99));
        let note = format!("{} requests", seen.meanwhile.len());
        let figure = Figure::new("locate of 64: p99 until purged", &p99, "ms");
        show(options, &figure.target(2.0).note(note));
        let worst = one(seen.meanwhile.percentile(1.0));
        show(
            options,
            &Figure::new("locate of 64: worst until purged", &worst, "ms"),
        );
    }
    drop(agents);
    tokio::task::block_in_place(|| drop(server));
    Ok(())
}

fn without_wire(options: &Options) -> Result<(), BenchError> {
    let workload = Workload {
        blocks: options.in_process_blocks,
        nodes: options.nodes,
        first_node_blocks: None,
    };
    let time = Duration::from_secs_f64(options.seconds);
    let figures = in_process::run(workload, options.rounds, time)?;
    let note = format!(
        "{} blocks, one core's CPU time, batches of 32,768",
        workload.blocks
    );
    let figure = Figure::new("in process: random look-up", &figures.lookups, "hashes/s");
    show(options, &figure.target(20e6).note(note));
    let inserts = Rounds::from_iter([figures.inserts]);
    show(
        options,
        &Figure::new("in process: publish", &inserts, "blocks/s"),
    );
    let memory = Rounds::from_iter([figures.bytes_per_block]);
    let figure = Figure::new("in process: resident memory", &memory, "B/block");
    show(options, &figure.target(80.0));
    Ok(())
}

fn show(options: &Options, figure: &Figure) {
    figure.print(if options.json {
        Format::Json
    } else {
        Format::Text
    });
}

/// "10M", "5k", "1000".
fn count(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.strip_suffix(['k', 'M', 'G']) {
        Some(digits) if text.ends_with('k') => (digits, 1_000),
        Some(digits) if text.ends_with('M') => (digits, 1_000_000),
        Some(digits) => (digits, 1_000_000_000),
        None => (text, 1),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{text:?} is no count"))?;
    number.checked_mul(factor).ok_or_else(|| "too many".into())
}
