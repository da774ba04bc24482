//! An agent within this process: the same as `kvferry agent`, on threads of its own.

use std::{
    path::Path,
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use kvferry_agent::{Agent, AgentAddresses, AgentConfig, ServeError, StartError};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use crate::{Cause, Failure};

/// What an agent does before it serves (files, sockets, opening devices) waits for nobody else.
const START_BOUND: Duration = Duration::from_secs(30);
/// An agent drains for 5 seconds at most; this long after it was told to stop, it has not.
const STOP_BOUND: Duration = Duration::from_secs(7);
/// What a task or a copy does at once takes far less.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// The settings of `kvferry agent`: its file, with these keys and values laid over it. No variable is looked at.
///
/// # Errors
/// [`Cause::InvalidArgument`], with the key.
pub fn agent_settings(
    file: Option<&Path>,
    settings: &[(String, String)],
) -> Result<AgentConfig, Failure> {
    kvferry_settings::given(file, settings).map_err(|error| Failure::invalid(error.to_string()))
}

/// An agent that serves in this process until it is closed. It takes no signals, starts no log and changes nothing
/// that is the process's own.
pub struct Embedded {
    /// None only while it ends.
    runtime: Option<Runtime>,
    stop: CancellationToken,
    /// Under a lock so that any thread may hold this.
    served: Mutex<Receiver<Result<(), ServeError>>>,
    addresses: AgentAddresses,
}

impl Embedded {
    /// Starts it on the threads of `builder` and waits until everything is bound. From any thread.
    ///
    /// # Errors
    /// [`Cause::InvalidArgument`]: a setting that cannot be; [`Cause::System`]: something that is not to be had. Nothing
    /// is left of it then.
    pub fn start(builder: &mut Builder, config: AgentConfig) -> Result<Self, Failure> {
        let runtime = builder.enable_all().build();
        let runtime = runtime.map_err(|error| Failure::system("cannot start threads", error))?;
        let stop = CancellationToken::new();
        let (told, started) = sync_channel(1);
        let (ended, served) = sync_channel(1);
        runtime.spawn(run(config, stop.clone(), told, ended));
        let answer = started.recv_timeout(START_BOUND);
        let addresses = match answer {
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(error)) => Err(not_started(&error)),
            Err(RecvTimeoutError::Timeout) => Err(Failure::new(
                Cause::Deadline,
                format!("the agent has not started in {} s", START_BOUND.as_secs()),
            )),
            Err(RecvTimeoutError::Disconnected) => Err(defect("an agent ended as it started")),
        };
        match addresses {
            Ok(addresses) => Ok(Self {
                runtime: Some(runtime),
                stop,
                served: Mutex::new(served),
                addresses,
            }),
            Err(failure) => {
                end(runtime);
                Err(failure)
            }
        }
    }

    /// Where it is to be found.
    #[must_use]
    pub fn addresses(&self) -> &AgentAddresses {
        &self.addresses
    }

    /// Says goodbye to the coordinators, lets calls end, and gives back everything: sockets, memory, threads. Ends within 9
    /// seconds. From any thread.
    ///
    /// # Errors
    /// It is closed all the same. [`Cause::Fenced`]: it had ended before, because another agent took over its name;
    /// [`Cause::Deadline`]: something was still under way and was dropped.
    pub fn close(mut self) -> Result<(), Failure> {
        self.stop.cancel();
        let served = self.served.get_mut();
        let served = served.unwrap_or_else(PoisonError::into_inner);
        let served = match served.recv_timeout(STOP_BOUND) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error @ ServeError::Superseded { .. })) => {
                Err(Failure::new(Cause::Fenced, error.to_string()))
            }
            Err(RecvTimeoutError::Timeout) => Err(Failure::new(
                Cause::Deadline,
                format!("agent {} did not stop in time", self.addresses.node),
            )),
            Err(RecvTimeoutError::Disconnected) => Err(defect("an agent ended before its time")),
        };
        if let Some(runtime) = self.runtime.take() {
            end(runtime);
        }
        served
    }
}

impl Drop for Embedded {
    /// Of one that nobody closed: it ends soon, and nobody waits for it.
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn run(
    config: AgentConfig,
    stop: CancellationToken,
    told: SyncSender<Result<AgentAddresses, StartError>>,
    ended: SyncSender<Result<(), ServeError>>,
) {
    // Where these cannot be sent, who waited has given up, and the threads end soon.
    match Agent::start(config).await {
        Ok(agent) => {
            let _ = told.send(Ok(agent.addresses().clone()));
            let served = agent.serve(stop.cancelled_owned()).await;
            let _ = ended.send(served);
        }
        Err(error) => {
            let _ = told.send(Err(error));
        }
    }
}

/// Waits for the threads, on a thread that is in no runtime of the host's: there it would not be allowed.
fn end(runtime: Runtime) {
    let (give, take) = sync_channel::<Runtime>(1);
    let ending = thread::Builder::new()
        .name("kvferry-end".to_owned())
        .spawn(move || take.recv().map(|it| it.shutdown_timeout(SHUTDOWN)));
    let Ok(ending) = ending else {
        return runtime.shutdown_background();
    };
    // The thread takes it, and does not panic; if it did, there is nothing left to wait for.
    let _ = give.send(runtime);
    let _ = ending.join();
}

fn not_started(error: &StartError) -> Failure {
    let cause = match error {
        StartError::Config(_)
        | StartError::Name(_)
        | StartError::Coordinator(_)
        | StartError::Tls(_)
        | StartError::Dialer(_) => Cause::InvalidArgument,
        StartError::Listen { .. }
        | StartError::Rdma(_)
        | StartError::Data(_)
        | StartError::Metrics(_)
        | StartError::Randomness(_)
        | StartError::Socket(_) => Cause::System,
    };
    Failure::new(cause, format!("the agent does not start: {error}"))
}

fn defect(what: &str) -> Failure {
    Failure::new(
        Cause::Internal,
        format!("a defect in kvferry, please report it: {what}"),
    )
}
