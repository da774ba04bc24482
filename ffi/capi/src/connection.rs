//! The connection to one agent: a runtime of its own, calls that end by their deadline, and what it means
//! that the connection has ended.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, sync_channel},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use kvferry_agent::{config::DESCRIPTOR_SUFFIX, transport::shm::DescriptorClient};
use kvferry_proto::{Incarnation, MAX_MESSAGE_BYTES, pb::agent_client::AgentClient};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    runtime::Handle,
    time::{Instant, sleep, timeout_at},
};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use crate::{error::Failure, kvf_status};

/// Between two attempts to reach an agent that is only starting.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
/// A call's own deadline acts in the runtime; this long after it, the runtime itself does not.
const RUNTIME_GRACE: Duration = Duration::from_secs(5);

/// One lifetime of one connection. It is never made anew behind the caller's back: everything an engine has
/// with an agent ends with the connection, and another region may have the same number afterwards.
#[derive(Clone)]
pub(crate) struct Connection {
    runtime: Handle,
    api: AgentClient<Channel>,
    lost: Arc<AtomicBool>,
    /// The agent's node name once it is known; its socket before.
    pub(crate) agent: Arc<str>,
    pub(crate) incarnation: u64,
    descriptors: PathBuf,
    pub(crate) timeout: Duration,
}

impl Connection {
    /// Connects to an agent, trying until the deadline.
    pub(crate) fn open(
        runtime: Handle,
        socket: &Path,
        descriptors: Option<PathBuf>,
        connect: Duration,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let name: Arc<str> = socket.display().to_string().into();
        let lost = Arc::new(AtomicBool::new(false));
        let deadline = Instant::now() + connect;
        let (path, flag) = (socket.to_owned(), Arc::clone(&lost));
        let channel = block_on(&runtime, &name, deadline, async move {
            connect_channel(path, flag, deadline).await
        })?;
        let descriptors = descriptors.unwrap_or_else(|| {
            let mut path = socket.as_os_str().to_owned();
            path.push(DESCRIPTOR_SUFFIX);
            path.into()
        });
        let mut connection = Self {
            runtime,
            api: AgentClient::new(channel)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
            lost,
            agent: name,
            incarnation: 0,
            descriptors,
            timeout,
        };
        let stats = connection.call(connect, |mut api| async move {
            api.stats(kvferry_proto::pb::StatsRequest {}).await
        })?;
        connection.agent = stats.node.into();
        connection.incarnation = stats.incarnation;
        Ok(connection)
    }

    pub(crate) fn api(&self) -> AgentClient<Channel> {
        self.api.clone()
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(crate) fn refused(&self, status: &Status) -> Failure {
        Failure::answered(&self.agent, status, self.lost.load(Ordering::Acquire))
    }

    /// One call to the agent, for at most `timeout`.
    pub(crate) fn call<T, F>(
        &self,
        timeout: Duration,
        ask: impl FnOnce(AgentClient<Channel>) -> F,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        let connection = self.clone();
        let asked = ask(self.api());
        self.run(timeout, async move {
            asked
                .await
                .map(Response::into_inner)
                .map_err(|status| connection.refused(&status))
        })
    }

    /// Runs something on the runtime and waits for it, for at most `timeout`.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        timeout: Duration,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Failure> {
        block_on(&self.runtime, &self.agent, Instant::now() + timeout, work)
    }

    /// A connection to the socket where descriptors are exchanged, with this very lifetime of the agent.
    pub(crate) async fn descriptors(&self) -> Result<DescriptorClient, Failure> {
        let incarnation = self.incarnation()?;
        DescriptorClient::connect(&self.descriptors, Some(incarnation))
            .await
            .map_err(|error| Failure::descriptors(&self.agent, &error))
    }

    pub(crate) fn incarnation(&self) -> Result<Incarnation, Failure> {
        Incarnation::new(self.incarnation).map_err(|error| {
            Failure::new(
                kvf_status::KVF_UNKNOWN_REASON,
                format!("agent {}: {error}", self.agent),
            )
        })
    }
}

/// Waits on a thread that may itself belong to some runtime: the work runs on ours, and is dropped at the
/// deadline.
fn block_on<T: Send + 'static>(
    runtime: &Handle,
    agent: &str,
    deadline: Instant,
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    let late = || {
        Failure::new(
            kvf_status::KVF_DEADLINE,
            format!(
                "agent {agent} did not answer in time; whether it did what was asked is unknown"
            ),
        )
    };
    let (sender, receiver) = sync_channel(1);
    runtime.spawn(async move {
        // Nobody waits any more where this cannot be sent.
        let _ = sender.send(timeout_at(deadline, work).await);
    });
    let patience = deadline.saturating_duration_since(Instant::now()) + RUNTIME_GRACE;
    match receiver.recv_timeout(patience) {
        Ok(answer) => answer.unwrap_or_else(|_| Err(late())),
        Err(RecvTimeoutError::Timeout) => Err(late()),
        Err(RecvTimeoutError::Disconnected) => Err(Failure::new(
            kvf_status::KVF_INTERNAL,
            "a defect in libkvferry, please report it: a call ended without an answer",
        )),
    }
}

async fn connect_channel(
    path: PathBuf,
    lost: Arc<AtomicBool>,
    deadline: Instant,
) -> Result<Channel, Failure> {
    let unreachable = |error: &dyn std::fmt::Display| {
        Failure::new(
            kvf_status::KVF_AGENT_UNREACHABLE,
            format!("no agent answers at {}: {error}", path.display()),
        )
    };
    let stream = loop {
        match UnixStream::connect(&path).await {
            Ok(stream) => break stream,
            Err(error) if Instant::now() + CONNECT_PAUSE >= deadline => {
                return Err(unreachable(&error));
            }
            Err(_) => sleep(CONNECT_PAUSE).await,
        }
    };
    // Handed out once: a second connection would be another engine's to the agent.
    let mut once = Some(Watched { stream, lost });
    Endpoint::from_static("http://agent.invalid")
        .connect_with_connector(service_fn(move |_| {
            let stream = once.take().map(TokioIo::new);
            async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
        }))
        .await
        .map_err(|error| unreachable(&error))
}

/// The connection's socket, which says when it is gone.
struct Watched {
    stream: UnixStream,
    lost: Arc<AtomicBool>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.lost.store(true, Ordering::Release);
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
