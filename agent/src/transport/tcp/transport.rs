//! The reader's way to owners over sockets.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{connection::Terms, link::TcpLink, payload::PayloadTls};
use crate::{
    tickets::Wallet,
    transport::{BoxFuture, ConnectError, Link, PeerTarget, Transport, TransportKind},
};

/// Connections per peer where nothing else is asked for: one core drives about 5 GB/s, so this many fill
/// 100 Gb/s.
const DEFAULT_CONNECTIONS: usize = 4;
/// Until a connection has been answered by a hello: three SYNs, the second after one second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// How links over sockets are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpConfig {
    /// Most connections of one link; at least one. Opened as load asks for them.
    pub max_connections: usize,
    /// Until a connection is open and has been answered by a hello.
    pub connect_timeout: Duration,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            max_connections: DEFAULT_CONNECTIONS,
            connect_timeout: CONNECT_TIMEOUT,
        }
    }
}

/// Opens links to owners' data ports.
#[derive(Debug, Clone, Default)]
pub struct TcpTransport {
    config: TcpConfig,
    terms: Terms,
}

impl TcpTransport {
    /// With this configuration.
    #[must_use]
    pub fn new(config: TcpConfig) -> Self {
        Self {
            config,
            terms: Terms::default(),
        }
    }

    /// Shows owners tickets, where they are in use.
    #[must_use]
    pub fn with_tickets(mut self, wallet: Arc<Wallet>) -> Self {
        self.terms.tickets = Some(wallet);
        self
    }

    /// Knows owners that speak TLS, and may want nobody else.
    #[must_use]
    pub fn with_tls(mut self, tls: PayloadTls) -> Self {
        self.terms.tls = tls;
        self
    }
}

impl Transport for TcpTransport {
    fn kind(&self) -> TransportKind {
        TransportKind::Tcp
    }

    fn reaches(&self, peer: &PeerTarget) -> bool {
        peer.addresses.data.is_some()
    }

    fn connect<'a>(
        &'a self,
        peer: &'a PeerTarget,
    ) -> BoxFuture<'a, Result<Arc<dyn Link>, ConnectError>> {
        Box::pin(async move {
            let Some(address) = peer.addresses.data else {
                return Err(ConnectError::NoPath {
                    node: peer.node.clone(),
                    transport: TransportKind::Tcp.as_str(),
                    detail: "it has no data address".to_owned(),
                });
            };
            let bound = self.config.connect_timeout;
            let opening = TcpLink::open(peer, address, self.config.clone(), self.terms.clone());
            match timeout(bound, opening).await {
                Ok(Ok(link)) => Ok(Arc::new(link) as Arc<dyn Link>),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(ConnectError::Unreachable {
                    node: peer.node.clone(),
                    address: address.to_string(),
                    detail: format!("no answer within {bound:?}"),
                }),
            }
        })
    }
}
