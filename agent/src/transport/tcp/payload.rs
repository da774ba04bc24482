//! How a reader wants payload to travel, and what it does where that is not to be had: nothing.

use std::{net::SocketAddr, sync::Arc};

use kvferry_observe::{ByLabel, Counter, label};
use kvferry_security::tls::{Dialer, TlsRefusal};
use tokio::net::TcpStream;

use super::stream::{Sealed, Stream};
use crate::transport::{ConnectError, NotSecure, PeerTarget};

label! {
    /// Why a data connection was not used.
    pub enum PayloadRefusal("reason") {
        /// The owner speaks in clear.
        Clear = "clear",
        /// It should speak TLS, and what answers there does not.
        Downgraded = "downgraded",
        /// It speaks TLS, and we have no CA to know it by.
        NoCa = "no_ca",
        /// Its certificate is of another CA, for another name, or out of date.
        Certificate = "certificate",
        /// It wants a certificate of us, or refuses ours.
        OurCertificate = "our_certificate",
        /// Anything else.
        Handshake = "handshake",
    }
}

impl From<&NotSecure> for PayloadRefusal {
    fn from(why: &NotSecure) -> Self {
        match why {
            NotSecure::Clear => Self::Clear,
            NotSecure::Downgraded { .. } => Self::Downgraded,
            NotSecure::Tls(refusal) => match refusal {
                TlsRefusal::NoCa { .. } => Self::NoCa,
                TlsRefusal::WrongName { .. }
                | TlsRefusal::UnknownIssuer { .. }
                | TlsRefusal::Expired { .. }
                | TlsRefusal::NotYetValid { .. } => Self::Certificate,
                TlsRefusal::CertificateWanted { .. } | TlsRefusal::CertificateRefused { .. } => {
                    Self::OurCertificate
                }
                TlsRefusal::NotTls { .. }
                | TlsRefusal::HungUp { .. }
                | TlsRefusal::Other { .. }
                | TlsRefusal::Client { .. } => Self::Handshake,
            },
        }
    }
}

/// Data connections that were not used since they were not secure.
pub type PayloadRefusals = ByLabel<PayloadRefusal, Counter>;

/// What a reader wants of owners' data ports. By default: TLS of those that say that they speak it, whom it then does not
/// know, so that nothing is read there.
#[derive(Debug, Clone, Default)]
pub struct PayloadTls {
    dialer: Dialer,
    required: bool,
    refused: Arc<PayloadRefusals>,
}

impl PayloadTls {
    /// Knows owners as the dialer does. `required`: nothing is read in clear.
    #[must_use]
    pub fn new(dialer: Dialer, required: bool) -> Self {
        Self {
            dialer,
            required,
            refused: Arc::default(),
        }
    }

    /// What was not used.
    #[must_use]
    pub fn refused(&self) -> Arc<PayloadRefusals> {
        Arc::clone(&self.refused)
    }

    /// Whether a peer may be read from as it says that it can be: known before anything is sent to it.
    pub(super) fn check(&self, peer: &PeerTarget) -> Result<(), ConnectError> {
        match self.required && !peer.addresses.data_tls {
            true => Err(insecure(peer, NotSecure::Clear)),
            false => Ok(()),
        }
    }

    /// Makes a connection what the peer says that it is.
    pub(super) async fn begin(
        &self,
        peer: &PeerTarget,
        address: SocketAddr,
        socket: TcpStream,
    ) -> Result<Stream, ConnectError> {
        if !peer.addresses.data_tls {
            return Ok(Stream::Clear(socket));
        }
        let server = address.to_string();
        let begun = self
            .dialer
            .begin_data(peer.node.as_str(), &server, socket)
            .await;
        match begun {
            Ok((socket, session)) => Ok(Stream::Tls(Box::new(Sealed::new(socket, session)))),
            Err(TlsRefusal::NotTls { server: address }) => {
                Err(insecure(peer, NotSecure::Downgraded { address }))
            }
            // It may be busy, or going away.
            Err(refusal @ TlsRefusal::HungUp { .. }) => Err(ConnectError::Unreachable {
                node: peer.node.clone(),
                address: server,
                detail: refusal.to_string(),
            }),
            Err(refusal) => Err(insecure(peer, NotSecure::Tls(refusal))),
        }
    }

    pub(super) fn count(&self, error: &ConnectError) {
        if let ConnectError::Insecure { why, .. } = error {
            self.refused.of(PayloadRefusal::from(why)).inc();
        }
    }
}

pub(super) fn insecure(peer: &PeerTarget, why: NotSecure) -> ConnectError {
    ConnectError::Insecure {
        node: peer.node.clone(),
        why,
    }
}
