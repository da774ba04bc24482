//! A coordinator and agents with secrets, and clients that show them.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use kvferry_proto::{
    Reason,
    pb::{
        claims_client::ClaimsClient, coordinator_client::CoordinatorClient,
        locations_client::LocationsClient, replication_client::ReplicationClient,
        sources_client::SourcesClient, watch_client::WatchClient,
    },
    reason_of,
};
use kvferry_security::{
    TokenHash,
    tls::{Dialer, Line, Secured},
};
use tonic::{Code, Status, transport::Endpoint};

use crate::{
    cluster::{Process, eventually},
    engine::Engine,
};

/// All of a coordinator's services, asked by one caller.
#[derive(Clone)]
pub(super) struct Clients {
    pub(super) coordinator: CoordinatorClient<Line>,
    pub(super) claims: ClaimsClient<Line>,
    pub(super) locations: LocationsClient<Line>,
    pub(super) replication: ReplicationClient<Line>,
    pub(super) sources: SourcesClient<Line>,
    pub(super) watch: WatchClient<Line>,
}

pub(super) struct World {
    dir: tempfile::TempDir,
    coordinator: Option<Process>,
    agents: BTreeMap<String, Process>,
}

/// An entry of a policy, by the token of that name.
pub(super) fn identity(name: &str, more: &str, rights: &str) -> String {
    let hash = TokenHash::of(secret(name).as_bytes());
    format!(
        "[[identity]]\nname = \"{name}\"\ntoken_sha256 = \"{hash}\"\n{more}\nrights = [{rights}]\n"
    )
}

fn secret(name: &str) -> String {
    format!("the-secret-of-{name}-{}", "x".repeat(16))
}

pub(super) fn reason(status: &Status) -> (Code, Option<Reason>) {
    (status.code(), reason_of(status))
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            coordinator: None,
            agents: BTreeMap::new(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a token's file; gives its path.
    pub(super) fn token(&self, name: &str) -> String {
        let path = self.path().join(format!("{name}.token"));
        fs::write(&path, secret(name)).unwrap();
        path.display().to_string()
    }

    /// Whole or not at all, as an operator's tools write it.
    pub(super) fn policy(&self, text: &str) {
        let new = self.path().join("policy.new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path().join("policy.toml")).unwrap();
    }

    async fn start(&self, name: &str, args: &[&str], more: &[String]) -> Process {
        let log = fs::File::create(self.path().join(format!("{name}.log"))).unwrap();
        // As if it ran in the world's folder.
        let place = |word: &String| match self.path().join(word) {
            path if path.is_file() => path.display().to_string(),
            _ => word.clone(),
        };
        let args = args.iter().map(ToString::to_string);
        let args: Vec<String> = args.chain(more.iter().map(place)).collect();
        Process::start_logging(&args, &[], log.into()).await
    }

    pub(super) async fn coordinator(&mut self, more: &[String]) {
        let args = [
            "coordinator",
            "--announce",
            "--listen",
            "127.0.0.1:0",
            "--listen-metrics",
            "127.0.0.1:0",
        ];
        self.coordinator = Some(self.start("coordinator", &args, more).await);
    }

    pub(super) async fn agent(&mut self, node: &str, url: &str, more: &[String]) -> Engine {
        let socket: PathBuf = self.path().join(format!("{node}.sock"));
        let args = [
            "agent",
            "--announce",
            "--node",
            node,
            "--coordinator",
            url,
            "--listen-peer",
            "127.0.0.1:0",
            "--listen-data",
            "127.0.0.1:0",
            "--listen-metrics",
            "127.0.0.1:0",
            "--socket",
            &socket.display().to_string(),
        ];
        let process = self.start(node, &args, more).await;
        self.agents.insert(node.to_owned(), process);
        Engine::connect(&socket).await
    }

    pub(super) fn address(&self) -> SocketAddr {
        let coordinator = self.coordinator.as_ref().expect("it was started");
        coordinator.text("listen").parse().expect("an address")
    }

    pub(super) fn metrics(&self) -> SocketAddr {
        let coordinator = self.coordinator.as_ref().expect("it was started");
        coordinator.text("metrics").parse().expect("an address")
    }

    pub(super) fn agent_metrics(&self, node: &str) -> SocketAddr {
        let text = self.agents[node].text("metrics");
        text.parse().expect("an address")
    }

    pub(super) fn agent_data(&self, node: &str) -> SocketAddr {
        let text = self.agents[node].text("data");
        text.parse().expect("an address")
    }

    pub(super) fn agent_peer(&self, node: &str) -> String {
        self.agents[node].text("peer")
    }

    /// What an agent logged.
    pub(super) fn log(&self, node: &str) -> String {
        fs::read_to_string(self.path().join(format!("{node}.log"))).unwrap_or_default()
    }

    /// All that was logged.
    pub(super) fn logs(&self) -> String {
        let names = self
            .agents
            .keys()
            .map(String::as_str)
            .chain(["coordinator"]);
        let read = |name| fs::read_to_string(self.path().join(format!("{name}.log")));
        names.filter_map(|name| read(name).ok()).collect()
    }

    /// Waits until the coordinator has logged that.
    pub(super) async fn logged(&self, text: &str) {
        let path = self.path().join("coordinator.log");
        let there = || async { fs::read_to_string(&path).unwrap_or_default().contains(text) };
        eventually(&format!("the coordinator logs {text:?}"), there).await;
    }

    /// Clients that show a token.
    pub(super) async fn as_token(&self, path: &str) -> Clients {
        self.as_(Secured {
            token: Some(path.into()),
            ..Secured::default()
        })
        .await
    }

    pub(super) async fn as_(&self, secured: Secured) -> Clients {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address())).unwrap();
        let dialer = Dialer::open(&secured).unwrap();
        let line = dialer.connect(&endpoint).await.unwrap();
        Clients {
            coordinator: CoordinatorClient::new(line.clone()),
            claims: ClaimsClient::new(line.clone()),
            locations: LocationsClient::new(line.clone()),
            replication: ReplicationClient::new(line.clone()),
            sources: SourcesClient::new(line.clone()),
            watch: WatchClient::new(line),
        }
    }
}
