//! The local API without its socket and without coordinators.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use kvferry_proto::{Incarnation, Labels, NodeAddresses, NodeId, pb};
use kvferry_security::tls::Dialer;
use tokio::time::Instant;
use tonic::{
    body::Body,
    codegen::{Service, http},
    service::Routes,
};

use super::{Defaults, LocalApi, Registry, Shared, TensorsApi};
use crate::{
    config::Compression,
    coordinators::Coordinators,
    gpu::Gpus,
    region::{RegionCatalog, Store, StoreLimits, eviction::EvictionKind},
    service::client::{ClientHandle, Clients},
    session::{ChangeLog, Identity},
    tickets::{Gate, Tickets, Wallet},
    transfer::TransferConfig,
    transport::{Links, LinksConfig},
};

/// Until an answer is left alone: pulls may take as long as they are told.
const WITHIN: Duration = Duration::from_millis(25);

/// Every service of an agent's local API, as it is served, called by one engine.
pub struct Calls {
    api: LocalApi,
    routes: Routes,
    client: ClientHandle,
}

impl Calls {
    /// None where the machine has no room for it. Must be called on a tokio runtime.
    #[must_use]
    pub fn new() -> Option<Self> {
        let incarnation = Incarnation::new(1).ok()?;
        let log = Arc::new(ChangeLog::new());
        let limits = StoreLimits {
            regions: 4,
            slots: 1 << 14,
            namespaces: 3,
            pins_per_client: 4,
            pinned_blocks_per_client: 64,
        };
        let catalog = Arc::new(RegionCatalog::new(incarnation));
        let coordinators = Coordinators::new(&[], Compression::None, &Dialer::clear()).ok()?;
        let coordinators = Arc::new(coordinators);
        let node = NodeId::new("n").ok()?;
        let tickets = Tickets {
            gate: Arc::new(Gate::open()),
            wallet: Arc::new(Wallet::new(node.clone(), Arc::clone(&coordinators) as _).ok()?),
        };
        let api = LocalApi::new(Shared {
            store: Arc::new(Store::new(catalog, Arc::clone(&log) as _, limits)),
            log,
            coordinators,
            tickets,
            coordinator_addresses: Vec::new(),
            sessions: Vec::new(),
            links: Links::new(Vec::new(), None, LinksConfig::default()),
            deposits: Arc::default(),
            served: Arc::default(),
            payload: Arc::default(),
            identity: Identity {
                node,
                incarnation,
                addresses: NodeAddresses::default(),
                labels: Labels::default(),
            },
            defaults: Defaults {
                pool_bytes: 64 << 10,
                hugepages: false,
                eviction: EvictionKind::Prefix,
                pull_timeout: Duration::from_millis(20),
                replicate: true,
                max_candidates: 4,
                transfer: TransferConfig::default(),
            },
            imports: Default::default(),
            leases: Default::default(),
            gpus: Gpus::default(),
            pulls: Arc::default(),
            background: Arc::default(),
            reads: Arc::default(),
            transfer: Arc::default(),
            tensors: Registry::new(0),
            holders: AtomicU64::new(1),
            start: Instant::now(),
        });
        let (clients, _) = Clients::new();
        let routes = Routes::new(TensorsApi::server(api.clone()))
            .add_service(api.clone().claims_server())
            .add_service(api.clone().locations_server())
            .add_service(api.clone().server());
        Some(Self {
            api,
            routes,
            client: clients.handle(),
        })
    }

    /// What the agent does now and then.
    pub fn tick(&self) {
        self.api.store.tick(self.api.now());
        self.api.leases.expire(self.api.now());
    }

    /// A coordinator's order to copy, and what becomes of it.
    pub async fn copy(&self, order: pb::Replicate) -> pb::Replicated {
        self.api.carry_out(order).await
    }

    /// One call with this body, framed as gRPC has it. What it answers within a moment comes back.
    pub async fn call(&self, path: &str, body: Bytes) -> Vec<u8> {
        let request = http::Request::post(path)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .extension(self.client.clone())
            .body(Body::new(Full::new(body)));
        let Ok(request) = request else {
            return Vec::new();
        };
        let (mut routes, mut answered) = (self.routes.clone(), Vec::new());
        let talk = async {
            let Ok(response) = routes.call(request).await;
            let mut body = response.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                if let Ok(data) = frame.into_data() {
                    answered.extend_from_slice(&data);
                }
            }
        };
        tokio::time::timeout(WITHIN, Box::pin(talk)).await.ok();
        answered
    }
}
