//! The owner's Peer service, as a reader calls it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use kvferry_proto::{
    Incarnation, NodeId, RegionId,
    pb::{self, peer_client::PeerClient},
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use super::{
    config::{CALL_BOUND, MAX_DESCRIBED},
    op::{RemoteKeys, RemoteRegion},
    wire::{BadMessage, parse_memory},
};
use crate::transport::{ConnectError, PeerTarget, TransportKind};

/// What came of a renewal.
pub(super) enum Renewed {
    Alive,
    /// The owner knows no such session.
    Gone,
    /// It did not answer.
    Unknown(CallError),
}

/// A call of an owner's Peer service failed. Nothing is known of what it has done.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum CallError {
    /// It did not answer, or refuses.
    #[error("{:?}: {}", .0.code(), .0.message())]
    Status(Box<Status>),
    /// It answers what cannot be.
    #[error("its answer makes no sense: {0}")]
    Nonsense(#[from] BadMessage),
    /// It answers what was not asked.
    #[error("it describes other regions than were asked for")]
    OtherRegions,
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// One owner's Peer service and our session there.
#[derive(Clone)]
pub(super) struct OwnerClient {
    client: PeerClient<Channel>,
    /// 0 until the owner has made one.
    session: Arc<AtomicU64>,
    /// Who we are, for the owner's messages to people.
    from: Arc<str>,
}

impl OwnerClient {
    pub(super) async fn connect(peer: &PeerTarget, from: &str) -> Result<Self, ConnectError> {
        let Some(address) = peer.addresses.peer else {
            return Err(no_path(&peer.node, "it has no Peer service"));
        };
        let unreachable = |error: tonic::transport::Error| {
            let mut detail = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                detail = cause.to_string();
                source = cause.source();
            }
            ConnectError::Unreachable {
                node: peer.node.clone(),
                address: address.to_string(),
                detail,
            }
        };
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(unreachable)?;
        let channel = endpoint
            .connect_timeout(CALL_BOUND)
            .timeout(CALL_BOUND)
            .tcp_nodelay(true)
            .connect()
            .await
            .map_err(unreachable)?;
        Ok(Self {
            client: PeerClient::new(channel),
            session: Arc::default(),
            from: from.into(),
        })
    }

    /// Offers queue pairs. Gives a lane for each, in order.
    pub(super) async fn connect_pairs(
        &self,
        peer: &PeerTarget,
        endpoints: Vec<pb::RdmaEndpoint>,
    ) -> Result<Vec<pb::RdmaLane>, ConnectError> {
        let asked = endpoints.len();
        let request = pb::ConnectRdmaRequest {
            from_node: self.from.to_string(),
            incarnation: peer.incarnation.get(),
            session: self.session.load(Ordering::Acquire),
            endpoints,
        };
        let answer = self.client.clone().connect_rdma(request).await;
        let answer = answer.map_err(|status| failed(peer, status))?.into_inner();
        if answer.incarnation != peer.incarnation.get() {
            return Err(match Incarnation::new(answer.incarnation) {
                Ok(found) => ConnectError::WrongIncarnation {
                    node: peer.node.clone(),
                    expected: peer.incarnation,
                    found,
                },
                Err(_) => refused(&peer.node, "it names no incarnation"),
            });
        }
        if answer.lanes.len() != asked {
            return Err(refused(&peer.node, "it answers for other queue pairs"));
        }
        self.session.store(answer.session, Ordering::Release);
        Ok(answer.lanes)
    }

    /// Where regions lie; None for those that are gone.
    pub(super) async fn describe(
        &self,
        regions: &[RegionId],
    ) -> Result<Vec<Option<RemoteRegion>>, CallError> {
        let mut described = Vec::with_capacity(regions.len());
        for some in regions.chunks(MAX_DESCRIBED) {
            let request = pb::DescribeRdmaRegionsRequest {
                session: self.session.load(Ordering::Acquire),
                regions: some.iter().map(|id| id.0).collect(),
            };
            let answer = self.client.clone().describe_rdma_regions(request).await;
            let answer = answer?.into_inner();
            if answer.regions.len() != some.len() {
                return Err(CallError::OtherRegions);
            }
            for (id, region) in some.iter().zip(answer.regions) {
                described.push(parse_region(*id, &region)?);
            }
        }
        Ok(described)
    }

    pub(super) async fn renew(&self) -> Renewed {
        let session = self.session.load(Ordering::Acquire);
        let request = pb::RenewRdmaRequest { session };
        match self.client.clone().renew_rdma(request).await {
            Ok(answer) if answer.get_ref().alive => Renewed::Alive,
            Ok(_) => Renewed::Gone,
            Err(status) => Renewed::Unknown(status.into()),
        }
    }

    /// Goodbye. An owner that does not hear it finds out by the lease.
    pub(super) async fn close(&self) {
        let session = self.session.swap(0, Ordering::AcqRel);
        if session != 0 {
            let request = pb::CloseRdmaRequest { session };
            if let Err(status) = self.client.clone().close_rdma(request).await {
                tracing::debug!("an owner was not told goodbye: {}", CallError::from(status));
            }
        }
    }
}

pub(super) fn parse_region(
    id: RegionId,
    message: &pb::RdmaRegion,
) -> Result<Option<RemoteRegion>, BadMessage> {
    if !message.exists {
        return Ok(None);
    }
    let keys = message.keys.iter().map(|keys| {
        Ok(RemoteKeys {
            device: keys.device,
            data: parse_memory(keys.data.as_ref())?,
            generations: parse_memory(keys.generations.as_ref())?,
        })
    });
    Ok(Some(RemoteRegion {
        id,
        keys: keys.collect::<Result<_, _>>()?,
    }))
}

fn failed(peer: &PeerTarget, status: Status) -> ConnectError {
    match status.code() {
        Code::Unimplemented => no_path(&peer.node, "its version has no RDMA"),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
            ConnectError::Unreachable {
                node: peer.node.clone(),
                address: peer
                    .addresses
                    .peer
                    .map_or_else(String::new, |a| a.to_string()),
                detail: CallError::from(status).to_string(),
            }
        }
        Code::FailedPrecondition => no_path(&peer.node, status.message()),
        _ => refused(&peer.node, status.message()),
    }
}

pub(super) fn no_path(node: &NodeId, detail: &str) -> ConnectError {
    ConnectError::NoPath {
        node: node.clone(),
        transport: TransportKind::Rdma.as_str(),
        detail: detail.to_owned(),
    }
}

fn refused(node: &NodeId, detail: &str) -> ConnectError {
    ConnectError::Refused {
        node: node.clone(),
        detail: detail.to_owned(),
    }
}
