//! What other agents may ask.

use std::sync::Arc;

use kvferry_proto::pb::{
    ChallengeRdmaRequest, ChallengeRdmaResponse, CloseRdmaRequest, CloseRdmaResponse,
    ConnectRdmaRequest, ConnectRdmaResponse, DescribeRdmaRegionsRequest,
    DescribeRdmaRegionsResponse, IdentifyRequest, IdentifyResponse, RenewRdmaRequest,
    RenewRdmaResponse,
    peer_server::{Peer, PeerServer},
};
use tokio::task::spawn_blocking;
use tonic::{Request, Response, Status};

use crate::{
    session::Identity,
    transport::rdma::{LetInError, PublishError, RdmaOwner},
};

/// The Peer service.
pub struct PeerApi {
    identity: Identity,
    rdma: Option<Arc<RdmaOwner>>,
}

impl PeerApi {
    /// Speaks for one agent, which lets readers in by RDMA where it has an owner's side of it.
    #[must_use]
    pub fn server(identity: Identity, rdma: Option<Arc<RdmaOwner>>) -> PeerServer<Self> {
        PeerServer::new(Self { identity, rdma })
    }

    /// Runs calls into devices where they may take their time.
    async fn with_rdma<T: Send + 'static>(
        &self,
        call: impl FnOnce(&RdmaOwner) -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let owner = self.rdma.clone();
        let owner =
            owner.ok_or_else(|| Status::failed_precondition("this node has no RDMA device"))?;
        match spawn_blocking(move || call(&owner)).await {
            Ok(result) => result.map(Response::new),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }
}

#[tonic::async_trait]
impl Peer for PeerApi {
    async fn identify(
        &self,
        _request: Request<IdentifyRequest>,
    ) -> Result<Response<IdentifyResponse>, Status> {
        Ok(Response::new(IdentifyResponse {
            node: self.identity.node.to_string(),
            incarnation: self.identity.incarnation.get(),
            addresses: Some((&self.identity.addresses).into()),
        }))
    }

    async fn challenge_rdma(
        &self,
        request: Request<ChallengeRdmaRequest>,
    ) -> Result<Response<ChallengeRdmaResponse>, Status> {
        let request = request.into_inner();
        self.with_rdma(move |owner| {
            owner
                .challenge(&request)
                .map_err(|error| not_let_in(&error))
        })
        .await
    }

    async fn connect_rdma(
        &self,
        request: Request<ConnectRdmaRequest>,
    ) -> Result<Response<ConnectRdmaResponse>, Status> {
        let request = request.into_inner();
        self.with_rdma(move |owner| owner.connect(&request).map_err(|error| not_let_in(&error)))
            .await
    }

    async fn describe_rdma_regions(
        &self,
        request: Request<DescribeRdmaRegionsRequest>,
    ) -> Result<Response<DescribeRdmaRegionsResponse>, Status> {
        let request = request.into_inner();
        self.with_rdma(move |owner| {
            let regions = owner.describe(request.session, &request.regions);
            let regions = regions.map_err(|error| match error {
                PublishError::NoSession => Status::not_found(error.to_string()),
                PublishError::TooMany => Status::invalid_argument(error.to_string()),
            })?;
            Ok(DescribeRdmaRegionsResponse { regions })
        })
        .await
    }

    async fn renew_rdma(
        &self,
        request: Request<RenewRdmaRequest>,
    ) -> Result<Response<RenewRdmaResponse>, Status> {
        let request = request.get_ref();
        let renewed = self.rdma.as_ref().map(|owner| owner.renew(request));
        Ok(Response::new(renewed.unwrap_or_default()))
    }

    async fn close_rdma(
        &self,
        request: Request<CloseRdmaRequest>,
    ) -> Result<Response<CloseRdmaResponse>, Status> {
        if let Some(owner) = &self.rdma {
            owner.close(request.get_ref().session);
        }
        Ok(Response::new(CloseRdmaResponse {}))
    }
}

fn not_let_in(error: &LetInError) -> Status {
    let text = error.to_string();
    match error {
        LetInError::TooManySessions | LetInError::TooManyRooms | LetInError::Domain(_) => {
            Status::resource_exhausted(text)
        }
        LetInError::TooManyEndpoints(_) => Status::invalid_argument(text),
        LetInError::NoSession => Status::not_found(text),
        LetInError::Randomness(_) => Status::unavailable(text),
    }
}
