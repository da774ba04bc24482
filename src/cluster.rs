//! One coordinator and some agents, as processes of their own on loopback: for the demo and benchmarks.
//!
//! Whatever way their user ends, they end: each stops when its stdin closes, and is killed when its
//! guard is dropped.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use kvferry_settings::VARIABLE_PREFIX;
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{
    announce::{AgentReady, CoordinatorReady},
    commands::keys::{self, KeysError},
};

/// The running program, also where its file was replaced meanwhile.
pub(crate) const THIS_PROGRAM: &str = "/proc/self/exe";
/// A process binds three ports and says so: more is a fault, not slowness.
const READY_BOUND: Duration = Duration::from_secs(60);
/// How long an orderly end may take.
const STOP_BOUND: Duration = Duration::from_secs(30);
/// Who is killed here is missed by those who read from him. Nobody is taken for silent or stopped only because the machine, which has
/// all of them, let him wait for some seconds: what comes of that is not what is shown or measured.
const HIDE_AFTER_MS: &str = "30000";
const STALL_BOUND_MS: &str = "20000";
/// The coordinator's name, in logs and in its certificate.
const COORDINATOR: &str = "coordinator";
/// Where an agent's metrics are read.
const METRICS: &str = "--listen-metrics";
/// Lines of each log that are shown when something fails.
const LOG_TAIL: usize = 15;

/// Why a process could not be had, or did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    #[error("{name} could not be started: {source}")]
    Start { name: String, source: io::Error },
    #[error("{name} ended before it was ready; its log is above")]
    NotReady { name: String },
    #[error("{name} was not ready within {READY_BOUND:?}; its log is above")]
    Slow { name: String },
    #[error("{name} announced itself with {line:?}: {source}")]
    Announcement {
        name: String,
        line: String,
        source: serde_json::Error,
    },
    #[error("no certificates for the cluster: {0}")]
    Keys(#[from] KeysError),
    #[error("{name} could not be stopped: {source}")]
    Stop { name: String, source: io::Error },
    #[error("{name} did not stop within {STOP_BOUND:?} of SIGTERM and was killed")]
    Hung { name: String },
    #[error("{name} ended with {status} when told to stop; it should end with 0")]
    Unclean { name: String, status: ExitStatus },
}

/// What an agent is started with.
pub(crate) struct AgentPlan {
    pub(crate) node: String,
    /// More settings: flag and value.
    pub(crate) settings: Vec<(&'static str, String)>,
}

impl AgentPlan {
    pub(crate) fn new(node: impl Into<String>, transport: &str) -> Self {
        Self {
            node: node.into(),
            settings: vec![
                ("--transport", transport.to_owned()),
                ("--stall-bound-ms", STALL_BOUND_MS.to_owned()),
            ],
        }
    }
}

/// An agent's process and where it is.
pub(crate) struct AgentProcess {
    pub(crate) ready: AgentReady,
    process: Process,
}

pub(crate) struct Cluster {
    coordinator: Process,
    agents: Vec<AgentProcess>,
    coordinator_pid: u32,
    /// Holds sockets and logs; removed at the end.
    directory: TempDir,
}

impl Cluster {
    /// Starts the coordinator, then the agents, each ready before the next.
    pub(crate) async fn start(plans: &[AgentPlan]) -> Result<Self, ClusterError> {
        Self::start_as(plans, false).await
    }

    /// As [`Cluster::start`]; all of them have certificates of a CA that is made for it, and speak TLS only. Whether
    /// payload is by TLS too is up to the plans.
    pub(crate) async fn start_by_tls(plans: &[AgentPlan]) -> Result<Self, ClusterError> {
        Self::start_as(plans, true).await
    }

    async fn start_as(plans: &[AgentPlan], by_tls: bool) -> Result<Self, ClusterError> {
        let directory = tempfile::Builder::new()
            .prefix("kvferry-cluster-")
            .tempdir()
            .map_err(|source| ClusterError::Start {
                name: "the cluster".to_owned(),
                source,
            })?;
        let flags = [
            "--listen",
            "127.0.0.1:0",
            "--listen-metrics",
            "off",
            "--hide-after-ms",
            HIDE_AFTER_MS,
        ];
        let mut arguments = Vec::from(flags.map(OsString::from));
        if by_tls {
            let nodes = plans.iter().map(|plan| plan.node.as_str());
            let names: Vec<_> = nodes.chain([COORDINATOR]).collect();
            keys::throw_away(directory.path(), &names)?;
            arguments.extend(tls_flags(directory.path(), COORDINATOR));
        }
        let mut coordinator =
            Process::start(COORDINATOR, "coordinator", &arguments, directory.path())?;
        let started = async {
            let ready: CoordinatorReady = coordinator.ready().await?;
            let scheme = if by_tls { "https" } else { "http" };
            let url = format!("{scheme}://{}", ready.listen);
            let mut agents = Vec::with_capacity(plans.len());
            for plan in plans {
                let more = match by_tls {
                    true => tls_flags(directory.path(), &plan.node),
                    false => Vec::new(),
                };
                agents.push(AgentProcess::start(plan, &url, directory.path(), more).await?);
            }
            Ok((ready.pid, agents))
        };
        let started: Result<_, ClusterError> = started.await;
        if started.is_err() {
            show_logs(directory.path());
        }
        let (coordinator_pid, agents) = started?;
        Ok(Self {
            coordinator_pid,
            coordinator,
            agents,
            directory,
        })
    }

    pub(crate) fn agents(&self) -> impl Iterator<Item = &AgentReady> {
        self.agents.iter().map(|agent| &agent.ready)
    }

    /// The coordinator's process.
    pub(crate) fn coordinator_pid(&self) -> u32 {
        self.coordinator_pid
    }

    /// Kills an agent as a power cut would, and waits until it is gone.
    pub(crate) async fn kill(&mut self, agent: usize) -> Result<(), ClusterError> {
        match self.agents.get_mut(agent) {
            Some(agent) => agent.process.kill().await,
            None => Ok(()),
        }
    }

    /// Stops what still runs, in order: agents say goodbye to a coordinator that is there.
    pub(crate) async fn stop(mut self) -> Result<(), ClusterError> {
        for agent in &mut self.agents {
            agent.process.stop().await?;
        }
        self.coordinator.stop().await
    }

    /// Prints the end of every process's log to stderr.
    pub(crate) fn show_logs(&self) {
        show_logs(self.directory.path());
    }
}

impl AgentProcess {
    async fn start(
        plan: &AgentPlan,
        coordinator: &str,
        directory: &Path,
        more: Vec<OsString>,
    ) -> Result<Self, ClusterError> {
        let socket = directory.join(format!("{}.sock", plan.node));
        let arguments = [
            ("--node", OsString::from(&plan.node)),
            ("--coordinators", coordinator.into()),
            ("--listen-peer", "127.0.0.1:0".into()),
            ("--listen-data", "127.0.0.1:0".into()),
            ("--socket", socket.into()),
        ];
        let settings = plan.settings.iter();
        let settings = settings.map(|(flag, value)| (*flag, OsString::from(value)));
        // Who wants them asks for them.
        let asked = plan.settings.iter().any(|(flag, _)| *flag == METRICS);
        let metrics = (!asked).then(|| (METRICS, "off".into()));
        let arguments: Vec<OsString> = arguments
            .into_iter()
            .chain(settings)
            .chain(metrics)
            .flat_map(|(flag, value)| [flag.into(), value])
            .chain(more)
            .collect();
        let mut process = Process::start(&plan.node, "agent", &arguments, directory)?;
        let ready = match process.ready().await {
            Ok(ready) => ready,
            Err(error) => {
                show_logs(directory);
                return Err(error);
            }
        };
        Ok(Self { ready, process })
    }
}

/// A child that does not outlive its guard.
struct Process {
    name: String,
    child: Child,
    /// Open as long as the child shall live.
    _stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
    gone: bool,
}

impl Process {
    fn start(
        name: &str,
        subcommand: &str,
        arguments: &[OsString],
        directory: &Path,
    ) -> Result<Self, ClusterError> {
        let failed = |source| ClusterError::Start {
            name: name.to_owned(),
            source,
        };
        let log = File::create(directory.join(format!("{name}.log"))).map_err(failed)?;
        let mut command = Command::new(THIS_PROGRAM);
        command
            .arg(subcommand)
            .args(arguments)
            .args(["--announce", "--until-stdin-closes"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true);
        // Settings of whoever runs this are none of its processes'.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with(VARIABLE_PREFIX) {
                command.env_remove(variable);
            }
        }
        let mut child = command.spawn().map_err(failed)?;
        Ok(Self {
            name: name.to_owned(),
            _stdin: child.stdin.take(),
            stdout: child.stdout.take().map(BufReader::new),
            child,
            gone: false,
        })
    }

    /// The line it prints once everything is bound.
    async fn ready<T: DeserializeOwned>(&mut self) -> Result<T, ClusterError> {
        let name = self.name.clone();
        let mut line = String::new();
        let Some(stdout) = &mut self.stdout else {
            return Err(ClusterError::NotReady { name });
        };
        match timeout(READY_BOUND, stdout.read_line(&mut line)).await {
            Err(_) => return Err(ClusterError::Slow { name }),
            Ok(Ok(0) | Err(_)) => return Err(ClusterError::NotReady { name }),
            Ok(Ok(_)) => {}
        }
        serde_json::from_str(&line).map_err(|source| ClusterError::Announcement {
            name,
            line,
            source,
        })
    }

    async fn kill(&mut self) -> Result<(), ClusterError> {
        self.gone = true;
        let name = self.name.clone();
        let killed = self.child.kill().await;
        killed.map_err(|source| ClusterError::Stop { name, source })
    }

    async fn stop(&mut self) -> Result<(), ClusterError> {
        if self.gone {
            return Ok(());
        }
        let name = self.name.clone();
        let failed = |source| ClusterError::Stop {
            name: self.name.clone(),
            source,
        };
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid as i32));
        if let Some(pid) = pid {
            // Not reaped yet, so that the number is still its own.
            kill_process(pid, Signal::TERM).map_err(|error| failed(error.into()))?;
        }
        match timeout(STOP_BOUND, self.child.wait()).await {
            Ok(status) => match status.map_err(failed)? {
                status if status.success() => Ok(()),
                status => Err(ClusterError::Unclean { name, status }),
            },
            Err(_) => {
                self.kill().await?;
                Err(ClusterError::Hung { name })
            }
        }
    }
}

/// What [`keys::throw_away`] made for this name.
fn tls_flags(directory: &Path, name: &str) -> Vec<OsString> {
    let files = [
        ("--tls-ca", "ca.pem".to_owned()),
        ("--tls-cert", format!("{name}.pem")),
        ("--tls-key", format!("{name}.key")),
    ];
    let flags = files.into_iter();
    let flags = flags.flat_map(|(flag, file)| [flag.into(), directory.join(file).into()]);
    flags.collect()
}

fn show_logs(directory: &Path) {
    let logs = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut logs: Vec<PathBuf> = logs
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    logs.sort();
    for path in logs {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let name = path.file_stem().unwrap_or_default().display();
        for line in &lines[lines.len().saturating_sub(LOG_TAIL)..] {
            eprintln!("{name}: {line}");
        }
    }
}
