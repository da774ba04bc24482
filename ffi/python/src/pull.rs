//! A pull under way.

use std::{os::fd::RawFd, sync::Arc, time::Duration};

use kvferry_client::{Connection, Failure, PullSink, Unanswered};
use kvferry_proto::pb;
use parking_lot::Mutex;
use pyo3::{prelude::*, types::PyTuple};
use tokio_util::sync::CancellationToken;

use crate::{ended::Ended, failure::raise, stages::Stages};

/// What Python makes an outcome of: index, kind, region, slot, generation, source_node, transport, detail, settled.
type Told<'py> = Bound<'py, PyTuple>;

/// Numbers of outcomes that are not the agent's, as in the C API.
fn number(unanswered: Unanswered) -> i32 {
    match unanswered {
        Unanswered::Cancelled => pb::OutcomeKind::Cancelled.into(),
        Unanswered::TimedOut => pb::OutcomeKind::TimedOut.into(),
        Unanswered::Refused => 64,
        Unanswered::AgentLost => 65,
        Unanswered::Unknown => 66,
    }
}

#[derive(Default)]
struct Blocks {
    /// In the order they came.
    outcomes: Vec<pb::BlockOutcome>,
    /// Per hash: it has its outcome.
    answered: Vec<bool>,
    /// How many of the outcomes `poll` has given.
    told: usize,
    ended: bool,
    told_end: bool,
}

impl Blocks {
    fn add(&mut self, outcome: pb::BlockOutcome) {
        match self.answered.get_mut(outcome.index as usize) {
            Some(answered) if !*answered => *answered = true,
            _ => return,
        }
        self.outcomes.push(outcome);
    }

    fn has_news(&self) -> bool {
        self.told < self.outcomes.len() || (self.ended && !self.told_end)
    }
}

struct Shared {
    blocks: Mutex<Blocks>,
    stages: Stages,
    ended: Ended<pb::PullSummary>,
}

impl PullSink for Shared {
    fn add(self: &Arc<Self>, outcomes: Vec<pb::BlockOutcome>) {
        let mut blocks = self.blocks.lock();
        for outcome in outcomes {
            blocks.add(outcome);
        }
        self.ended.set_readable(blocks.has_news());
    }

    /// After the outcomes that were told with it.
    fn landed(self: &Arc<Self>, stages: u32) {
        self.stages.land(stages);
    }

    fn finish(
        self: &Arc<Self>,
        end: Result<pb::PullSummary, Failure>,
        rest: Unanswered,
        settled: bool,
    ) {
        let mut blocks = self.blocks.lock();
        if blocks.ended {
            return;
        }
        blocks.ended = true;
        let detail = end.as_ref().err().map_or_else(
            || "the agent gave no outcome for this block".to_owned(),
            |failure| failure.message.clone(),
        );
        for index in 0..blocks.answered.len() as u32 {
            blocks.add(pb::BlockOutcome {
                index,
                kind: number(rest),
                settled,
                detail: detail.clone(),
                ..pb::BlockOutcome::default()
            });
        }
        // Under the lock, so that `poll` cannot have told the end before the descriptor says that there is one.
        self.ended.finish(end);
        self.stages.end();
    }
}

/// A pull under way: `kvferry.Pull` is made of it.
#[pyclass(frozen, module = "kvferry._native")]
pub(crate) struct Pull {
    shared: Arc<Shared>,
    cancel: CancellationToken,
}

impl Pull {
    /// Starts one, cancelled with the parent.
    pub(crate) fn start(
        connection: Connection,
        parent: &CancellationToken,
        request: pb::PullRequest,
        blocks: usize,
        timeout: Duration,
    ) -> Self {
        let shared = Arc::new(Shared {
            blocks: Mutex::new(Blocks {
                outcomes: Vec::with_capacity(blocks),
                answered: vec![false; blocks],
                ..Blocks::default()
            }),
            stages: Stages::default(),
            ended: Ended::new(),
        });
        let cancel = parent.child_token();
        if blocks == 0 {
            // Of no hashes the length is not known.
            shared.finish(Ok(pb::PullSummary::default()), Unanswered::Unknown, true);
            return Self { shared, cancel };
        }
        let runtime = connection.runtime().clone();
        let sink = Arc::clone(&shared);
        let token = cancel.clone();
        runtime.spawn(kvferry_client::pull(
            connection, request, timeout, token, sink,
        ));
        Self { shared, cancel }
    }
}

fn tell<'py>(py: Python<'py>, outcomes: &[pb::BlockOutcome]) -> PyResult<Vec<Told<'py>>> {
    let one = |it: &pb::BlockOutcome| {
        (
            it.index,
            it.kind,
            it.region,
            it.slot,
            it.generation,
            it.source_node.as_str(),
            it.transport.as_str(),
            it.detail.as_str(),
            it.settled,
        )
            .into_pyobject(py)
    };
    outcomes.iter().map(one).collect()
}

#[pymethods]
impl Pull {
    fn done(&self) -> bool {
        self.shared.ended.done()
    }

    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        self.shared.ended.wait(py, timeout)
    }

    /// (pulled, bytes, locate_us, connect_us, wire_us, total_us, pin), or raises why there is none.
    #[pyo3(signature = (timeout=None))]
    #[allow(clippy::type_complexity)] // a tuple for Python
    fn summary(
        &self,
        py: Python<'_>,
        timeout: Option<f64>,
    ) -> PyResult<(u64, u64, u64, u64, u64, u64, u64)> {
        let it = self.shared.ended.result(py, timeout)?;
        Ok((
            it.pulled,
            it.bytes,
            it.locate_us,
            it.connect_us,
            it.wire_us,
            it.total_us,
            it.pin,
        ))
    }

    /// Outcomes that were not given before.
    fn poll<'py>(&self, py: Python<'py>) -> PyResult<Vec<Told<'py>>> {
        let fresh = {
            let mut blocks = self.shared.blocks.lock();
            let fresh = blocks.outcomes.get(blocks.told..).unwrap_or_default();
            let fresh = fresh.to_vec();
            blocks.told = blocks.outcomes.len();
            blocks.told_end = blocks.ended;
            self.shared.ended.set_readable(false);
            fresh
        };
        tell(py, &fresh)
    }

    /// All that are there.
    fn outcomes<'py>(&self, py: Python<'py>) -> PyResult<Vec<Told<'py>>> {
        let all = self.shared.blocks.lock().outcomes.clone();
        tell(py, &all)
    }

    fn cancel(&self) {
        self.cancel.cancel();
    }

    fn stages_landed(&self) -> u32 {
        self.shared.stages.landed()
    }

    #[pyo3(signature = (stages, timeout=None))]
    fn wait_stages(&self, py: Python<'_>, stages: u32, timeout: Option<f64>) -> PyResult<bool> {
        self.shared.stages.wait(py, stages, timeout)
    }

    /// Calls `function(about)` when so many stages have landed, or at the end.
    fn subscribe_stages(
        &self,
        py: Python<'_>,
        stages: u32,
        function: Py<PyAny>,
        about: Py<PyAny>,
    ) -> PyResult<()> {
        self.shared.stages.subscribe(py, stages, function, about)
    }

    /// Calls `function(about)` at the end.
    fn subscribe(&self, py: Python<'_>, function: Py<PyAny>, about: Py<PyAny>) -> PyResult<()> {
        self.shared.ended.subscribe(py, function, about)
    }

    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        let event = self.shared.ended.event();
        event.map_err(|failure| raise(py, &failure))
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        // Whoever let go of it wants it no more.
        self.cancel.cancel();
    }
}
