//! The coordinator's process: the benchmark's own program once more, so that its memory is nobody
//! else's.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::Duration,
};

use kvferry_coordinator::{Coordinator, CoordinatorConfig, MetricsListen};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::BenchError;

/// Signs of life, and what silence means: a tenth of the defaults, or a little more, since the
/// machine may be busy.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(200);
/// A silent node is hidden.
pub(super) const HIDE_AFTER: Duration = Duration::from_millis(1_000);
/// A silent node is forgotten.
pub const PURGE_AFTER: Duration = Duration::from_millis(3_000);
/// It binds two ports and says so: more is a fault, not slowness.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// A coordinator to be worn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Where it serves.
    pub url: String,
    /// Where its metrics are read.
    pub metrics: SocketAddr,
    /// Its process.
    pub pid: u32,
}

/// A coordinator's process; it ends with this.
#[derive(Debug)]
pub struct ServerProcess {
    /// Where it is.
    pub target: Target,
    _child: Child,
}

impl ServerProcess {
    /// Starts a program that calls [`serve`], and waits until it is ready.
    ///
    /// # Errors
    /// [`BenchError`] when it does not come up.
    pub async fn start(program: &Path, arguments: &[&str]) -> Result<Self, BenchError> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = child.stdout.take();
        let stdout = stdout.ok_or_else(|| io::Error::other("the coordinator has no stdout"))?;
        let mut line = String::new();
        let mut stdout = BufReader::new(stdout);
        let read = timeout(READY_WITHIN, stdout.read_line(&mut line)).await;
        read.map_err(|_| BenchError::Wrong("the coordinator does not come up".into()))??;
        let target = serde_json::from_str(&line)
            .map_err(|error| BenchError::Wrong(format!("announced {line:?}: {error}")))?;
        Ok(Self {
            target,
            _child: child,
        })
    }
}

/// Serves with compressed times, on free ports of loopback, until stdin closes.
///
/// # Errors
/// [`BenchError`] when nothing can be bound.
pub fn serve(threads: usize) -> Result<(), BenchError> {
    let millis = |time: Duration| time.as_millis() as u32;
    let coordinator = Coordinator::bind(&CoordinatorConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        listen_metrics: MetricsListen::At(([127, 0, 0, 1], 0).into()),
        heartbeat_interval_ms: millis(HEARTBEAT),
        hide_after_ms: millis(HIDE_AFTER),
        purge_after_ms: millis(PURGE_AFTER),
        ..CoordinatorConfig::default()
    })?;
    let metrics = coordinator.metrics_addr();
    let target = Target {
        url: format!("http://{}", coordinator.local_addr()),
        metrics: metrics.ok_or_else(|| io::Error::other("the coordinator has no metrics"))?,
        pid: std::process::id(),
    };
    let line = serde_json::to_string(&target).map_err(io::Error::other)?;
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // Whatever comes, or does not: then it is closed.
        io::stdin().read_to_end(&mut Vec::new()).ok();
        stop.send(()).ok();
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()?;
    let served = runtime.block_on(coordinator.serve(async {
        stopped.await.ok();
    }));
    served.map_err(|error| BenchError::Wrong(error.to_string()))
}
