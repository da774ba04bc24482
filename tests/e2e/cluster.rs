//! A coordinator and agents as child processes.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use kvferry_proto::pb::{
    self, LocateRequest, LocateResponse, coordinator_client::CoordinatorClient,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};
use tonic::transport::Channel;

use crate::engine::Engine;

/// A process must be ready by then, also on a machine that is busy with something else.
const START_BOUND: Duration = Duration::from_secs(120);
/// What must happen "soon" must have happened by then. Bounds what hangs; nothing that is well takes as long on any machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// How late a call may return whose deadline has passed: a caller that gets no processor sees its end late. What the deadline
/// itself does is tried where time is simulated.
pub(crate) const LATE: Duration = Duration::from_secs(30);

/// What all processes are started with, where a test's flags say nothing else: nobody is taken for silent or stopped because
/// the machine let him wait for some seconds. Tests of those who are, say sooner when.
const PATIENT: [(&str, &str); 4] = [
    ("KVFERRY_HIDE_AFTER_MS", "60000"),
    ("KVFERRY_PURGE_AFTER_MS", "120000"),
    ("KVFERRY_STALL_BOUND_MS", "30000"),
    ("KVFERRY_PULL_TIMEOUT_MS", "60000"),
];

/// A running `kvferry` process; killed with this value.
pub(crate) struct Process {
    child: Child,
    ready: serde_json::Value,
}

impl Process {
    /// Starts it and waits for its line of readiness.
    async fn start(args: &[String]) -> Self {
        Self::start_as(None, args, &[]).await
    }

    /// As above; what it logs goes there.
    pub(crate) async fn start_logging(
        args: &[String],
        environment: &[(String, String)],
        log: Stdio,
    ) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvferry"));
        command
            .args(args)
            .envs(PATIENT)
            .envs(environment.iter().cloned());
        Self::spawn(command, args, log).await
    }

    /// As above, by another user, with these in its environment.
    async fn start_as(
        user: Option<u32>,
        args: &[String],
        environment: &[(String, String)],
    ) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvferry"));
        if let Some(user) = user {
            command.uid(user);
        }
        command
            .args(args)
            .envs(PATIENT)
            .envs(environment.iter().cloned());
        Self::spawn(command, args, Stdio::inherit()).await
    }

    /// Behind a command that becomes it: `ip netns exec`, a shell that sets limits.
    pub(crate) async fn start_behind(prefix: &[&str], args: &[String]) -> Self {
        let mut command = Command::new(prefix[0]);
        command
            .args(&prefix[1..])
            .arg(env!("CARGO_BIN_EXE_kvferry"))
            .args(args)
            .envs(PATIENT);
        Self::spawn(command, args, Stdio::inherit()).await
    }

    async fn spawn(mut command: Command, args: &[String], log: Stdio) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("the binary starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut lines = BufReader::new(stdout).lines();
        let line = timeout(START_BOUND, lines.next_line())
            .await
            .unwrap_or_else(|_| panic!("not ready in time: {args:?}"))
            .expect("its output can be read")
            .unwrap_or_else(|| panic!("ended before it was ready: {args:?}"));
        // Read on, so that it never blocks on a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let ready = serde_json::from_str(&line).expect("the first line is JSON");
        Self { child, ready }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it still runs")
    }

    pub(crate) fn text(&self, key: &str) -> String {
        self.ready[key]
            .as_str()
            .unwrap_or_else(|| panic!("{key} is in {}", self.ready))
            .to_owned()
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid();
        let status = std::process::Command::new("kill")
            .args([&format!("-{name}"), &pid.to_string()])
            .status()
            .expect("kill runs");
        assert!(status.success());
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("it can be killed");
    }

    /// SIGTERM; gives the exit code.
    pub(crate) async fn terminate(mut self) -> Option<i32> {
        self.signal("TERM");
        let status = timeout(START_BOUND, self.child.wait())
            .await
            .expect("it ends in time after SIGTERM")
            .expect("it can be waited for");
        status.code()
    }
}

/// A coordinator and any number of agents.
pub(crate) struct Cluster {
    pub(crate) dir: tempfile::TempDir,
    coordinator: Option<Process>,
    /// What it was started with, beside what all are.
    flags: Vec<String>,
    pub(crate) coordinator_address: SocketAddr,
    agents: BTreeMap<String, Process>,
}

/// Flags of a coordinator that soon misses who is gone. For tests that nothing surprises of those who are only slow.
pub(crate) const MISSES_SOON: [&str; 6] = [
    "--heartbeat-interval-ms",
    "200",
    "--hide-after-ms",
    "1500",
    "--purge-after-ms",
    "4000",
];
/// The same for tests of absence in which others must not be missed: so long nobody is silent who lives.
pub(crate) const MISSES: [&str; 6] = [
    "--heartbeat-interval-ms",
    "500",
    "--hide-after-ms",
    "6000",
    "--purge-after-ms",
    "10000",
];

impl Cluster {
    /// A coordinator on a port and an address of its own.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With more flags for the coordinator.
    pub(crate) async fn start_with(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let coordinator = Self::coordinator(&own_address(), more).await;
        let address = coordinator.text("listen").parse().expect("an address");
        Self {
            dir,
            coordinator: Some(coordinator),
            flags: more.iter().map(ToString::to_string).collect(),
            coordinator_address: address,
            agents: BTreeMap::new(),
        }
    }

    async fn coordinator(listen: &str, more: &[&str]) -> Process {
        let metrics = ["--listen-metrics", "127.0.0.1:0"];
        let args = ["coordinator", "--announce", "--listen", listen]
            .iter()
            .chain(&metrics)
            .chain(more)
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        Process::start(&args).await
    }

    pub(crate) fn socket(&self, node: &str) -> PathBuf {
        self.dir.path().join(format!("{node}.sock"))
    }

    /// Starts an agent and connects an engine to it.
    pub(crate) async fn agent(&mut self, node: &str, more: &[&str]) -> Engine {
        self.agent_with(node, more, &[]).await
    }

    /// As above, with these in its environment.
    pub(crate) async fn agent_with(
        &mut self,
        node: &str,
        more: &[&str],
        environment: &[(String, String)],
    ) -> Engine {
        let socket = self.socket(node);
        self.agent_as(None, node, &socket, more, environment).await
    }

    /// As above, by another user, who can make a socket there.
    pub(crate) async fn agent_as(
        &mut self,
        user: Option<u32>,
        node: &str,
        socket: &Path,
        more: &[&str],
        environment: &[(String, String)],
    ) -> Engine {
        let args = self.agent_args(node, socket, more);
        let process = Process::start_as(user, &args, environment).await;
        self.agents.insert(node.to_owned(), process);
        Engine::connect(socket).await
    }

    /// As `agent`, behind a command that becomes it.
    pub(crate) async fn agent_behind(
        &mut self,
        prefix: &[&str],
        node: &str,
        more: &[&str],
    ) -> Engine {
        let socket = self.socket(node);
        let args = self.agent_args(node, &socket, more);
        let process = Process::start_behind(prefix, &args).await;
        self.agents.insert(node.to_owned(), process);
        Engine::connect(&socket).await
    }

    fn agent_args(&self, node: &str, socket: &Path, more: &[&str]) -> Vec<String> {
        let coordinator = format!("http://{}", self.coordinator_address);
        [
            "agent",
            "--announce",
            "--node",
            node,
            "--coordinator",
            &coordinator,
            "--listen-peer",
            "127.0.0.1:0",
            "--listen-data",
            "127.0.0.1:0",
            "--listen-metrics",
            "127.0.0.1:0",
            "--socket",
            &socket.display().to_string(),
        ]
        .iter()
        .chain(more)
        .map(ToString::to_string)
        .collect()
    }

    pub(crate) fn agent_data_address(&self, node: &str) -> SocketAddr {
        self.agents[node].text("data").parse().expect("an address")
    }

    pub(crate) fn agent_metrics(&self, node: &str) -> SocketAddr {
        let port = self.agents[node].text("metrics");
        port.parse().expect("an address")
    }

    pub(crate) fn coordinator_metrics(&self) -> SocketAddr {
        let coordinator = self.coordinator.as_ref().expect("it runs");
        coordinator.text("metrics").parse().expect("an address")
    }

    pub(crate) fn agent_peer_address(&self, node: &str) -> SocketAddr {
        self.agents[node].text("peer").parse().expect("an address")
    }

    pub(crate) fn coordinator_process(&self) -> &Process {
        self.coordinator.as_ref().expect("it runs")
    }

    pub(crate) fn agent_process(&self, node: &str) -> &Process {
        &self.agents[node]
    }

    /// Takes an agent's process out, to end it in some way.
    pub(crate) fn take_agent(&mut self, node: &str) -> Process {
        self.agents.remove(node).expect("it was started")
    }

    pub(crate) fn take_coordinator(&mut self) -> Process {
        self.coordinator.take().expect("it runs")
    }

    /// Starts a coordinator where the last one was.
    pub(crate) async fn restart_coordinator(&mut self) {
        let listen = self.coordinator_address.to_string();
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        self.coordinator = Some(Self::coordinator(&listen, &flags).await);
    }

    pub(crate) async fn client(&self) -> CoordinatorClient<Channel> {
        CoordinatorClient::connect(format!("http://{}", self.coordinator_address))
            .await
            .expect("the coordinator answers")
    }

    /// Owners of each hash, by name, in set mode.
    pub(crate) async fn locate(&self, namespace: &str, hashes: &[Vec<u8>]) -> Vec<Vec<String>> {
        let answer = self
            .client()
            .await
            .locate(LocateRequest {
                namespace: namespace.to_owned(),
                hashes: Some(pack(hashes)),
                mode: pb::LocateMode::Set.into(),
                max_candidates: 16,
                ..LocateRequest::default()
            })
            .await
            .expect("locate answers")
            .into_inner();
        owners_of(&answer)
    }

    /// Blocks a node holds as the coordinator sees it; None where it is not known or hidden.
    pub(crate) async fn live_blocks(&self, node: &str) -> Option<u64> {
        let info = self.describe(node).await?;
        (info.state() != pb::NodeState::Hidden).then_some(info.blocks)
    }

    /// What a node is to the coordinator; None where it is not known.
    pub(crate) async fn state(&self, node: &str) -> Option<pb::NodeState> {
        Some(self.describe(node).await?.state())
    }

    async fn describe(&self, node: &str) -> Option<pb::NodeInfo> {
        let request = pb::DescribeNodeRequest {
            node: node.to_owned(),
        };
        let info = self.client().await.describe_node(request).await.ok()?;
        Some(info.into_inner())
    }
}

/// A place to listen, at an address of the loopback network that no other test has: who is started again where he was before
/// finds the port as he left it, whatever ports others are given meanwhile.
fn own_address() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    // Not the first addresses, which tests name themselves.
    format!("127.{}.{high}.{low}:0", 16 + number % 224)
}

fn owners_of(answer: &LocateResponse) -> Vec<Vec<String>> {
    let mut next = 0;
    answer
        .candidate_counts
        .iter()
        .map(|count| {
            let mine = &answer.owner_index[next..next + *count as usize];
            next += *count as usize;
            mine.iter()
                .map(|owner| answer.owners[*owner as usize].node.clone())
                .collect()
        })
        .collect()
}

pub(crate) fn pack(hashes: &[Vec<u8>]) -> pb::PackedHashes {
    pb::PackedHashes {
        hash_len: hashes.first().map_or(32, Vec::len) as u32,
        hashes: hashes.concat().into(),
    }
}

/// Can the command be run as that user? Says why not: only root can, and only where others may look into its folder.
pub(crate) async fn can_run_as(user: u32) -> bool {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvferry"));
    command.arg("--version").uid(user).current_dir("/");
    let can = command
        .output()
        .await
        .is_ok_and(|output| output.status.success());
    if !can {
        println!("skipped: the command cannot be run as user {user} here");
    }
    can
}

/// Waits until `check` holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let deadline = Instant::now() + SOON;
    while !check().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Runs `kvferry` to its end; gives exit code, stdout and stderr.
pub(crate) async fn run(args: &[&str], dir: &Path) -> (i32, String, String) {
    let output = timeout(
        Duration::from_secs(300),
        Command::new(env!("CARGO_BIN_EXE_kvferry"))
            .args(args)
            .current_dir(dir)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output(),
    )
    .await
    .expect("it ends in time")
    .expect("it starts");
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}
