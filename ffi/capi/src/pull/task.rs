//! A pull's task: asks the agent, hands on what it says, and ends the pull whatever happens.

use std::{sync::Arc, time::Duration};

use kvferry_proto::pb;
use tokio::time::{Instant, timeout_at};

use super::{state::Shared, words::kvf_outcome_kind};
use crate::{connection::Connection, error::Failure, kvf_status};

/// The agent gives every outcome by the pull's timeout; this long after it, it has stopped.
const GRACE: Duration = Duration::from_secs(2);

/// Ends the pull also where the task is dropped.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        let (failure, kind) = given_up();
        self.0.finish(Err(failure), kind, false);
    }
}

fn given_up() -> (Failure, kvf_outcome_kind) {
    (
        Failure::new(kvf_status::KVF_CANCELLED, "the pull was given up"),
        kvf_outcome_kind::KVF_OUTCOME_CANCELLED,
    )
}

pub(super) async fn run(
    connection: Connection,
    request: pb::PullRequest,
    timeout: Duration,
    shared: Arc<Shared>,
) {
    let deadline = Instant::now() + timeout + GRACE;
    let ending = Ending(Arc::clone(&shared));
    tokio::select! {
        biased;
        // Dropping the stream tells the agent.
        () = shared.cancel.cancelled() => {}
        ended = timeout_at(deadline, bring(&connection, request, &shared)) => {
            if ended.is_err() {
                let late = format!("agent {} gave no outcome by the pull's deadline", connection.agent);
                let failure = Failure::new(kvf_status::KVF_DEADLINE, late);
                shared.finish(Err(failure), kvf_outcome_kind::KVF_OUTCOME_TIMED_OUT, false);
            }
        }
    }
    drop(ending);
}

async fn bring(connection: &Connection, request: pb::PullRequest, shared: &Arc<Shared>) {
    let mut stream = match connection.api().pull(request).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => {
            let failure = connection.refused(&status);
            // A refusal comes before anything was begun; a lost connection may come after.
            let (kind, settled) = match failure.status {
                kvf_status::KVF_AGENT_LOST => (kvf_outcome_kind::KVF_OUTCOME_AGENT_LOST, false),
                _ => (kvf_outcome_kind::KVF_OUTCOME_REFUSED, true),
            };
            return shared.finish(Err(failure), kind, settled);
        }
    };
    loop {
        match stream.message().await {
            Ok(Some(event)) => {
                shared.add(event.outcomes);
                if let Some(summary) = event.summary {
                    // Whatever the agent left out may still be under way.
                    return shared.finish(
                        Ok(summary),
                        kvf_outcome_kind::KVF_OUTCOME_UNKNOWN,
                        false,
                    );
                }
            }
            Ok(None) => {
                let failure = Failure::lost(&connection.agent, "the pull's outcomes broke off");
                let kind = kvf_outcome_kind::KVF_OUTCOME_AGENT_LOST;
                return shared.finish(Err(failure), kind, false);
            }
            Err(status) => {
                let failure = connection.refused(&status);
                let kind = kvf_outcome_kind::KVF_OUTCOME_AGENT_LOST;
                return shared.finish(Err(failure), kind, false);
            }
        }
    }
}
