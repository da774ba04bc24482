//! `kvferry bench coordinator`: how many questions one coordinator answers, and how soon.

use std::thread;

use kvferry_bench::{
    coordinator::{self, Options},
    report,
};
use tokio::sync::mpsc;

use super::BenchError;
use crate::{failure::Done, output, shutdown};

pub(super) async fn measure(options: Options) -> Result<Done, BenchError> {
    let interrupted = shutdown::requested(false).map_err(BenchError::Signals)?;
    let (json, mut rows) = (options.json, Vec::new());
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
            match json {
                true => output::json_line(&figure)?,
                false => rows.push(figure.row()),
            }
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
        output::rows(report::HEADINGS, rows, "no figures")?;
    }
    Ok(Done::All)
}
