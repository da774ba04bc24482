//! The connection to one agent: a runtime of its own, calls that end by their deadline, and what it means
//! that the connection has ended.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, sync_channel},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use kvferry_agent::{
    Guarded,
    config::DESCRIPTOR_SUFFIX,
    transport::shm::{DescriptorClient, DescriptorError, RegionDescriptors},
};
use kvferry_proto::{
    Incarnation, MAX_MESSAGE_BYTES, RegionId,
    pb::{
        self, agent_client::AgentClient, local_claims_client::LocalClaimsClient,
        tensors_client::TensorsClient,
    },
};
use tokio::{
    net::UnixStream,
    runtime::Handle,
    time::{Instant, sleep, timeout_at},
};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use crate::{
    Cause, Failure,
    last_word::{LastWord, Process},
};

/// Between two attempts to reach an agent that is only starting.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
/// A call's own deadline acts in the runtime; this long after it, the runtime itself does not.
const RUNTIME_GRACE: Duration = Duration::from_secs(5);

/// One lifetime of one connection. It is never made anew behind the caller's back: everything an engine has
/// with an agent ends with the connection, and another region may have the same number afterwards.
#[derive(Debug, Clone)]
pub struct Connection {
    runtime: Handle,
    channel: Channel,
    lost: Arc<AtomicBool>,
    /// The agent's node name once it is known; its socket before.
    pub agent: Arc<str>,
    /// The agent's lifetime.
    pub incarnation: u64,
    descriptors: PathBuf,
    /// Of calls that name no other.
    pub timeout: Duration,
}

impl Connection {
    /// Connects to an agent, trying until the deadline. Not from the runtime's own threads.
    ///
    /// # Errors
    /// [`Cause::AgentUnreachable`], and what its first answer is.
    pub fn open(
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
            channel,
            lost,
            agent: name,
            incarnation: 0,
            descriptors,
            timeout,
        };
        let stats = connection.call(connect, |mut api| async move {
            api.stats(pb::StatsRequest {}).await
        })?;
        connection.agent = stats.node.into();
        connection.incarnation = stats.incarnation;
        Ok(connection)
    }

    /// The local API.
    #[must_use]
    pub fn api(&self) -> AgentClient<Channel> {
        AgentClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Claims, over the same connection.
    #[must_use]
    pub fn claims(&self) -> LocalClaimsClient<Channel> {
        LocalClaimsClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Sets of tensors, over the same connection.
    #[must_use]
    pub fn tensors(&self) -> TensorsClient<Channel> {
        TensorsClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Where its work runs.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// What a refusal by the agent means.
    #[must_use]
    pub fn refused(&self, status: &Status) -> Failure {
        Failure::answered(&self.agent, status, self.lost.load(Ordering::Acquire))
    }

    /// One call to the agent, for at most `timeout`. Not from the runtime's own threads.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn call<T, F>(
        &self,
        timeout: Duration,
        ask: impl FnOnce(AgentClient<Channel>) -> F,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        self.answer_within(timeout, ask(self.api()))
    }

    /// As [`Connection::call`], about sets of tensors.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn call_tensors<T, F>(
        &self,
        timeout: Duration,
        ask: impl FnOnce(TensorsClient<Channel>) -> F,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        self.answer_within(timeout, ask(self.tensors()))
    }

    fn answer_within<T: Send + 'static>(
        &self,
        timeout: Duration,
        asked: impl Future<Output = Result<Response<T>, Status>> + Send + 'static,
    ) -> Result<T, Failure> {
        let connection = self.clone();
        self.run(timeout, async move { connection.answer(asked).await })
    }

    /// Runs something on the runtime and waits for it, for at most `timeout`. Not from the runtime's own threads.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run<T: Send + 'static>(
        &self,
        timeout: Duration,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Failure> {
        block_on(&self.runtime, &self.agent, Instant::now() + timeout, work)
    }

    /// What an answer of the agent means.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn answer<T>(
        &self,
        asked: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        asked
            .await
            .map(Response::into_inner)
            .map_err(|status| self.refused(&status))
    }

    /// What a call is that did not end in time.
    #[must_use]
    pub fn late(&self) -> Failure {
        late(&self.agent)
    }

    /// A connection to the socket where descriptors are exchanged, with this very lifetime of the agent.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn descriptors(&self) -> Result<DescriptorClient, Failure> {
        let incarnation = self.incarnation()?;
        match DescriptorClient::connect(&self.descriptors, Some(incarnation)).await {
            Ok(client) => Ok(client),
            Err(error) => Err(self.told_late(&error).await),
        }
    }

    /// The descriptor socket may end before the connection: that it is lost is for the connection to say
    /// (`last_word.rs`).
    async fn told_late(&self, error: &DescriptorError) -> Failure {
        let failure = Failure::descriptors(&self.agent, error);
        if failure.cause == Cause::AgentLost {
            let _ = self.api().stats(pb::StatsRequest {}).await;
        }
        failure
    }

    /// A region's memory, to be mapped.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn open_region(
        &self,
        region: RegionId,
        writable: bool,
    ) -> Result<RegionDescriptors, Failure> {
        let client = self.descriptors().await?;
        let incarnation = self.incarnation()?;
        match client.open_region(region, incarnation, writable).await {
            Ok(opened) => Ok(opened),
            Err(error) => Err(self.told_late(&error).await),
        }
    }

    /// Hands a descriptor in: registers a region of its memory, as the request says otherwise.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn register_descriptor(
        &self,
        descriptor: OwnedFd,
        mut request: pb::RegisterRegionRequest,
    ) -> Result<pb::RegionInfo, Failure> {
        // The token lasts as long as the client that left it.
        let client = self.descriptors().await?;
        let token = match client.deposit(descriptor.as_fd()).await {
            Ok(token) => token,
            Err(error) => return Err(self.told_late(&error).await),
        };
        let source = pb::DepositSource { token };
        request.source = Some(pb::register_region_request::Source::Deposit(source));
        self.answer(self.api().register_region(request)).await
    }

    fn incarnation(&self) -> Result<Incarnation, Failure> {
        Incarnation::new(self.incarnation).map_err(|error| {
            Failure::new(
                Cause::UnknownReason,
                format!("agent {}: {error}", self.agent),
            )
        })
    }
}

fn late(agent: &str) -> Failure {
    Failure::new(
        Cause::Deadline,
        format!("agent {agent} did not answer in time; whether it did what was asked is unknown"),
    )
}

/// Waits on a thread that may itself belong to some runtime: the work runs on ours, and is dropped at the
/// deadline.
fn block_on<T: Send + 'static>(
    runtime: &Handle,
    agent: &str,
    deadline: Instant,
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    let (sender, receiver) = sync_channel(1);
    runtime.spawn(async move {
        // Nobody waits any more where this cannot be sent.
        let _ = sender.send(timeout_at(deadline, work).await);
    });
    let patience = deadline.saturating_duration_since(Instant::now()) + RUNTIME_GRACE;
    match receiver.recv_timeout(patience) {
        Ok(answer) => answer.unwrap_or_else(|_| Err(late(agent))),
        Err(RecvTimeoutError::Timeout) => Err(late(agent)),
        Err(RecvTimeoutError::Disconnected) => Err(Failure::new(
            Cause::Internal,
            "a defect in kvferry, please report it: a call ended without an answer",
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
            Cause::AgentUnreachable,
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
    let process = Process::behind(&stream);
    let mut once = Some(LastWord::new(Guarded::new(stream, Lost(lost)), process));
    Endpoint::from_static("http://agent.invalid")
        .connect_with_connector(service_fn(move |_| {
            let stream = once.take().map(TokioIo::new);
            async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
        }))
        .await
        .map_err(|error| unreachable(&error))
}

/// Says that the connection's socket is gone.
struct Lost(Arc<AtomicBool>);

impl Drop for Lost {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{BufRead, BufReader, Write},
        process::{Command, Stdio},
    };

    use super::*;

    /// A process in the middle of its death: see there.
    const DYING_AGENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dying_agent.c");
    const PATIENCE: Duration = Duration::from_secs(20);

    async fn eventually(what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "{what}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_connection_is_lost_when_the_agents_process_is_gone_and_not_when_it_hangs_up_dying() {
        let dir = tempfile::tempdir().unwrap();
        let (program, socket) = (dir.path().join("dying_agent"), dir.path().join("socket"));
        let mut compiler = Command::new("cc");
        compiler.args(["-pthread", DYING_AGENT, "-o"]).arg(&program);
        assert!(compiler.status().unwrap().success(), "cc compiles it");
        let mut agent = Command::new(program)
            .arg(&socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut orders = agent.stdin.take().unwrap();
        let mut said = BufReader::new(agent.stdout.take().unwrap()).lines();
        assert_eq!(said.next().unwrap().unwrap(), "listening");
        let statm = format!("/proc/{}/statm", agent.id());
        let without_memory = || fs::read_to_string(&statm).unwrap().starts_with("0 ");
        eventually("its first thread has ended", without_memory).await;
        let lost = Arc::new(AtomicBool::new(false));
        let deadline = Instant::now() + PATIENCE;
        let channel = connect_channel(socket, Arc::clone(&lost), deadline).await;
        let channel = channel.unwrap();
        orders.write_all(b"hang up").unwrap();
        assert_eq!(said.next().unwrap().unwrap(), "closed");
        sleep(Duration::from_millis(200)).await;
        assert!(!lost.load(Ordering::Acquire), "its files are open");
        // It ends with its orders.
        drop(orders);
        assert!(agent.wait().unwrap().success());
        eventually("lost", || lost.load(Ordering::Acquire)).await;
        drop(channel);
    }
}
