//! The owner's Peer service, as a reader calls it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use kvferry_proto::{
    Incarnation, NodeId, RegionId,
    pb::{self, peer_client::PeerClient},
};
use kvferry_security::{
    ticket::{NONCE_BYTES, Nonce, Purpose, Refusal},
    tls::{Dialer, Line},
};
use tonic::{Code, Status, transport::Endpoint};

use super::{
    config::{CALL_BOUND, MAX_DESCRIBED},
    op::{RemoteKeys, RemoteRegion},
    wire::{BadMessage, parse_memory},
};
use crate::{
    tickets::{Held, Wallet},
    transport::{ConnectError, PeerTarget, TransportKind},
};

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
    /// It refuses our ticket for what was asked: a new link begins with another.
    #[error("it refuses the ticket: {0}")]
    Ticket(Refusal),
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
    client: PeerClient<Line>,
    /// 0 until the owner has made one.
    session: Arc<AtomicU64>,
    /// Who we are, for the owner's messages to people.
    from: Arc<str>,
    tickets: Option<Arc<Wallet>>,
    /// The number of the ticket that the session was begun or renewed with last; 0: none was needed.
    ticket: Arc<AtomicU64>,
}

impl OwnerClient {
    pub(super) async fn connect(
        peer: &PeerTarget,
        from: &str,
        tickets: Option<Arc<Wallet>>,
        dialer: &Dialer,
    ) -> Result<Self, ConnectError> {
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
        let url = format!("{}://{address}", dialer.scheme());
        let endpoint = Endpoint::from_shared(url).map_err(unreachable)?;
        let endpoint = endpoint
            .connect_timeout(CALL_BOUND)
            .timeout(CALL_BOUND)
            .tcp_nodelay(true);
        // Agents know each other by name: whoever took an owner's address has not its certificate.
        let name = Some(peer.node.as_str());
        let connected = dialer.connect_as(&endpoint, name).await;
        let channel = connected.map_err(unreachable)?;
        Ok(Self {
            client: PeerClient::new(channel),
            session: Arc::default(),
            from: from.into(),
            tickets,
            ticket: Arc::default(),
        })
    }

    /// Offers queue pairs. Gives a lane for each, in order.
    pub(super) async fn connect_pairs(
        &self,
        peer: &PeerTarget,
        endpoints: Vec<pb::RdmaEndpoint>,
    ) -> Result<Vec<pb::RdmaLane>, ConnectError> {
        let asked = endpoints.len();
        let mut request = pb::ConnectRdmaRequest {
            from_node: self.from.to_string(),
            incarnation: peer.incarnation.get(),
            session: self.session.load(Ordering::Acquire),
            endpoints,
            ticket: None,
        };
        let no_ticket = |why| ConnectError::NoTicket {
            node: peer.node.clone(),
            why,
        };
        let held = match &self.tickets {
            Some(wallet) => wallet.ticket(peer).await.map_err(no_ticket)?,
            None => None,
        };
        let mut answer = self.ask_to_connect(peer, &mut request, held.as_ref()).await;
        // Once with another ticket.
        if let (Err(ConnectError::TicketRefused { refusal, .. }), Some(wallet)) =
            (&answer, &self.tickets)
        {
            let again = wallet.after_refusal(peer, held.as_ref(), *refusal).await;
            let again = again.map_err(no_ticket)?;
            answer = self.ask_to_connect(peer, &mut request, Some(&again)).await;
            if let Err(ConnectError::TicketRefused { refusal, .. }) = &answer {
                wallet.refused(peer, again.number, *refusal);
            }
        }
        let answer = answer?;
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

    /// Shows the ticket, if there is one and the owner wants it, and asks.
    async fn ask_to_connect(
        &self,
        peer: &PeerTarget,
        request: &mut pb::ConnectRdmaRequest,
        held: Option<&Held>,
    ) -> Result<pb::ConnectRdmaResponse, ConnectError> {
        let check = |code: u32| match u8::try_from(code).map(Refusal::from_code) {
            Ok(_) if code == 0 => Ok(()),
            // It will know more in a moment.
            Ok(refusal @ Refusal::NotReady) => {
                Err(failed(peer, Status::unavailable(refusal.to_string())))
            }
            Ok(refusal) => Err(ticket_refused(peer, refusal)),
            Err(_) => Err(ticket_refused(peer, Refusal::Other)),
        };
        let failed = |status| failed(peer, status);
        let mut shown = 0;
        if let (Some(held), Some(wallet)) = (held, &self.tickets) {
            let ticket = Bytes::copy_from_slice(&held.bytes);
            let challenge = pb::ChallengeRdmaRequest {
                incarnation: peer.incarnation.get(),
                ticket: ticket.clone(),
            };
            let challenge = self.client.clone().challenge_rdma(challenge).await;
            let challenge = challenge.map_err(failed)?.into_inner();
            check(challenge.refused)?;
            if let Ok(nonce) = <[u8; NONCE_BYTES]>::try_from(&challenge.nonce[..]) {
                let proof = wallet.prove(Purpose::Rdma, &Nonce(nonce), &held.bytes);
                request.ticket = Some(pb::TicketProof {
                    ticket,
                    nonce: challenge.nonce,
                    proof: Bytes::copy_from_slice(&proof),
                });
                shown = held.number;
            }
        }
        let answer = self.client.clone().connect_rdma(request.clone()).await;
        let answer = answer.map_err(failed)?.into_inner();
        check(answer.refused)?;
        self.ticket.store(shown, Ordering::Relaxed);
        Ok(answer)
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
                if region.refused != 0 {
                    let refusal = u8::try_from(region.refused).map(Refusal::from_code);
                    let refusal = refusal.unwrap_or(Refusal::Other);
                    return Err(CallError::Ticket(refusal));
                }
                described.push(parse_region(*id, &region)?);
            }
        }
        Ok(described)
    }

    /// An owner refused what our ticket does not let us: it is not shown again.
    pub(super) fn ticket_refused(&self, peer: &PeerTarget, refusal: Refusal) {
        if let Some(wallet) = &self.tickets {
            wallet.refused(peer, self.ticket.load(Ordering::Relaxed), refusal);
        }
    }

    pub(super) async fn renew(&self, peer: &PeerTarget) -> Renewed {
        let session = self.session.load(Ordering::Acquire);
        let shown = self.ticket.load(Ordering::Relaxed);
        let held = match &self.tickets {
            Some(wallet) if shown != 0 => wallet.renewed(peer).await,
            _ => None,
        };
        let later = held.filter(|held| held.number > shown);
        let ticket = later
            .as_ref()
            .map(|held| Bytes::copy_from_slice(&held.bytes));
        let request = pb::RenewRdmaRequest {
            session,
            ticket: ticket.unwrap_or_default(),
        };
        match self.client.clone().renew_rdma(request).await {
            Ok(answer) if answer.get_ref().alive => {
                if let Some(later) = later {
                    match answer.get_ref().refused {
                        0 => self.ticket.store(later.number, Ordering::Relaxed),
                        code => {
                            let refusal = u8::try_from(code).map(Refusal::from_code);
                            let refusal = refusal.unwrap_or(Refusal::Other);
                            tracing::warn!(node = %peer.node, "a renewed ticket is refused: {refusal}");
                            if let Some(wallet) = &self.tickets {
                                wallet.refused(peer, later.number, refusal);
                            }
                        }
                    }
                }
                Renewed::Alive
            }
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

fn ticket_refused(peer: &PeerTarget, refusal: Refusal) -> ConnectError {
    ConnectError::TicketRefused {
        node: peer.node.clone(),
        refusal,
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
