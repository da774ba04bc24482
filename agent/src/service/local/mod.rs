//! The local API. One file per group of calls; this one is the switchboard.

mod claims;
pub(crate) mod copies;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
mod get;
mod imports;
mod leases;
mod locations;
mod lookup;
mod pull;
mod put;
mod regions;
mod slots;
mod stats;
mod status;
mod tensors;

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kvferry_observe::{trace, traced};
use kvferry_proto::{
    MAX_MESSAGE_BYTES, NamespaceSpec, RegionId, pb, pb::agent_server::AgentServer,
};
use tokio::{sync::watch, time::Instant};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, Span};

use super::client::ClientHandle;
use crate::{
    coordinators::Coordinators,
    gpu::Gpus,
    metrics::PullMetrics,
    region::{Holder, PoolOptions, Region, RegisterError, Store, eviction::EvictionKind},
    session::{ChangeLog, Identity, Reads, SessionStatus},
    tickets::Tickets,
    transfer::{TransferConfig, TransferMetrics},
    transport::{
        Links,
        shm::DepositBox,
        tcp::{PayloadRefusals, ServeCounters},
    },
};
pub(crate) use tensors::{Registry, TensorsApi, keep_announced};

/// A control call to the coordinator that an engine waits for.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(3);

/// What a call uses where it does not say.
#[derive(Debug, Clone)]
pub(crate) struct Defaults {
    pub(crate) pool_bytes: u64,
    pub(crate) hugepages: bool,
    pub(crate) eviction: EvictionKind,
    pub(crate) pull_timeout: Duration,
    pub(crate) replicate: bool,
    pub(crate) max_candidates: u32,
    pub(crate) transfer: TransferConfig,
}

/// The local API's state; cheap to clone.
#[derive(Clone)]
pub(crate) struct LocalApi(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) log: Arc<ChangeLog>,
    pub(crate) coordinators: Arc<Coordinators>,
    pub(crate) coordinator_addresses: Vec<String>,
    pub(crate) sessions: Vec<watch::Receiver<SessionStatus>>,
    pub(crate) links: Links,
    pub(crate) deposits: Arc<DepositBox>,
    pub(crate) served: Arc<ServeCounters>,
    pub(crate) payload: Arc<PayloadRefusals>,
    pub(crate) identity: Identity,
    pub(crate) defaults: Defaults,
    pub(crate) imports: imports::Imports,
    pub(crate) leases: leases::Leases,
    pub(crate) gpus: Gpus,
    pub(crate) pulls: Arc<PullMetrics>,
    /// Pulls under way that no engine asked for.
    pub(crate) background: Arc<AtomicU64>,
    pub(crate) reads: Arc<Reads>,
    pub(crate) tickets: Tickets,
    pub(crate) transfer: Arc<TransferMetrics>,
    pub(crate) tensors: Registry,
    /// Numbers the agent's own writers: pulls and puts.
    pub(crate) holders: AtomicU64,
    pub(crate) start: Instant,
}

impl std::ops::Deref for LocalApi {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl LocalApi {
    pub(crate) fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    pub(crate) fn server(self) -> AgentServer<Self> {
        AgentServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Time as the store counts it.
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn control_deadline(&self) -> Instant {
        Instant::now() + CONTROL_TIMEOUT
    }

    /// A holder for one pull or put of the agent's own.
    fn new_holder(&self) -> Holder {
        Holder::Pull(self.holders.fetch_add(1, Ordering::Relaxed))
    }

    /// The namespace's pool; made where there is none.
    fn pool_for(&self, spec: &NamespaceSpec) -> Result<Arc<Region>, RegisterError> {
        if let Some(region) = self.existing_pool(spec) {
            return Ok(region);
        }
        let options = PoolOptions {
            bytes: self.defaults.pool_bytes.max(spec.layout.block_bytes()),
            hugepages: if self.defaults.hugepages {
                kvferry_memory::HugePages::Required
            } else {
                kvferry_memory::HugePages::Off
            },
            eviction: self.defaults.eviction,
        };
        match self.store.add_pool(spec.clone(), options) {
            // Somebody else was quicker.
            Err(error @ RegisterError::PoolExists { .. }) => self.existing_pool(spec).ok_or(error),
            made => made,
        }
    }

    fn existing_pool(&self, spec: &NamespaceSpec) -> Option<Arc<Region>> {
        self.store.region(self.store.pool_of(&spec.name)?)
    }
}

/// Part of the engine's trace, where it sent one.
fn adopted<T>(span: Span, request: &Request<T>) -> Span {
    let parent = request.metadata().get(trace::HEADER);
    trace::adopt(&span, parent.map(|parent| parent.as_bytes()));
    span
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl pb::agent_server::Agent for LocalApi {
    type GetStream = BoxStream<pb::GetResponse>;
    type PullStream = BoxStream<pb::PullEvent>;

    async fn register_region(
        &self,
        request: Request<pb::RegisterRegionRequest>,
    ) -> Result<Response<pb::RegionInfo>, Status> {
        let client = ClientHandle::of(&request)?;
        let info = self.register(client.id(), request.into_inner()).await?;
        Ok(Response::new(info))
    }

    async fn unregister_region(
        &self,
        request: Request<pb::UnregisterRegionRequest>,
    ) -> Result<Response<pb::UnregisterRegionResponse>, Status> {
        let region = RegionId(request.get_ref().region);
        let blocks_removed = self.unregister(region).await?;
        Ok(Response::new(pb::UnregisterRegionResponse {
            blocks_removed,
        }))
    }

    async fn reserve(
        &self,
        request: Request<pb::ReserveRequest>,
    ) -> Result<Response<pb::ReserveResponse>, Status> {
        let client = ClientHandle::of(&request)?;
        Ok(Response::new(
            self.reserve_slots(client.id(), request.get_ref())?,
        ))
    }

    async fn seal(
        &self,
        request: Request<pb::SealRequest>,
    ) -> Result<Response<pb::SealResponse>, Status> {
        let client = ClientHandle::of(&request)?;
        let sealed = self.seal_slots(client.id(), request.into_inner()).await?;
        Ok(Response::new(sealed))
    }

    async fn abort(
        &self,
        request: Request<pb::AbortRequest>,
    ) -> Result<Response<pb::AbortResponse>, Status> {
        let client = ClientHandle::of(&request)?;
        self.abort_slots(client.id(), request.get_ref())?;
        Ok(Response::new(pb::AbortResponse {}))
    }

    async fn put(
        &self,
        request: Request<Streaming<pb::PutRequest>>,
    ) -> Result<Response<pb::PutResponse>, Status> {
        Ok(Response::new(self.put_blocks(request.into_inner()).await?))
    }

    async fn get(
        &self,
        request: Request<pb::GetRequest>,
    ) -> Result<Response<Self::GetStream>, Status> {
        let client = ClientHandle::of(&request)?;
        let span = adopted(traced!("get", otel.kind = "server"), &request);
        let getting = self.get_blocks(client, request.into_inner());
        let stream = getting.instrument(span).await?;
        Ok(Response::new(stream))
    }

    async fn lookup(
        &self,
        request: Request<pb::LookupRequest>,
    ) -> Result<Response<pb::LookupResponse>, Status> {
        Ok(Response::new(self.find_blocks(request.into_inner()).await?))
    }

    async fn pull(
        &self,
        request: Request<pb::PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let client = ClientHandle::of(&request)?;
        let span = adopted(traced!("pull", otel.kind = "server"), &request);
        let pulling = self.pull_blocks(client, request.into_inner());
        let stream = pulling.instrument(span).await?;
        Ok(Response::new(stream))
    }

    async fn pin(
        &self,
        request: Request<pb::PinRequest>,
    ) -> Result<Response<pb::PinResponse>, Status> {
        let client = ClientHandle::of(&request)?;
        let pinned = self.pin_blocks(client.id(), request.into_inner())?;
        Ok(Response::new(pinned))
    }

    async fn release(
        &self,
        request: Request<pb::ReleaseRequest>,
    ) -> Result<Response<pb::ReleaseResponse>, Status> {
        let client = ClientHandle::of(&request)?;
        self.release_pin(client.id(), request.get_ref())?;
        Ok(Response::new(pb::ReleaseResponse {}))
    }

    async fn evict(
        &self,
        request: Request<pb::EvictRequest>,
    ) -> Result<Response<pb::EvictResponse>, Status> {
        Ok(Response::new(self.evict_blocks(request.into_inner())?))
    }

    async fn stats(
        &self,
        _request: Request<pb::StatsRequest>,
    ) -> Result<Response<pb::StatsResponse>, Status> {
        Ok(Response::new(self.numbers()))
    }
}
