//! Readers that ask at a fixed rate, whatever became of the questions before.
//!
//! A closed loop asks less when answers are slow, and so leaves out just the requests that would have
//! waited (coordinated omission). Here a request is due at its time, and its answer is timed from then: a
//! coordinator that stands still for a second makes a thousand requests late, and all of them count.

use std::{
    thread,
    time::{Duration, Instant},
};

use kvferry_proto::pb::coordinator_client::CoordinatorClient;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
};

use crate::{
    BenchError,
    locate::{Load, check, connect, request},
    stats::Samples,
    workload::mix,
};

/// Requests under way: a coordinator that is this far behind will not catch up. Those beyond wait for a
/// place, and their wait counts.
const MAX_UNDER_WAY: usize = 10_000;
/// How long answers may take after the last request was due.
const PATIENCE: Duration = Duration::from_secs(30);

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// From when each request was due to its answer.
    pub samples: Samples,
    /// From when each was due to when it was sent: what the load generator itself is late by.
    pub late: Samples,
    /// How long it took, answers included.
    pub time: Duration,
}

impl Outcome {
    /// Requests answered in a second.
    #[must_use]
    pub fn requests_per_second(&self) -> f64 {
        self.samples.len() as f64 / self.time.as_secs_f64()
    }
}

/// Asks `rate` times a second, for the load's time, on its connections in turn.
///
/// # Errors
/// [`BenchError`] when a call fails, an answer is short, or answers stay away.
pub async fn run(url: &str, load: Load, rate: f64) -> Result<Outcome, BenchError> {
    let mut channels = Vec::new();
    for _ in 0..load.connections.max(1) {
        channels.push(connect(url).await?);
    }
    let (answers, mut answered) = mpsc::unbounded_channel();
    let total = (load.time.as_secs_f64() * rate).ceil().max(1.0) as u64;
    let runtime = Handle::current();
    let places = std::sync::Arc::new(Semaphore::new(MAX_UNDER_WAY));
    let began = Instant::now();
    // A thread of its own: the runtime's timers go by milliseconds, and its workers are busy.
    let pace = thread::spawn(move || {
        for number in 0..total {
            let due = began + Duration::from_secs_f64(number as f64 / rate);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let place = std::sync::Arc::clone(&places).acquire_owned();
            let Ok(place) = runtime.block_on(place) else {
                return;
            };
            let channel = number as usize % channels.len();
            let Some(channel) = channels.get(channel).cloned() else {
                return;
            };
            let answers = answers.clone();
            runtime.spawn(async move {
                let late = due.elapsed();
                let asked = request(load, mix(number));
                let answer = CoordinatorClient::new(channel).locate(asked).await;
                let took = due.elapsed();
                let checked = answer
                    .map_err(BenchError::from)
                    .and_then(|answer| check(load, answer.into_inner().answered));
                // Nobody listens any more where an earlier request failed.
                let _ = answers.send(checked.map(|_| (late, took)));
                drop(place);
            });
        }
    });
    let mut outcome = Outcome::default();
    let end = began + load.time + PATIENCE;
    while (outcome.samples.len() as u64) < total {
        let answer = tokio::time::timeout_at(end.into(), answered.recv()).await;
        let Ok(Some(answer)) = answer else {
            let text = format!("{} of {total} answers came in time", outcome.samples.len());
            return Err(BenchError::Wrong(text));
        };
        let (late, took) = answer?;
        outcome.late.push(late);
        outcome.samples.push(took);
    }
    outcome.time = began.elapsed();
    tokio::task::block_in_place(|| pace.join()).ok();
    Ok(outcome)
}
