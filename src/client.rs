//! How tools reach the coordinator and the agent on this host, each within a bound.

use std::{
    error::Error,
    future::Future,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use hyper_util::rt::TokioIo;
use kvferry_agent::config::{default_socket_path, host_name};
use kvferry_proto::{
    MAX_MESSAGE_BYTES,
    pb::{
        agent_client::AgentClient, claims_client::ClaimsClient,
        coordinator_client::CoordinatorClient, local_claims_client::LocalClaimsClient,
        locations_client::LocationsClient, replication_client::ReplicationClient,
        sources_client::SourcesClient, tensors_client::TensorsClient, watch_client::WatchClient,
    },
    reason_of,
};
use kvferry_security::tls::{
    DialRefusal, Dialer, DialerError, Line, Secured, TlsFiles, TlsRefusal,
};
use tokio::net::UnixStream;
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint, Error as TransportError, Uri},
};

pub(crate) use kvferry_proto::Reason;

/// How long a connection may take: on one host it is there at once, and across a network a
/// coordinator that needs longer is of no use.
const CONNECT_BOUND: Duration = Duration::from_secs(3);

pub(crate) type Coordinator = CoordinatorClient<Line>;
pub(crate) type Agent = AgentClient<Channel>;
pub(crate) type Sources = SourcesClient<Line>;
pub(crate) type Tensors = TensorsClient<Channel>;

/// Whom a tool talks to, and how long it waits.
#[derive(Debug, Clone, Args)]
pub(crate) struct Reach {
    /// The coordinator.
    #[arg(
        long,
        global = true,
        env = "KVFERRY_COORDINATOR",
        default_value = "http://127.0.0.1:7400",
        value_name = "URL"
    )]
    pub(crate) coordinator: String,
    /// The agent's unix socket [default: $XDG_RUNTIME_DIR/kvferry/HOST.sock].
    #[arg(long, global = true, env = "KVFERRY_SOCKET", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) known: Known,
    /// How long one call may take.
    #[arg(long, global = true, default_value_t = 30_000, value_name = "MS",
          value_parser = clap::value_parser!(u32).range(1..=600_000))]
    pub(crate) timeout_ms: u32,
}

/// By what a tool is known, and whom it trusts.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Known {
    /// The CA that issued the other side's certificate (PEM), for TLS.
    #[arg(long, global = true, env = "KVFERRY_TLS_CA", value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// The certificate to be known by (PEM), where one is asked for.
    #[arg(long, global = true, env = "KVFERRY_TLS_CERT", value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The certificate's key.
    #[arg(long, global = true, env = "KVFERRY_TLS_KEY", value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// A file with the token to be known by.
    #[arg(long, global = true, env = "KVFERRY_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Send the token in clear beyond this host.
    #[arg(long, global = true, env = "KVFERRY_INSECURE")]
    pub(crate) insecure: bool,
}

impl Known {
    /// What is brought along.
    pub(crate) fn secured(&self) -> Secured {
        Secured {
            files: TlsFiles {
                cert: self.tls_cert.clone(),
                key: self.tls_key.clone(),
                ca: self.tls_ca.clone(),
            },
            token: self.token_file.clone(),
            insecure: self.insecure,
        }
    }
}

impl Reach {
    /// The agent's socket, by default that of the agent named like this host.
    pub(crate) fn socket(&self) -> PathBuf {
        self.socket
            .clone()
            .unwrap_or_else(|| default_socket_path(&host_name()))
    }

    pub(crate) fn bound(&self) -> Duration {
        Duration::from_millis(u64::from(self.timeout_ms))
    }
}

/// Why nothing, or a refusal, came back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens at the socket.
    #[error(
        "no agent answers at {socket}: is `kvferry agent` running? use --socket where it listens elsewhere ({})",
        cause(.source),
        socket = socket.display()
    )]
    NoAgent {
        socket: PathBuf,
        source: TransportError,
    },
    /// Nobody listens at the address.
    #[error(
        "no coordinator answers at {url}: is `kvferry coordinator` running? use --coordinator where it listens elsewhere ({})",
        cause(.source)
    )]
    NoCoordinator { url: String, source: TransportError },
    /// Not an address, or not one to dial with what was given.
    #[error("the coordinator's address: {0}")]
    BadUrl(#[from] DialRefusal),
    /// A certificate, key, CA or token is of no use.
    #[error(transparent)]
    Secured(#[from] DialerError),
    /// TLS does not come about.
    #[error("no connection to {who}: {refusal}")]
    Tls { who: &'static str, refusal: String },
    /// It answered, and said no.
    #[error("{who} refused to {what}: {message}{}", hint(*.reason))]
    Refused {
        who: &'static str,
        what: &'static str,
        code: Code,
        reason: Option<Reason>,
        message: String,
    },
    /// The connection was there and broke.
    #[error("{who} went away while asked to {what}: {message}; try again")]
    WentAway {
        who: &'static str,
        what: &'static str,
        message: String,
    },
    /// It did not answer in time. Whether it did what was asked is not known.
    #[error("{who} did not {what} within {bound:?}; whether it was done is not known")]
    TimedOut {
        who: &'static str,
        what: &'static str,
        bound: Duration,
    },
    /// It answered something that makes no sense.
    #[error("{who} answered a request to {what} with nonsense: {message}")]
    Nonsense {
        who: &'static str,
        what: &'static str,
        message: String,
    },
}

impl ClientError {
    /// Why the call was refused, where the other side said so.
    pub(crate) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Refused { reason, .. } => *reason,
            _ => None,
        }
    }

    pub(crate) fn nonsense(call: Call, message: impl Into<String>) -> Self {
        Self::Nonsense {
            who: call.who,
            what: call.what,
            message: message.into(),
        }
    }
}

/// What lies at the bottom of an error: the layers above it only say that there was one.
fn cause(error: &TransportError) -> &dyn Error {
    let mut cause: &dyn Error = error;
    while let Some(below) = cause.source() {
        cause = below;
    }
    cause
}

fn hint(reason: Option<Reason>) -> &'static str {
    match reason {
        Some(Reason::NamespaceUnknown) => "; `kvferry namespaces` lists those there are",
        Some(Reason::Unauthenticated) => {
            "; `kvferry keys` makes certificates and tokens, docs/security.md tells how"
        }
        Some(Reason::NodeUnknown) => "; `kvferry nodes` lists those there are",
        Some(Reason::NamespaceInUse) => "; --force deletes it nevertheless",
        Some(Reason::WatchRestarted | Reason::WatchTooOld) => "; without --from it starts anew",
        Some(Reason::PoolFull) => "; a larger pool (--pool-bytes) holds more",
        Some(Reason::CoordinatorUnreachable) => "; `kvferry stats` shows the agent's coordinators",
        _ => "",
    }
}

/// As it is called in messages.
const COORDINATOR: &str = "the coordinator";

/// One call: who is asked to do what. Read as "`who` refused to `what`".
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    who: &'static str,
    what: &'static str,
    bound: Duration,
}

impl Call {
    pub(crate) fn coordinator(what: &'static str, bound: Duration) -> Self {
        Self {
            who: COORDINATOR,
            what,
            bound,
        }
    }

    pub(crate) fn agent(what: &'static str, bound: Duration) -> Self {
        Self {
            who: "the agent",
            what,
            bound,
        }
    }

    /// Waits for the answer, at most as long as the call's bound.
    pub(crate) async fn answer<T>(
        self,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, ClientError> {
        self.within(answer).await.map(Response::into_inner)
    }

    /// Waits for the next message of a stream, at most as long as the call's bound.
    pub(crate) async fn within<T>(
        self,
        next: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, ClientError> {
        match tokio::time::timeout(self.bound, next).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(status)) => Err(self.failed(&status)),
            Err(_) => Err(ClientError::TimedOut {
                who: self.who,
                what: self.what,
                bound: self.bound,
            }),
        }
    }

    fn failed(self, status: &Status) -> ClientError {
        let (who, what) = (self.who, self.what);
        let reason = reason_of(status);
        // A coordinator that does not take our certificate says so at the first call.
        if let Some(refusal) = tls_refusal(status) {
            return ClientError::Tls { who, refusal };
        }
        let message = match &*in_full(status) {
            "" => status.code().to_string(),
            message => message.to_owned(),
        };
        match status.code() {
            // The connection's own end has no reason; the service's "unavailable" has one.
            Code::Unavailable | Code::Unknown if reason.is_none() => {
                ClientError::WentAway { who, what, message }
            }
            code => ClientError::Refused {
                who,
                what,
                code,
                reason,
                message,
            },
        }
    }
}

/// Connects to a coordinator.
pub(crate) async fn coordinator(reach: &Reach) -> Result<Coordinator, ClientError> {
    Ok(CoordinatorClient::new(coordinator_line(reach).await?)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

/// Connects to a coordinator to be told what changes.
pub(crate) async fn watch(reach: &Reach) -> Result<WatchClient<Line>, ClientError> {
    Ok(WatchClient::new(coordinator_line(reach).await?)
        .max_decoding_message_size(MAX_MESSAGE_BYTES))
}

/// Connects to a coordinator to have copies made.
pub(crate) async fn replication(reach: &Reach) -> Result<ReplicationClient<Line>, ClientError> {
    Ok(ReplicationClient::new(coordinator_line(reach).await?)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

/// Connects to a coordinator to say what is wanted of a namespace.
pub(crate) async fn locations(reach: &Reach) -> Result<LocationsClient<Line>, ClientError> {
    Ok(LocationsClient::new(coordinator_line(reach).await?))
}

/// Connects to a coordinator's sources.
pub(crate) async fn sources(reach: &Reach) -> Result<Sources, ClientError> {
    Ok(SourcesClient::new(coordinator_line(reach).await?)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

/// The same, for its claims.
pub(crate) async fn claims(reach: &Reach) -> Result<ClaimsClient<Line>, ClientError> {
    Ok(ClaimsClient::new(coordinator_line(reach).await?))
}

async fn coordinator_line(reach: &Reach) -> Result<Line, ClientError> {
    let secured = reach.known.secured();
    let uri = secured.check(&reach.coordinator)?;
    let dialer = Dialer::open(&secured)?;
    let endpoint = Endpoint::from(uri).connect_timeout(CONNECT_BOUND);
    let connected = dialer.connect(&endpoint).await;
    connected.map_err(|source| match tls_refusal(&source) {
        Some(refusal) => ClientError::Tls {
            who: COORDINATOR,
            refusal,
        },
        None => ClientError::NoCoordinator {
            url: reach.coordinator.clone(),
            source,
        },
    })
}

/// TLS' own word for why there is no connection.
fn tls_refusal(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = error;
    loop {
        let inner = cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        if let Some(refusal) = inner.and_then(|inner| inner.downcast_ref::<TlsRefusal>()) {
            return Some(refusal.to_string());
        }
        cause = cause.source()?;
    }
}

/// A status with what lies beneath it: of a broken connection it says itself only that it broke.
fn in_full(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = Error::source(status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Connects to the agent behind a unix socket.
pub(crate) async fn agent(socket: &Path) -> Result<Agent, ClientError> {
    Ok(agent_client(agent_channel(socket).await?))
}

/// Connects to the tensors of the agent behind a unix socket.
pub(crate) async fn tensors(socket: &Path) -> Result<Tensors, ClientError> {
    Ok(tensors_client(agent_channel(socket).await?))
}

/// Both, over one connection.
pub(crate) async fn agent_and_tensors(socket: &Path) -> Result<(Agent, Tensors), ClientError> {
    let channel = agent_channel(socket).await?;
    Ok((agent_client(channel.clone()), tensors_client(channel)))
}

fn agent_client(channel: Channel) -> Agent {
    AgentClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn tensors_client(channel: Channel) -> Tensors {
    TensorsClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

/// The same, for its claims.
pub(crate) async fn local_claims(socket: &Path) -> Result<LocalClaimsClient<Channel>, ClientError> {
    Ok(LocalClaimsClient::new(agent_channel(socket).await?))
}

async fn agent_channel(socket: &Path) -> Result<Channel, ClientError> {
    let path = socket.to_owned();
    // The address is for the HTTP headers only: the connector goes to the socket.
    let endpoint = Endpoint::from_static("http://agent.local").connect_timeout(CONNECT_BOUND);
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|source| ClientError::NoAgent {
            socket: socket.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use kvferry_proto::refusal;

    use super::*;

    fn reach(coordinator: &str) -> Reach {
        Reach {
            coordinator: coordinator.to_owned(),
            socket: None,
            known: Known::default(),
            timeout_ms: 1_000,
        }
    }

    #[tokio::test]
    async fn nobody_there_is_said_with_what_to_do() {
        let error = agent(Path::new("/nowhere/n.sock")).await.unwrap_err();
        assert!(matches!(error, ClientError::NoAgent { .. }));
        let text = error.to_string();
        assert!(
            text.contains("/nowhere/n.sock") && text.contains("--socket"),
            "{text}"
        );

        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", free.local_addr().unwrap());
        drop(free);
        let error = coordinator(&reach(&url)).await.unwrap_err();
        assert!(matches!(error, ClientError::NoCoordinator { .. }));
        for bad in ["", "127.0.0.1:1", "https://h:1"] {
            let error = coordinator(&reach(bad)).await.unwrap_err();
            assert!(matches!(error, ClientError::BadUrl(_)), "{bad}: {error}");
        }
        let secret = Reach {
            known: Known {
                token_file: Some("/nowhere/token".into()),
                ..Known::default()
            },
            ..reach("http://10.0.0.1:7400")
        };
        let error = coordinator(&secret).await.unwrap_err();
        let refused = ClientError::BadUrl(DialRefusal::TokenInClear {
            url: secret.coordinator.clone(),
        });
        assert_eq!(error.to_string(), refused.to_string());
    }

    #[tokio::test]
    async fn refusals_keep_their_reason_and_silence_has_a_bound() {
        let call = Call::coordinator("describe a namespace", Duration::from_millis(10));
        let status = refusal(Code::NotFound, Reason::NamespaceUnknown, "no namespace x");
        let error = call
            .answer(async { Err::<Response<()>, _>(status) })
            .await
            .unwrap_err();
        assert_eq!(error.reason(), Some(Reason::NamespaceUnknown));
        let error = call
            .answer(std::future::pending::<Result<Response<()>, Status>>())
            .await
            .unwrap_err();
        assert!(matches!(error, ClientError::TimedOut { .. }));
    }
}
