//! Counts instructions: one line per piece of work, beside an earlier run's where there is one.

use std::{fs, path::PathBuf, process::ExitCode};

use clap::Parser;
use kvferry_bench::instructions::{
    InstructionsError,
    count::{Count, change, count},
    work::Work,
};

/// The running program, also where its file was replaced meanwhile.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// Beyond this a count has changed: hash tables' seeds move counts by less from run to run.
const CHANGED: f64 = 0.03;

/// Counts instructions of small pieces of work with callgrind. Ends with 3 where one takes more than in
/// the earlier run.
#[derive(Debug, Parser)]
struct Args {
    /// An earlier run with --json, to compare with.
    #[arg(long)]
    before: Option<PathBuf>,
    /// A JSON object a line.
    #[arg(long)]
    json: bool,
    /// Only do this piece of work, and count nothing.
    #[arg(long, hide = true, requires = "times")]
    work: Option<Work>,
    /// How often.
    #[arg(long, hide = true)]
    times: Option<u32>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode, InstructionsError> {
    if let (Some(work), Some(times)) = (args.work, args.times) {
        work.run(times)?;
        return Ok(ExitCode::SUCCESS);
    }
    let before = match &args.before {
        Some(path) => earlier(path)?,
        None => Vec::new(),
    };
    let program = fs::read_link(THIS_PROGRAM).unwrap_or_else(|_| THIS_PROGRAM.into());
    let mut more = false;
    for work in Work::ALL {
        let now = count(&program, work)?;
        let then = before.iter().find(|count| count.name == now.name);
        let moved = then.map(|then| change(then, &now));
        more |= moved.is_some_and(|share| share > CHANGED);
        if args.json {
            println!("{}", serde_json::to_string(&now)?);
        } else {
            let moved = moved.map_or_else(String::new, |share| format!("{:+.1} %", 100.0 * share));
            println!(
                "{:<10} {:>10.1} instructions a {:<6} {moved}",
                now.name, now.instructions, now.per
            );
        }
    }
    Ok(if more {
        ExitCode::from(3)
    } else {
        ExitCode::SUCCESS
    })
}

fn earlier(path: &PathBuf) -> Result<Vec<Count>, InstructionsError> {
    let text = fs::read_to_string(path).map_err(|source| InstructionsError::Earlier {
        path: path.clone(),
        source,
    })?;
    text.lines()
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}
