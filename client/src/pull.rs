//! A pull: asks the agent, hands on what it says, and ends whatever happens.

use std::{sync::Arc, time::Duration};

use kvferry_proto::pb;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::{Cause, Connection, Failure};

/// The agent gives every outcome by the pull's timeout; this long after it, it has stopped.
const GRACE: Duration = Duration::from_secs(2);

/// Why a block has no outcome of the agent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// The pull was given up.
    Cancelled,
    /// The agent gave none by the deadline.
    TimedOut,
    /// The agent refused the whole pull. Nothing was written.
    Refused,
    /// The connection to the agent ended meanwhile.
    AgentLost,
    /// The agent ended the pull without it.
    Unknown,
}

/// Who is told what becomes of a pull.
pub trait PullSink: Send + Sync + 'static {
    /// The agent said this. A block's second outcome is not to be believed, nor one for a block that was not asked for.
    fn add(self: &Arc<Self>, outcomes: Vec<pb::BlockOutcome>);

    /// Of every block without an outcome so far, so many of the request's stages have landed. Never fewer than before; not
    /// called where none were asked for.
    fn landed(self: &Arc<Self>, _stages: u32) {}

    /// The pull has ended. Blocks without an outcome get `rest`; `settled` false: their destinations may still be
    /// written to. Only the first end counts.
    fn finish(
        self: &Arc<Self>,
        end: Result<pb::PullSummary, Failure>,
        rest: Unanswered,
        settled: bool,
    );
}

/// Ends the pull also where the task is dropped.
struct Ending<S: PullSink>(Arc<S>);

impl<S: PullSink> Drop for Ending<S> {
    fn drop(&mut self) {
        let failure = Failure::new(Cause::Cancelled, "the pull was given up");
        self.0.finish(Err(failure), Unanswered::Cancelled, false);
    }
}

/// Runs a pull to its end, which comes by `timeout` and a grace of 2 seconds, or when it is cancelled or dropped.
pub async fn pull<S: PullSink>(
    connection: Connection,
    request: pb::PullRequest,
    timeout: Duration,
    cancel: CancellationToken,
    sink: Arc<S>,
) {
    let deadline = Instant::now() + timeout + GRACE;
    let ending = Ending(Arc::clone(&sink));
    tokio::select! {
        biased;
        // Dropping the stream tells the agent.
        () = cancel.cancelled() => {}
        ended = timeout_at(deadline, bring(&connection, request, &sink)) => {
            if ended.is_err() {
                let late = format!("agent {} gave no outcome by the pull's deadline", connection.agent);
                let failure = Failure::new(Cause::Deadline, late);
                sink.finish(Err(failure), Unanswered::TimedOut, false);
            }
        }
    }
    drop(ending);
}

async fn bring<S: PullSink>(connection: &Connection, request: pb::PullRequest, sink: &Arc<S>) {
    let mut stream = match connection.api().pull(request).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => {
            let failure = connection.refused(&status);
            // A refusal comes before anything was begun; a lost connection may come after.
            let (kind, settled) = match failure.cause {
                Cause::AgentLost => (Unanswered::AgentLost, false),
                _ => (Unanswered::Refused, true),
            };
            return sink.finish(Err(failure), kind, settled);
        }
    };
    let mut stages = 0;
    loop {
        match stream.message().await {
            Ok(Some(event)) => {
                sink.add(event.outcomes);
                if event.stages_landed > stages {
                    stages = event.stages_landed;
                    sink.landed(stages);
                }
                if let Some(summary) = event.summary {
                    // Whatever the agent left out may still be under way.
                    return sink.finish(Ok(summary), Unanswered::Unknown, false);
                }
            }
            Ok(None) => {
                let failure = Failure::lost(&connection.agent, "the pull's outcomes broke off");
                let kind = Unanswered::AgentLost;
                return sink.finish(Err(failure), kind, false);
            }
            Err(status) => {
                let failure = connection.refused(&status);
                let kind = Unanswered::AgentLost;
                return sink.finish(Err(failure), kind, false);
            }
        }
    }
}
