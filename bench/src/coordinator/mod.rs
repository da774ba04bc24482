//! A coordinator's figures: publish, locate in a closed and an open loop, claims, watch, churn, a vanishing node, memory,
//! and the index without a wire.

pub mod html;
mod options;

use std::time::Duration;

use crate::{
    BenchError, churn, claims, in_process,
    locate::{self, Load, Reader},
    memory, open_loop, publish,
    report::Figure,
    server::Server,
    stats::{Rounds, Samples},
    vanish, watch,
    workload::Workload,
};

pub use options::{CountError, Options, Part, RangeError};

/// Slots beside those that are filled.
const SPARE_SLOTS: u64 = 1_000_000;

/// Measures what is asked for and hands figures out as they come. Blocks its thread, and starts threads of
/// its own for the coordinator and for clients.
///
/// # Errors
/// [`BenchError`].
pub fn run(options: &Options, mut show: impl FnMut(Figure)) -> Result<(), BenchError> {
    let clients = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(options.client_threads as usize)
        .thread_name("clients")
        .enable_all()
        .build()?;
    let wants = |part| options.wants(part);
    let published = [
        Part::Publish,
        Part::Locate,
        Part::Open,
        Part::Claims,
        Part::Watch,
    ];
    if published.into_iter().any(wants) {
        clients.block_on(publish_and_locate(options, &mut show))?;
    }
    if wants(Part::Churn) {
        clients.block_on(churning(options, &mut show))?;
    }
    if wants(Part::Vanish) {
        clients.block_on(vanishing(options, &mut show))?;
    }
    if wants(Part::InProcess) {
        without_wire(options, &mut show)?;
    }
    Ok(())
}

type Show<'a> = &'a mut dyn FnMut(Figure);

fn millis(time: Duration) -> Rounds {
    Rounds::from_iter([time.as_secs_f64() * 1e3])
}

async fn publish_and_locate(options: &Options, show: Show<'_>) -> Result<(), BenchError> {
    let workload = Workload {
        blocks: options.blocks(),
        nodes: options.nodes,
        first_node_blocks: None,
    };
    let before = memory::resident_bytes();
    let server = Server::start(
        options.server_threads as usize,
        4 * options.blocks() + SPARE_SLOTS,
    )?;
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
    show(figure.target(4e6).note(note));
    let memory = Rounds::from_iter([grown]);
    let figure = Figure::new("resident memory, clients' included", &memory, "B/block");
    show(figure.target(80.0));
    if options.wants(Part::Locate) {
        for reader in &options.reader {
            locates(options, &server.url(), *reader, show).await?;
        }
    }
    if options.wants(Part::Open) {
        at_a_rate(options, &server.url(), show).await?;
    }
    if options.wants(Part::Claims) {
        claiming(options, &server.url(), workload, show).await?;
    }
    // The last one, for it changes what is where.
    let time = Duration::from_secs_f64(options.seconds());
    if options.wants(Part::Watch) {
        watching(&server.url(), workload, agents, time, show).await?;
    }
    tokio::task::block_in_place(|| drop(server));
    Ok(())
}

async fn claiming(
    options: &Options,
    url: &str,
    workload: Workload,
    show: Show<'_>,
) -> Result<(), BenchError> {
    let time = Duration::from_secs_f64(options.seconds());
    let (mut speed, mut p50, mut p99) = (Rounds::default(), Rounds::default(), Rounds::default());
    let mut shares = [0; 3];
    for _ in 0..options.rounds() {
        let mut seen = claims::run(url, workload, time).await?;
        speed.push(seen.hashes_per_second());
        p50.push(seen.samples.percentile(0.5).as_secs_f64() * 1e3);
        p99.push(seen.samples.percentile(0.99).as_secs_f64() * 1e3);
        let round = [seen.granted, seen.refused, seen.stored];
        shares = std::array::from_fn(|n| shares[n] + round[n]);
    }
    let [granted, refused, stored] = shares;
    let note = format!(
        "{} nodes; {granted} granted and released, {refused} another's, {stored} stored",
        options.nodes
    );
    show(Figure::new("claims of 64", &speed, "hashes/s").note(note));
    show(Figure::new("claims of 64: p50", &p50, "ms"));
    show(Figure::new("claims of 64: p99", &p99, "ms"));
    Ok(())
}

async fn watching(
    url: &str,
    workload: Workload,
    agents: Vec<publish::Agent>,
    time: Duration,
    show: Show<'_>,
) -> Result<(), BenchError> {
    let mut seen = watch::run(url, workload, agents, time).await?;
    let (copies, took) = seen.start;
    let speed = Rounds::from_iter([copies as f64 / took.as_secs_f64()]);
    let figure = Figure::new("watch: what is there at the start", &speed, "copies/s");
    show(figure.note(format!("{copies} copies, one watcher")));
    let (changes, took) = seen.changes;
    let speed = Rounds::from_iter([changes as f64 / took.as_secs_f64()]);
    let figure = Figure::new("watch: changes", &speed, "changes/s");
    show(figure.note(format!(
        "{} nodes replace 512 at a time",
        workload.nodes - 1
    )));
    let note = "one block replaced, from said to seen";
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let figure = Figure::new(
            format!("watch: {name}"),
            &millis(seen.seen_after.percentile(share)),
            "ms",
        );
        show(figure.note(note));
    }
    Ok(())
}

async fn locates(
    options: &Options,
    url: &str,
    reader: Reader,
    show: Show<'_>,
) -> Result<(), BenchError> {
    for &hashes in &options.hashes {
        let (in_flight, target) = match hashes {
            1 => (1, 50e3),
            2..=64 => (options.in_flight, 3e6),
            _ => (options.in_flight, 10e6),
        };
        let load = Load {
            first: 0,
            blocks: options.blocks(),
            hashes,
            connections: if hashes == 1 { 4 } else { options.connections },
            in_flight,
            time: Duration::from_secs_f64(options.seconds()),
            reader,
        };
        let (mut speed, mut p50, mut p99) =
            (Rounds::default(), Rounds::default(), Rounds::default());
        for _ in 0..options.rounds() {
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
        show(Figure::new(&name, &speed, unit).target(target).note(note));
        show(Figure::new(format!("{name}: p50"), &p50, "ms"));
        let p99 = Figure::new(format!("{name}: p99"), &p99, "ms");
        show(if hashes == 1 { p99.target(0.5) } else { p99 });
    }
    Ok(())
}

/// What a reader waits who does not ask less when answers are slow.
async fn at_a_rate(options: &Options, url: &str, show: Show<'_>) -> Result<(), BenchError> {
    let time = Duration::from_secs_f64(options.seconds());
    for hashes in [64, 1] {
        let load = Load {
            first: 0,
            blocks: options.blocks(),
            hashes,
            connections: options.connections,
            in_flight: 1,
            time,
            reader: Reader::Full,
        };
        let rate = match options.rate {
            Some(rate) => rate,
            None => locate::run(url, load).await?.requests_per_second() / 2.0,
        };
        let (mut reached, mut late) = (Rounds::default(), Rounds::default());
        let shares = [
            ("p50", 0.5),
            ("p99", 0.99),
            ("p99.9", 0.999),
            ("worst", 1.0),
        ];
        let mut times = shares.map(|_| Rounds::default());
        for _ in 0..options.rounds() {
            let mut outcome = open_loop::run(url, load, rate).await?;
            reached.push(outcome.requests_per_second());
            late.push(outcome.late.percentile(0.99).as_secs_f64() * 1e3);
            for (rounds, (_, share)) in times.iter_mut().zip(shares) {
                rounds.push(outcome.samples.percentile(share).as_secs_f64() * 1e3);
            }
        }
        let name = format!("open loop, locate of {hashes}");
        let note = format!("{rate:.0} asked for, {} connections", load.connections);
        show(Figure::new(&name, &reached, "requests/s").note(note));
        for (rounds, (share, _)) in times.iter().zip(shares) {
            let figure = Figure::new(format!("{name}: {share}"), rounds, "ms");
            show(figure.note("from when it was due"));
        }
        let figure = Figure::new(format!("{name}: sent late, p99"), &late, "ms");
        show(figure.note("the load generator's own part of it"));
    }
    Ok(())
}

async fn churning(options: &Options, show: Show<'_>) -> Result<(), BenchError> {
    let workload = Workload {
        blocks: options.blocks(),
        nodes: options.nodes,
        first_node_blocks: Some(options.blocks() / 2),
    };
    let time = Duration::from_secs_f64(options.seconds());
    let slots = 8 * options.blocks() + SPARE_SLOTS;
    let server = Server::start(options.server_threads as usize, slots)?;
    let (mut agents, ..) = publish::publish_all(&server.url(), workload).await?;
    let mut speed = Rounds::default();
    let (mut before, mut meanwhile) = (Samples::default(), Samples::default());
    for _ in 0..options.rounds() {
        let (again, seen) = churn::run(&server.url(), workload, agents, time).await?;
        agents = again;
        speed.push(seen.replaced as f64 / seen.time.as_secs_f64());
        before.merge(seen.before);
        meanwhile.merge(seen.meanwhile);
    }
    let note = format!(
        "{} nodes, each a block out and a block in",
        options.nodes - 1
    );
    show(Figure::new("churn", &speed, "blocks replaced/s").note(note));
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        for (when, samples) in [("before", &mut before), ("meanwhile", &mut meanwhile)] {
            let name = format!("churn, locate of 64: {name} {when}");
            show(Figure::new(name, &millis(samples.percentile(share)), "ms"));
        }
    }
    drop(agents);
    tokio::task::block_in_place(|| drop(server));
    Ok(())
}

async fn vanishing(options: &Options, show: Show<'_>) -> Result<(), BenchError> {
    let half = options.blocks() / 2;
    let workload = Workload {
        blocks: options.blocks(),
        nodes: options.nodes,
        first_node_blocks: Some(half),
    };
    let server = Server::start(
        options.server_threads as usize,
        8 * options.blocks() + SPARE_SLOTS,
    )?;
    let (mut agents, ..) = publish::publish_all(&server.url(), workload).await?;
    let quiet = Duration::from_secs_f64(options.seconds());
    if let Some(agent) = agents.first_mut() {
        let mut seen = vanish::run(&server.url(), workload, agent, quiet).await?;
        let one = millis;
        let note = format!(
            "{half} of {} blocks, goodbye to first answer without",
            options.blocks()
        );
        let figure = Figure::new("vanished node invisible", &one(seen.invisible), "ms");
        show(figure.target(1.0).note(note));
        let figure = Figure::new(
            "the same question before: p50",
            &one(seen.probe.percentile(0.5)),
            "ms",
        );
        show(figure.note("a round trip under this load: part of the above"));
        show(Figure::new("vanished node purged", &one(seen.purged), "ms"));
        let before = one(seen.before.percentile(0.99));
        show(Figure::new(
            "locate of 64: p99 before it goes",
            &before,
            "ms",
        ));
        let p99 = one(seen.meanwhile.percentile(0.99));
        let note = format!("{} requests", seen.meanwhile.len());
        let figure = Figure::new("locate of 64: p99 until purged", &p99, "ms");
        show(figure.target(2.0).note(note));
        let worst = one(seen.meanwhile.percentile(1.0));
        show(Figure::new(
            "locate of 64: worst until purged",
            &worst,
            "ms",
        ));
    }
    drop(agents);
    tokio::task::block_in_place(|| drop(server));
    Ok(())
}

fn without_wire(options: &Options, show: Show<'_>) -> Result<(), BenchError> {
    let workload = Workload {
        blocks: options.in_process_blocks,
        nodes: options.nodes,
        first_node_blocks: None,
    };
    let time = Duration::from_secs_f64(options.seconds());
    let figures = in_process::run(workload, options.rounds(), time)?;
    let note = format!(
        "{} blocks, one core's CPU time, batches of 32,768",
        workload.blocks
    );
    let figure = Figure::new("in process: random look-up", &figures.lookups, "hashes/s");
    show(figure.target(20e6).note(note));
    let lines = &figures.random_lines;
    let figure = Figure::new(
        "yardstick: random cache lines, huge pages",
        lines,
        "lines/s",
    );
    show(figure.note("a look-up takes 2.5 of them, and its own work"));
    let (marked, blocks) = figures.marked_gone;
    let figure = Figure::new("in process: a node marked gone", &millis(marked), "ms");
    show(
        figure
            .target(1.0)
            .note(format!("it held {blocks} blocks; invisible from then on")),
    );
    let inserts = Rounds::from_iter([figures.inserts]);
    show(Figure::new("in process: publish", &inserts, "blocks/s"));
    let memory = Rounds::from_iter([figures.bytes_per_block]);
    let figure = Figure::new("in process: resident memory", &memory, "B/block");
    show(figure.target(80.0));
    Ok(())
}
