//! A connection to an agent, and its calls: each starts at once and is waited for elsewhere.

use std::{
    os::fd::{BorrowedFd, RawFd},
    path::PathBuf,
    process,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use kvferry_client::{Cause, Connection as Agent, Failure};
use kvferry_proto::{
    RegionId,
    pb::{self, pull_request::Destination, register_region_request::Source},
};
use parking_lot::Mutex;
use pyo3::{IntoPyObjectExt, prelude::*, pybacked::PyBackedBytes};
use tokio_util::sync::CancellationToken;

use crate::{
    call::Call,
    failure::raise,
    memory::{Mapped, Mapping},
    pull::Pull,
    runtime,
    span::Span,
    told::{tell_claimed, tell_pinned, tell_region, tell_sealed, tell_stats},
    words::{
        GeometryWords, HashesWords, NamespaceWords, count, geometry, hashes, namespace, seconds,
        slots, timeout, wire_ms,
    },
};

/// Registering maps and clears memory, which takes as long as there is memory.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(120);
/// The agent waits up to 10 seconds for reads to settle.
const UNREGISTER_TIMEOUT: Duration = Duration::from_secs(12);
/// Longest wait for the coordinator's word.
const MAX_WAIT_ANNOUNCED_S: f64 = 60.0;
/// Longest look-up.
const MAX_LOOKUP_S: f64 = 60.0;
/// Longest pin, and longest claim.
const MAX_TTL_S: f64 = 600.0;
/// Bytes of a message of a put: large enough that messages cost little.
const PIECE_BYTES: usize = 1 << 20;

/// One connection: `kvferry.Client` is made of it. Calls under way go on when nobody holds it any more, and the connection
/// ends with the last of them.
#[pyclass(frozen, module = "kvferry._native")]
pub(crate) struct Connection {
    /// None once it was closed.
    agent: Mutex<Option<Agent>>,
    /// Everything under way.
    all: CancellationToken,
    process: u32,
    #[pyo3(get)]
    node: String,
    #[pyo3(get)]
    incarnation: u64,
}

/// Connects, waiting for it.
#[pyfunction]
pub(crate) fn connect(
    py: Python<'_>,
    socket: PathBuf,
    descriptors: Option<PathBuf>,
    connect_timeout: f64,
    call_timeout: f64,
) -> PyResult<Py<Connection>> {
    let connect = timeout(py, connect_timeout, "connect_timeout")?;
    let call = timeout(py, call_timeout, "call_timeout")?;
    let agent = py.detach(|| {
        let runtime = runtime::handle()?;
        Agent::open(runtime, &socket, descriptors, connect, call)
    });
    let agent = agent.map_err(|failure| raise(py, &failure))?;
    let connection = Connection {
        node: agent.agent.to_string(),
        incarnation: agent.incarnation,
        agent: Mutex::new(Some(agent)),
        all: CancellationToken::new(),
        process: process::id(),
    };
    Py::new(py, connection)
}

/// A question about no block at all has its answer already; and of no hashes the length is not known.
async fn unless<T>(
    nothing: Option<T>,
    asked: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match nothing {
        Some(nothing) => Ok(nothing),
        None => asked.await,
    }
}

fn none(hashes: Option<&pb::PackedHashes>) -> bool {
    hashes.is_some_and(|hashes| count(hashes) == 0)
}

impl Connection {
    fn agent(&self, py: Python<'_>) -> PyResult<Agent> {
        if self.process != process::id() {
            let text = "a connection does not survive a fork: connect in the child";
            return Err(raise(py, &Failure::invalid(text)));
        }
        self.agent.lock().clone().ok_or_else(|| {
            let failure = Failure::new(
                Cause::AgentLost,
                format!("the connection to agent {} was closed", self.node),
            );
            raise(py, &failure)
        })
    }

    /// Starts a call of the local API.
    fn start<T, F>(
        &self,
        py: Python<'_>,
        bound: Option<Duration>,
        work: impl FnOnce(Agent) -> F,
        tell: impl Fn(Python<'_>, &T) -> PyResult<Py<PyAny>> + Send + Sync + 'static,
    ) -> PyResult<Call>
    where
        T: Send + Sync + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let agent = self.agent(py)?;
        let bound = bound.unwrap_or(agent.timeout);
        let work = work(agent.clone());
        Ok(Call::start(&agent, &self.all, bound, work, tell))
    }

    fn register(&self, py: Python<'_>, request: pb::RegisterRegionRequest) -> PyResult<Call> {
        let ask =
            |agent: Agent| async move { agent.answer(agent.api().register_region(request)).await };
        self.start(py, Some(REGISTER_TIMEOUT), ask, tell_region)
    }
}

#[pymethods]
impl Connection {
    #[getter]
    fn closed(&self) -> bool {
        self.agent.lock().is_none()
    }

    /// Ends everything under way.
    fn close(&self) {
        self.all.cancel();
        drop(self.agent.lock().take());
    }

    fn register_pool(
        &self,
        py: Python<'_>,
        of: NamespaceWords,
        bytes: u64,
        hugepages: bool,
    ) -> PyResult<Call> {
        self.register(
            py,
            pb::RegisterRegionRequest {
                namespace: Some(namespace(of)),
                source: Some(Source::Pool(pb::PoolSource { bytes, hugepages })),
                geometry: None,
                keep_on_disconnect: false,
            },
        )
    }

    fn register_path(
        &self,
        py: Python<'_>,
        of: NamespaceWords,
        path: String,
        planes: GeometryWords,
        keep: bool,
    ) -> PyResult<Call> {
        self.register(
            py,
            pb::RegisterRegionRequest {
                namespace: Some(namespace(of)),
                source: Some(Source::Path(pb::PathSource { path })),
                geometry: Some(geometry(py, planes)?),
                keep_on_disconnect: keep,
            },
        )
    }

    fn register_fd(
        &self,
        py: Python<'_>,
        of: NamespaceWords,
        fd: RawFd,
        planes: GeometryWords,
        keep: bool,
    ) -> PyResult<Call> {
        let request = pb::RegisterRegionRequest {
            namespace: Some(namespace(of)),
            source: None,
            geometry: Some(geometry(py, planes)?),
            keep_on_disconnect: keep,
        };
        if fd < 0 {
            return Err(raise(py, &Failure::invalid("the descriptor is negative")));
        }
        // SAFETY: not negative; borrowed for this one call, which fails where it is not open.
        let own = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned();
        let own = own.map_err(|error| {
            raise(
                py,
                &Failure::system("the descriptor cannot be duplicated", error),
            )
        })?;
        let ask = |agent: Agent| async move { agent.register_descriptor(own, request).await };
        self.start(py, Some(REGISTER_TIMEOUT), ask, tell_region)
    }

    #[allow(clippy::too_many_arguments)] // Python's names are in `kvferry`
    fn register_cuda_ipc(
        &self,
        py: Python<'_>,
        of: NamespaceWords,
        device_uuid: String,
        handle: PyBackedBytes,
        offset: u64,
        length: u64,
        planes: GeometryWords,
    ) -> PyResult<Call> {
        self.register(
            py,
            pb::RegisterRegionRequest {
                namespace: Some(namespace(of)),
                source: Some(Source::CudaIpc(pb::CudaIpcSource {
                    device_uuid,
                    handle: Bytes::copy_from_slice(&handle),
                    offset,
                    length,
                })),
                geometry: Some(geometry(py, planes)?),
                keep_on_disconnect: false,
            },
        )
    }

    fn unregister(&self, py: Python<'_>, region: u32) -> PyResult<Call> {
        let request = pb::UnregisterRegionRequest { region };
        let ask = |agent: Agent| async move {
            agent.answer(agent.api().unregister_region(request)).await
        };
        self.start(
            py,
            Some(UNREGISTER_TIMEOUT),
            ask,
            |py, it: &pb::UnregisterRegionResponse| it.blocks_removed.into_py_any(py),
        )
    }

    /// Maps a region's memory: its answer is a `Mapping`.
    fn open_region(&self, py: Python<'_>, region: u32, writable: bool) -> PyResult<Call> {
        let ask = |agent: Agent| async move {
            let given = agent.open_region(RegionId(region), writable).await?;
            Mapped::new(given, writable).map(Arc::new)
        };
        self.start(py, None, ask, |py, mapped: &Arc<Mapped>| {
            Mapping(Arc::clone(mapped)).into_py_any(py)
        })
    }

    /// `count` slots of a pool, or these.
    fn reserve(&self, py: Python<'_>, region: u32, wanted: Vec<u32>, count: u32) -> PyResult<Call> {
        let request = pb::ReserveRequest {
            region,
            count,
            slots: slots(py, wanted)?,
        };
        let ask = |agent: Agent| async move { agent.answer(agent.api().reserve(request)).await };
        self.start(py, None, ask, |py, it: &pb::ReserveResponse| {
            it.slots.clone().into_py_any(py)
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn seal(
        &self,
        py: Python<'_>,
        region: u32,
        sealed: Vec<u32>,
        of: HashesWords,
        chained: bool,
        parent: PyBackedBytes,
        wait_announced: f64,
    ) -> PyResult<Call> {
        let wait = seconds(py, wait_announced, MAX_WAIT_ANNOUNCED_S, "wait_announced")?;
        let request = pb::SealRequest {
            region,
            slots: slots(py, sealed)?,
            hashes: Some(hashes(py, of)?),
            chained,
            parent: Bytes::copy_from_slice(&parent),
            wait_announced_ms: wait.as_millis() as u32, // at most MAX_WAIT_ANNOUNCED_S
        };
        let bound = self.agent(py)?.timeout + wait;
        let nothing = none(request.hashes.as_ref()).then(|| pb::SealResponse {
            announced: true,
            ..pb::SealResponse::default()
        });
        let ask = |agent: Agent| async move {
            unless(nothing, agent.answer(agent.api().seal(request))).await
        };
        self.start(py, Some(bound), ask, tell_sealed)
    }

    fn abort(&self, py: Python<'_>, region: u32, given_up: Vec<u32>) -> PyResult<Call> {
        let request = pb::AbortRequest {
            region,
            slots: slots(py, given_up)?,
        };
        let ask = |agent: Agent| async move { agent.answer(agent.api().abort(request)).await };
        self.start(py, None, ask, |py, _: &pb::AbortResponse| Ok(py.None()))
    }

    /// Copies `data`'s bytes, piece by piece as the agent takes them.
    #[allow(clippy::too_many_arguments)]
    fn put(
        &self,
        py: Python<'_>,
        to: String,
        of: HashesWords,
        data: Vec<Py<Span>>,
        chained: bool,
        parent: PyBackedBytes,
        bound: f64,
        wait_announced: f64,
    ) -> PyResult<Call> {
        let wait = seconds(py, wait_announced, MAX_WAIT_ANNOUNCED_S, "wait_announced")?;
        let bound = timeout(py, bound, "timeout")? + wait;
        let first = pb::PutRequest {
            namespace: to,
            hashes: Some(hashes(py, of)?),
            chained,
            parent: Bytes::copy_from_slice(&parent),
            data: Bytes::new(),
            wait_announced_ms: wait.as_millis() as u32, // at most MAX_WAIT_ANNOUNCED_S
        };
        for span in &data {
            span.get().check_bytes()?;
        }
        // The spans go with the call, so the memory stays as long as it is read.
        let pieces = data.into_iter().flat_map(|span| {
            let len = span.get().len();
            (0..len)
                .step_by(PIECE_BYTES)
                .map(move |from| pb::PutRequest {
                    data: span.get().copy(from, PIECE_BYTES),
                    ..pb::PutRequest::default()
                })
        });
        let nothing = none(first.hashes.as_ref()).then(|| pb::PutResponse {
            announced: true,
            ..pb::PutResponse::default()
        });
        let stream = tokio_stream::iter(std::iter::once(first).chain(pieces));
        let ask = |agent: Agent| async move {
            unless(nothing, agent.answer(agent.api().put(stream))).await
        };
        self.start(py, Some(bound), ask, |py, it: &pb::PutResponse| {
            let told = (it.blocks_stored, it.blocks_already_present, it.announced);
            told.into_py_any(py)
        })
    }

    fn lookup(
        &self,
        py: Python<'_>,
        within: String,
        of: HashesWords,
        prefix: bool,
        bound: f64,
    ) -> PyResult<Call> {
        let wait = seconds(py, bound, MAX_LOOKUP_S, "timeout")?;
        let request = pb::LookupRequest {
            namespace: within,
            hashes: Some(hashes(py, of)?),
            prefix,
            timeout_ms: wire_ms(wait),
        };
        let bound = self.agent(py)?.timeout + wait;
        let nothing = none(request.hashes.as_ref()).then(pb::LookupResponse::default);
        let ask = |agent: Agent| async move {
            unless(nothing, agent.answer(agent.api().lookup(request))).await
        };
        self.start(py, Some(bound), ask, |py, it: &pb::LookupResponse| {
            it.places.clone().into_py_any(py)
        })
    }

    /// Into these slots of a region, or, with none, into the pool.
    #[allow(clippy::too_many_arguments)]
    fn pull(
        &self,
        py: Python<'_>,
        within: String,
        of: HashesWords,
        to: Option<(u32, Vec<u32>)>,
        bound: f64,
        pin_ttl: f64,
        replica: bool,
        chained: bool,
        parent: PyBackedBytes,
        stages: Vec<u32>,
    ) -> PyResult<Pull> {
        let bound = timeout(py, bound, "timeout")?;
        let pin_ttl = seconds(py, pin_ttl, MAX_TTL_S, "pin_ttl")?;
        let wanted = hashes(py, of)?;
        let blocks = count(&wanted);
        let destination = match to {
            None => Destination::Pool(pb::PoolDestination {
                pin_ttl_ms: wire_ms(pin_ttl),
            }),
            Some((region, given)) if given.len() == blocks => {
                Destination::Slots(pb::SlotDestination {
                    region,
                    slots: slots(py, given)?,
                })
            }
            Some((_, given)) => {
                let text = format!("{} slots for {blocks} hashes", given.len());
                return Err(raise(py, &Failure::invalid(text)));
            }
        };
        let request = pb::PullRequest {
            namespace: within,
            hashes: Some(wanted),
            timeout_ms: wire_ms(bound),
            destination: Some(destination),
            no_replica: !replica,
            chained,
            parent: Bytes::copy_from_slice(&parent),
            columns: false,
            stages,
        };
        let agent = self.agent(py)?;
        Ok(Pull::start(agent, &self.all, request, blocks, bound))
    }

    fn pin(&self, py: Python<'_>, within: String, of: HashesWords, ttl: f64) -> PyResult<Call> {
        let ttl = seconds(py, ttl, MAX_TTL_S, "ttl")?;
        let request = pb::PinRequest {
            namespace: within,
            hashes: Some(hashes(py, of)?),
            ttl_ms: wire_ms(ttl),
        };
        let nothing = none(request.hashes.as_ref()).then(pb::PinResponse::default);
        let ask = |agent: Agent| async move {
            unless(nothing, agent.answer(agent.api().pin(request))).await
        };
        self.start(py, None, ask, tell_pinned)
    }

    fn release(&self, py: Python<'_>, pin: u64) -> PyResult<Call> {
        let request = pb::ReleaseRequest { pin };
        let ask = |agent: Agent| async move { agent.answer(agent.api().release(request)).await };
        self.start(py, None, ask, |py, _: &pb::ReleaseResponse| Ok(py.None()))
    }

    /// None: all of the namespace.
    fn evict(&self, py: Python<'_>, within: String, of: Option<HashesWords>) -> PyResult<Call> {
        let request = pb::EvictRequest {
            namespace: within,
            hashes: of.map(|of| hashes(py, of)).transpose()?,
        };
        // No hashes mean all of them to the agent, which is not what an empty list means.
        let nothing = none(request.hashes.as_ref()).then(pb::EvictResponse::default);
        let ask = |agent: Agent| async move {
            unless(nothing, agent.answer(agent.api().evict(request))).await
        };
        self.start(py, None, ask, |py, it: &pb::EvictResponse| {
            (it.evicted, it.kept_pinned).into_py_any(py)
        })
    }

    fn claim(
        &self,
        py: Python<'_>,
        within: String,
        of: HashesWords,
        ttl: f64,
        keep: bool,
        purpose: i32,
    ) -> PyResult<Call> {
        let request = pb::ClaimBlocksRequest {
            namespace: within,
            hashes: Some(hashes(py, of)?),
            ttl_ms: wire_ms(seconds(py, ttl, MAX_TTL_S, "ttl")?),
            keep_on_disconnect: keep,
            purpose,
        };
        let nothing = none(request.hashes.as_ref()).then(pb::ClaimResponse::default);
        let ask = |agent: Agent| async move {
            unless(nothing, agent.answer(agent.claims().claim_blocks(request))).await
        };
        self.start(py, None, ask, tell_claimed)
    }

    fn renew_claims(&self, py: Python<'_>, token: u64, ttl: f64) -> PyResult<Call> {
        let ttl_ms = wire_ms(seconds(py, ttl, MAX_TTL_S, "ttl")?);
        let request = pb::RenewClaimsRequest { token, ttl_ms };
        let ask =
            |agent: Agent| async move { agent.answer(agent.claims().renew_blocks(request)).await };
        self.start(py, None, ask, |py, it: &pb::RenewClaimsResponse| {
            it.claims.into_py_any(py)
        })
    }

    /// None: all of the lease.
    fn release_claims(
        &self,
        py: Python<'_>,
        token: u64,
        of: Option<HashesWords>,
    ) -> PyResult<Call> {
        let hashes = of.map(|of| hashes(py, of)).transpose()?;
        let nothing = none(hashes.as_ref()).then(pb::ReleaseClaimsResponse::default);
        let request = pb::ReleaseClaimsRequest { token, hashes };
        let ask = |agent: Agent| async move {
            unless(
                nothing,
                agent.answer(agent.claims().release_blocks(request)),
            )
            .await
        };
        self.start(py, None, ask, |py, it: &pb::ReleaseClaimsResponse| {
            it.released.into_py_any(py)
        })
    }

    fn stats(&self, py: Python<'_>) -> PyResult<Call> {
        let ask = |agent: Agent| async move {
            agent.answer(agent.api().stats(pb::StatsRequest {})).await
        };
        self.start(py, None, ask, tell_stats)
    }
}
