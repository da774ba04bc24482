//! What other agents may ask.

use kvferry_proto::pb::{
    IdentifyRequest, IdentifyResponse,
    peer_server::{Peer, PeerServer},
};
use tonic::{Request, Response, Status};

use crate::session::Identity;

/// The Peer service.
#[derive(Debug)]
pub(crate) struct PeerApi {
    identity: Identity,
}

impl PeerApi {
    pub(crate) fn server(identity: Identity) -> PeerServer<Self> {
        PeerServer::new(Self { identity })
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
}
