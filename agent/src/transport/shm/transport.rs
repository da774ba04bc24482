//! The reader's way to owners on the same host.

use std::{io::ErrorKind, path::Path, sync::Arc};

use kvferry_security::ticket::Refusal;

use super::{
    client::{DescriptorClient, DescriptorError},
    copier::Copier,
    host_id,
    link::ShmLink,
};
use crate::{
    tickets::{Held, Wallet},
    transport::{BoxFuture, ConnectError, Link, PeerTarget, Transport, TransportKind},
};

/// Opens links to owners on this host. One of it per process: its links share the copying threads.
#[derive(Clone)]
pub struct ShmTransport {
    host_id: Arc<str>,
    copier: Copier,
    behind: Option<Arc<dyn Transport>>,
    tickets: Option<Arc<Wallet>>,
}

impl Default for ShmTransport {
    fn default() -> Self {
        Self::new(&host_id())
    }
}

impl ShmTransport {
    /// For a process on this host (see [`host_id`]); an empty one reaches nobody.
    #[must_use]
    pub fn new(host_id: &str) -> Self {
        Self {
            host_id: host_id.into(),
            copier: Copier::new(),
            behind: None,
            tickets: None,
        }
    }

    /// Shows a ticket to owners of other users that want one.
    #[must_use]
    pub fn with_tickets(self, wallet: Arc<Wallet>) -> Self {
        Self {
            tickets: Some(wallet),
            ..self
        }
    }

    /// `behind` takes over, within a link, what cannot be mapped: regions of GPU memory.
    #[must_use]
    pub fn with_behind(self, behind: Arc<dyn Transport>) -> Self {
        Self {
            behind: Some(behind),
            ..self
        }
    }

    async fn open(&self, peer: &PeerTarget) -> Result<Arc<dyn Link>, ConnectError> {
        let path = match &peer.addresses.shm {
            Some(path) if self.reaches(peer) => path,
            _ => {
                return Err(ConnectError::NoPath {
                    node: peer.node.clone(),
                    transport: TransportKind::Shm.as_str(),
                    detail: "it is not on this host, or hands out no memory".to_owned(),
                });
            }
        };
        let (connected, shown) = self.connect_to(Path::new(path), peer).await?;
        match connected {
            Ok(client) => {
                let (copier, behind) = (self.copier.clone(), self.behind.clone());
                let unwatched = |error: std::io::Error| ConnectError::Unreachable {
                    node: peer.node.clone(),
                    address: path.clone(),
                    detail: error.to_string(),
                };
                let owner = client.watch().await.map_err(unwatched)?;
                let link = ShmLink::new(peer, client, owner, shown, copier, behind);
                Ok(Arc::new(link) as Arc<dyn Link>)
            }
            Err(DescriptorError::WrongIncarnation { found }) => {
                Err(ConnectError::WrongIncarnation {
                    node: peer.node.clone(),
                    expected: peer.incarnation,
                    found,
                })
            }
            // It will know more in a moment.
            Err(DescriptorError::TicketRefused { refusal }) if refusal != Refusal::NotReady => {
                Err(ConnectError::TicketRefused {
                    node: peer.node.clone(),
                    refusal,
                })
            }
            // There is nobody here to get one from.
            Err(DescriptorError::TicketNeeded) => Err(ConnectError::TicketRefused {
                node: peer.node.clone(),
                refusal: Refusal::Absent,
            }),
            Err(error) if turns_user_away(&error) => Err(ConnectError::UserRefused {
                node: peer.node.clone(),
                transport: TransportKind::Shm.as_str(),
                detail: format!("see its allow_uids: {error}"),
            }),
            Err(error @ DescriptorError::Busy) => Err(ConnectError::Refused {
                node: peer.node.clone(),
                detail: error.to_string(),
            }),
            Err(error) => Err(ConnectError::Unreachable {
                node: peer.node.clone(),
                address: path.clone(),
                detail: error.to_string(),
            }),
        }
    }
}

/// Does the owner, or the kernel for it, let nobody of this user in? Where no other user is listed its socket is its own
/// user's.
fn turns_user_away(error: &DescriptorError) -> bool {
    match error {
        DescriptorError::NotAllowed => true,
        DescriptorError::Connect { source, .. } => source.kind() == ErrorKind::PermissionDenied,
        _ => false,
    }
}

impl ShmTransport {
    /// Connects, with a ticket where one turns out to be needed: owners of this user want none.
    #[allow(clippy::type_complexity)]
    async fn connect_to(
        &self,
        path: &Path,
        peer: &PeerTarget,
    ) -> Result<
        (
            Result<DescriptorClient, DescriptorError>,
            Option<(Arc<Wallet>, Held)>,
        ),
        ConnectError,
    > {
        let no_ticket = |why| ConnectError::NoTicket {
            node: peer.node.clone(),
            why,
        };
        let expected = Some(peer.incarnation);
        let connected = DescriptorClient::connect(path, expected).await;
        let (Err(DescriptorError::TicketNeeded), Some(wallet)) = (&connected, &self.tickets) else {
            return Ok((connected, None));
        };
        let mut held = match wallet.ticket(peer).await.map_err(no_ticket)? {
            Some(held) => held,
            None => {
                let absent = wallet.after_refusal(peer, None, Refusal::Absent).await;
                absent.map_err(no_ticket)?
            }
        };
        let mut connected =
            DescriptorClient::connect_as(path, expected, Some((wallet, &held))).await;
        if let Err(DescriptorError::TicketRefused { refusal }) = connected {
            let again = wallet.after_refusal(peer, Some(&held), refusal).await;
            held = again.map_err(no_ticket)?;
            connected = DescriptorClient::connect_as(path, expected, Some((wallet, &held))).await;
            if let Err(DescriptorError::TicketRefused { refusal }) = &connected {
                wallet.refused(peer, held.number, *refusal);
            }
        }
        Ok((connected, Some((Arc::clone(wallet), held))))
    }
}

impl Transport for ShmTransport {
    fn kind(&self) -> TransportKind {
        TransportKind::Shm
    }

    fn reaches(&self, peer: &PeerTarget) -> bool {
        peer.addresses.shm.is_some()
            && !self.host_id.is_empty()
            && peer.addresses.host_id == *self.host_id
    }

    fn connect<'a>(
        &'a self,
        peer: &'a PeerTarget,
    ) -> BoxFuture<'a, Result<Arc<dyn Link>, ConnectError>> {
        Box::pin(self.open(peer))
    }
}
