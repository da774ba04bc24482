//! Wears a coordinator for some minutes, prints its memory's curve, and says whether it is flat.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use kvferry_bench::{
    BenchError,
    soak::{
        self, Outcome, Plan,
        fit::Verdict,
        sample::Sample,
        server::{self, ServerProcess},
    },
};
use serde_json::json;

/// An hour's churn in minutes: nodes publish, evict, vanish and return, claim, put locations that
/// expire; watchers come and go; copies are wished for. Ends with 0 where the coordinator's memory is
/// flat over the last half and nothing is left after all have gone.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// For how long.
    #[arg(long, default_value_t = 6.0)]
    minutes: f64,
    /// Nodes at a time.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    nodes: u32,
    /// Slots of each.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    blocks_per_node: u32,
    /// What nodes draw.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Looks at the coordinator.
    #[arg(long, default_value_t = 360, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    samples: u32,
    /// Worker threads of the coordinator.
    #[arg(long, default_value_t = 2)]
    server_threads: usize,
    /// JSON lines in place of a table.
    #[arg(long)]
    json: bool,
    /// Be the coordinator.
    #[arg(long, hide = true)]
    serve: bool,
}

/// Rows of the table; JSON has all samples.
const ROWS: u32 = 36;

fn main() -> ExitCode {
    let options = Options::parse();
    let ended = match options.serve {
        true => server::serve(options.server_threads).map(|()| true),
        false => wear(&options),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("coordinator-soak: {error}");
            // Not that it grows: nothing is known.
            ExitCode::from(2)
        }
    }
}

fn wear(options: &Options) -> Result<bool, BenchError> {
    let plan = Plan {
        time: Duration::from_secs_f64(options.minutes.clamp(0.01, 10_000.0) * 60.0),
        nodes: options.nodes,
        blocks_per_node: options.blocks_per_node,
        seed: options.seed,
        samples: options.samples,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        let program = std::env::current_exe()?;
        let threads = options.server_threads.to_string();
        let arguments = ["--serve", "--server-threads", &threads];
        let server = ServerProcess::start(&program, &arguments).await?;
        if !options.json {
            println!("{HEADINGS}");
        }
        let mut looks = 0u32;
        let every = (options.samples / ROWS).max(1);
        let shown = |sample: &Sample| {
            if options.json {
                print_json(&json!({ "sample": sample }));
            } else if looks.is_multiple_of(every) {
                println!("{}", row(sample));
            }
            looks += 1;
        };
        soak::run(&server.target, plan, shown).await
    })?;
    if options.json {
        print_json(&json!({ "after": outcome.after }));
        print_json(&json!({
            "verdict": outcome.verdict(),
            "settled": outcome.settled(),
            "fit": outcome.fit,
            "done": outcome.done,
        }));
    } else {
        tell(&outcome);
    }
    Ok(outcome.verdict() == Verdict::Flat && outcome.settled())
}

fn print_json(value: &serde_json::Value) {
    println!("{value}");
}

const HEADINGS: &str = "      s   RSS MB  files   blocks   copies nodes hidden sessions namesp.   claims locations  wishes orders";

fn row(sample: &Sample) -> String {
    format!(
        "{:>7.1} {:>8.1} {:>6} {:>8} {:>8} {:>5} {:>6} {:>8} {:>7} {:>8} {:>9} {:>7} {:>6}",
        sample.at_s,
        sample.resident_bytes as f64 / 1e6,
        sample.files,
        sample.blocks,
        sample.copies,
        sample.nodes,
        sample.hidden,
        sample.sessions,
        sample.namespaces,
        sample.claims,
        sample.locations,
        sample.wishes,
        sample.orders,
    )
}

fn tell(outcome: &Outcome) {
    println!("{}  after all have left", row(&outcome.after));
    println!();
    for (kind, count) in &outcome.done {
        println!("{kind:<16} {count:>12}");
    }
    println!();
    if let Some(fit) = &outcome.fit {
        println!(
            "last half: {} looks in {:.0} s, mean {:.2} MB, growth {:+.2} MB (standard error {:.2} MB), noise {:.2} MB",
            fit.points,
            fit.span_s,
            fit.mean / 1e6,
            fit.growth / 1e6,
            fit.growth_error / 1e6,
            fit.noise / 1e6,
        );
    }
    let curve = match outcome.verdict() {
        Verdict::Flat => "flat",
        Verdict::Growing => "NOT flat: it grows",
        Verdict::Unclear => "not shown to be flat: too noisy or too short, run longer",
    };
    let left = match outcome.settled() {
        true => "nothing is left",
        false => "NOT all is gone: see the last row",
    };
    println!("memory: {curve}; after all have left: {left}");
}
