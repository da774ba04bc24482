//! `kvferry bench coordinator`: how many questions one coordinator answers, and how soon.

use std::{fs, thread};

use kvferry_bench::{
    coordinator::{self, Options, html},
    report::{Figure, HEADINGS},
};
use tokio::sync::mpsc;

use super::{BenchError, file_error, machine};
use crate::{failure::Done, output, shutdown};

pub(super) async fn measure(options: Options) -> Result<Done, BenchError> {
    let interrupted = shutdown::requested(false).map_err(BenchError::Signals)?;
    let (json, report, mut all) = (options.json, options.report.clone(), Vec::new());
    let (figures, mut coming) = mpsc::unbounded_channel();
    // It has runtimes of its own, for the coordinator and for clients; on an interrupt they end with
    // the process.
    let run = thread::spawn(move || {
        coordinator::run(&options, |figure| {
            // Nobody listens any more after an interrupt.
            let _ = figures.send(figure);
        })
    });
    let collect = async {
        while let Some(figure) = coming.recv().await {
            if json {
                output::json_line(&figure)?;
            }
            all.push(figure);
        }
        Ok::<_, BenchError>(())
    };
    tokio::select! {
        collected = collect => collected?,
        () = interrupted => return Err(BenchError::Interrupted),
    }
    match tokio::task::block_in_place(|| run.join()) {
        Ok(ended) => ended?,
        Err(panic) => std::panic::resume_unwind(panic),
    }
    if !json {
        let rows = all.iter().map(Figure::row).collect();
        output::rows(HEADINGS, rows, "no figures")?;
    }
    if let Some(path) = &report {
        let page = html::page(&all, &machine());
        fs::write(path, page).map_err(|source| file_error(path, source))?;
    }
    Ok(Done::All)
}
