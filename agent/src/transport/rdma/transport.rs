//! The reader's way to owners over RDMA.

use std::sync::Arc;

use kvferry_security::tls::Dialer;
use tokio::time::timeout;

use super::{
    config::CONNECT_BOUND, connect, devices::Devices, link::RdmaLink, owner_client::OwnerClient,
};
use crate::{
    tickets::Wallet,
    transport::{BoxFuture, ConnectError, Link, PeerTarget, Transport, TransportKind},
};

/// Opens links over RDMA.
#[derive(Clone)]
pub struct RdmaTransport {
    devices: Arc<Devices>,
    /// Who we are, for owners' messages to people.
    from: Arc<str>,
    behind: Option<Arc<dyn Transport>>,
    tickets: Option<Arc<Wallet>>,
    /// How owners' Peer services are dialled.
    dialer: Dialer,
}

impl RdmaTransport {
    /// Over these devices. `from` is this node's name. `behind` takes over, within a link, what RDMA cannot read:
    /// regions or local memory that no device could register.
    #[must_use]
    pub fn new(devices: Arc<Devices>, from: &str, behind: Option<Arc<dyn Transport>>) -> Self {
        Self {
            devices,
            from: from.into(),
            behind,
            tickets: None,
            dialer: Dialer::clear(),
        }
    }

    /// Shows owners tickets, where they are in use.
    #[must_use]
    pub fn with_tickets(self, wallet: Arc<Wallet>) -> Self {
        Self {
            tickets: Some(wallet),
            ..self
        }
    }

    /// Says how owners' Peer services are dialled, if not in clear.
    #[must_use]
    pub fn dialing(mut self, dialer: Dialer) -> Self {
        self.dialer = dialer;
        self
    }

    async fn open(&self, peer: &PeerTarget) -> Result<Arc<dyn Link>, ConnectError> {
        let tickets = self.tickets.clone();
        let client = OwnerClient::connect(peer, &self.from, tickets, &self.dialer).await?;
        let all: Vec<usize> = (0..self.devices.list.len()).collect();
        let lanes = match connect::lanes(&self.devices, &client, peer, &all).await {
            Ok(lanes) => lanes,
            Err(error) => {
                client.close().await;
                return Err(error);
            }
        };
        let link = RdmaLink::new(peer, &self.devices, client, lanes, self.behind.clone());
        Ok(Arc::new(link))
    }
}

impl Transport for RdmaTransport {
    fn kind(&self) -> TransportKind {
        TransportKind::Rdma
    }

    fn reaches(&self, peer: &PeerTarget) -> bool {
        peer.addresses.rdma && peer.addresses.peer.is_some()
    }

    fn needs_checksum(&self) -> bool {
        self.devices.need_checksums()
    }

    fn connect<'a>(
        &'a self,
        peer: &'a PeerTarget,
    ) -> BoxFuture<'a, Result<Arc<dyn Link>, ConnectError>> {
        Box::pin(async move {
            match timeout(CONNECT_BOUND, self.open(peer)).await {
                Ok(result) => result,
                Err(_) => Err(ConnectError::Unreachable {
                    node: peer.node.clone(),
                    address: peer
                        .addresses
                        .peer
                        .map_or_else(String::new, |a| a.to_string()),
                    detail: format!("not connected within {CONNECT_BOUND:?}"),
                }),
            }
        })
    }
}
