//! The gRPC shell: parses messages into events and queries, carries effects out.

mod admin;
mod claims;
pub(crate) mod compression;
pub(crate) mod copying;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod hub;
pub(crate) mod locate;
mod locations;
mod outbound;
pub mod parse;
mod replication;
mod router;
mod session;
mod sources;
mod status;
mod tickets;
mod timed;
mod told;
mod unary;
mod watch;
pub mod watched;
mod wire;

use std::sync::Arc;

use kvferry_proto::pb::{self, coordinator_server::Coordinator};
use tonic::{Request, Response, Status, Streaming};

pub(crate) use claims::ClaimsService;
pub(crate) use hub::{Hub, HubConfig};
pub(crate) use locations::LocationsService;
use outbound::Outbound;
pub(crate) use replication::ReplicationService;
pub(crate) use router::CoordinatorRouter;
pub(crate) use sources::SourcesService;
pub(crate) use tickets::TicketsService;
pub(crate) use timed::Timed;
pub(crate) use watch::WatchService;

/// `kvferry.v1.Coordinator` over one directory.
#[derive(Debug, Clone)]
pub(crate) struct CoordinatorService {
    hub: Arc<Hub>,
}

impl CoordinatorService {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }
}

#[tonic::async_trait]
impl Coordinator for CoordinatorService {
    type SessionStream = Outbound<pb::CoordinatorMessage>;

    async fn session(
        &self,
        request: Request<Streaming<pb::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let access = self.hub.access(request.extensions());
        session::open(&self.hub, access, request.into_inner()).map(Response::new)
    }

    async fn locate(
        &self,
        request: Request<pb::LocateRequest>,
    ) -> Result<Response<pb::LocateResponse>, Status> {
        let access = self.hub.access(request.extensions());
        locate::locate(&self.hub, &access, request.into_inner()).map(Response::new)
    }

    async fn create_namespace(
        &self,
        request: Request<pb::CreateNamespaceRequest>,
    ) -> Result<Response<pb::CreateNamespaceResponse>, Status> {
        let access = self.hub.access(request.extensions());
        admin::create_namespace(&self.hub, &access, request.into_inner()).map(Response::new)
    }

    async fn list_namespaces(
        &self,
        request: Request<pb::ListNamespacesRequest>,
    ) -> Result<Response<pb::ListNamespacesResponse>, Status> {
        let access = self.hub.access(request.extensions());
        Ok(Response::new(admin::list_namespaces(&self.hub, &access)))
    }

    async fn describe_namespace(
        &self,
        request: Request<pb::DescribeNamespaceRequest>,
    ) -> Result<Response<pb::NamespaceInfo>, Status> {
        let access = self.hub.access(request.extensions());
        admin::describe_namespace(&self.hub, &access, &request.into_inner()).map(Response::new)
    }

    async fn delete_namespace(
        &self,
        request: Request<pb::DeleteNamespaceRequest>,
    ) -> Result<Response<pb::DeleteNamespaceResponse>, Status> {
        let access = self.hub.access(request.extensions());
        admin::delete_namespace(&self.hub, &access, &request.into_inner()).map(Response::new)
    }

    async fn list_nodes(
        &self,
        request: Request<pb::ListNodesRequest>,
    ) -> Result<Response<pb::ListNodesResponse>, Status> {
        let access = self.hub.access(request.extensions());
        Ok(Response::new(admin::list_nodes(&self.hub, &access)))
    }

    async fn describe_node(
        &self,
        request: Request<pb::DescribeNodeRequest>,
    ) -> Result<Response<pb::NodeInfo>, Status> {
        let access = self.hub.access(request.extensions());
        admin::describe_node(&self.hub, &access, &request.into_inner()).map(Response::new)
    }

    async fn drain_node(
        &self,
        request: Request<pb::DrainNodeRequest>,
    ) -> Result<Response<pb::NodeInfo>, Status> {
        let access = self.hub.access(request.extensions());
        admin::drain_node(&self.hub, &access, &request.into_inner()).map(Response::new)
    }
}
