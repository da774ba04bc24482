//! `kvferry-simulate`: runs seeds, and says how to repeat the one that failed.

use std::{collections::BTreeSet, ops::Range, process::ExitCode, time::Instant};

use clap::Parser;
use kvferry_simulation::{
    Options, Report, Stats, World, run,
    sabotage::{self, Sabotage},
    shrink,
};

/// Simulates a whole cluster under one seed, with faults, and checks every promise.
#[derive(Debug, Parser)]
#[command(name = "kvferry-simulate", version)]
struct Args {
    /// The seed of one run.
    #[arg(long, default_value_t = 0, conflicts_with = "seeds")]
    seed: u64,
    /// Runs every seed from A to B: A..B.
    #[arg(long, value_parser = range)]
    seeds: Option<Range<u64>>,
    /// From the seed on, one after the other, until a promise breaks or somebody stops it.
    #[arg(long, conflicts_with = "seeds")]
    until_stopped: bool,
    /// Nodes of a world. Without it the seed says, from 2 to 8.
    #[arg(long)]
    nodes: Option<usize>,
    /// Virtual hours with faults. Without it half a minute.
    #[arg(long, value_parser = hours)]
    hours: Option<u64>,
    /// Virtual seconds with faults.
    #[arg(long, conflicts_with = "hours")]
    seconds: Option<u64>,
    /// Only these faults of the schedule, by number: 3,7,12. "none" for none.
    #[arg(long, value_parser = faults)]
    keep: Option<BTreeSet<usize>>,
    /// Puts a known bug back; "all": each in turn, and says how many seeds it took to catch it.
    #[arg(long)]
    sabotage: Option<String>,
    /// A failure is reported as it is.
    #[arg(long)]
    no_shrink: bool,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let parsed = text
        .split_once("..")
        .and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
    parsed.ok_or_else(|| format!("{text:?} is no range of seeds; write A..B"))
}

fn hours(text: &str) -> Result<u64, String> {
    match text.parse::<f64>() {
        Ok(hours) if (0.0..1e6).contains(&hours) => Ok((hours * 3600.0) as u64),
        _ => Err(format!("{text:?} is no number of hours")),
    }
}

fn faults(text: &str) -> Result<BTreeSet<usize>, String> {
    if text == "none" {
        return Ok(BTreeSet::new());
    }
    text.split(',')
        .map(|number| {
            number
                .parse()
                .map_err(|_| format!("{number:?} is no number of a fault"))
        })
        .collect()
}

impl Args {
    fn options(&self, seed: u64, sabotage: Option<Sabotage>) -> Options {
        let small = Options::small(seed);
        Options {
            nodes: self.nodes.unwrap_or(small.nodes),
            seconds: self.hours.or(self.seconds).unwrap_or(small.seconds),
            keep: self.keep.clone(),
            sabotage,
            ..small
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match args.sabotage.as_deref() {
        Some("all") => return catch_all(&args),
        Some(name) => match Sabotage::named(name) {
            Some(bug) => run_seeds(&args, Some(bug)),
            None => {
                let names: Vec<_> = sabotage::all().iter().map(|bug| bug.name).collect();
                eprintln!(
                    "there is no bug {name:?} in this build; there are: {}",
                    names.join(", ")
                );
                ExitCode::FAILURE
            }
        },
        None => run_seeds(&args, None),
    }
}

fn run_seeds(args: &Args, sabotage: Option<Sabotage>) -> ExitCode {
    let seeds = match (&args.seeds, args.until_stopped) {
        (Some(seeds), _) => seeds.clone(),
        (None, true) => args.seed..u64::MAX,
        (None, false) => args.seed..args.seed.saturating_add(1),
    };
    let began = Instant::now();
    let (mut sum, mut runs) = (Stats::default(), 0u64);
    for seed in seeds {
        let options = args.options(seed, sabotage);
        let report = run(&options);
        sum.add(report.stats);
        runs += 1;
        if report.violation.is_some() {
            failed(args, &options, &report);
            return ExitCode::FAILURE;
        }
        if args.seeds.is_none() && !args.until_stopped {
            println!(
                "seed {seed}: {} nodes, {} s",
                options.nodes, options.seconds
            );
            println!("digest {:016x}", report.digest);
        }
        if runs.is_multiple_of(1000) {
            println!("{runs} seeds in {} s: {sum}", began.elapsed().as_secs());
        }
    }
    println!("every promise held over {runs} seeds: {sum}");
    eprintln!("{:.1} s", began.elapsed().as_secs_f64());
    ExitCode::SUCCESS
}

fn failed(args: &Args, options: &Options, report: &Report) {
    println!("seed {}: digest {:016x}", report.seed, report.digest);
    if let Some(violation) = &report.violation {
        println!("BROKEN: {violation}");
    }
    println!("repeat it: {}", command(options));
    if args.no_shrink {
        return;
    }
    let (left, smallest) = shrink(options, report);
    println!("\n{} of {} faults are needed:", left.len(), report.faults);
    let world = World::new(options);
    for &index in &left {
        println!("  {index}: {:?}", world.faults()[index]);
    }
    if let Some(violation) = &smallest.violation {
        println!("BROKEN: {violation}");
    }
    let keep = Some(left.into_iter().collect());
    let options = Options {
        keep,
        ..options.clone()
    };
    println!("repeat it: {}", command(&options));
}

fn command(options: &Options) -> String {
    let mut command = format!(
        "kvferry-simulate --seed {} --nodes {} --seconds {}",
        options.seed, options.nodes, options.seconds
    );
    if let Some(keep) = &options.keep {
        let keep: Vec<_> = keep.iter().map(usize::to_string).collect();
        let keep = if keep.is_empty() {
            "none".to_owned()
        } else {
            keep.join(",")
        };
        command.push_str(&format!(" --keep {keep}"));
    }
    if let Some(bug) = options.sabotage {
        command.push_str(&format!(" --sabotage {}", bug.name));
    }
    command
}

/// Each known bug in turn.
fn catch_all(args: &Args) -> ExitCode {
    let mut missed = 0;
    for bug in sabotage::all() {
        let caught = (0..bug.within_seeds).find_map(|seed| {
            let violation = run(&args.options(seed, Some(bug))).violation?;
            let wanted = bug.breaks.is_empty() || bug.breaks.contains(&violation.promise);
            Some((seed, violation, wanted))
        });
        match caught {
            Some((seed, violation, wanted)) => {
                let note = if wanted {
                    ""
                } else {
                    " (by another promise than it should be)"
                };
                missed += usize::from(!wanted);
                println!("{}: caught by seed {seed}{note}: {violation}", bug.name);
            }
            None => {
                missed += 1;
                println!("{}: NOT caught within {} seeds", bug.name, bug.within_seeds);
            }
        }
    }
    match missed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
