//! The reader's way to owners on the same host.

use std::{path::Path, sync::Arc};

use super::{
    client::{DescriptorClient, DescriptorError},
    copier::Copier,
    host_id,
    link::ShmLink,
};
use crate::transport::{BoxFuture, ConnectError, Link, PeerTarget, Transport, TransportKind};

/// Opens links to owners on this host. One of it per process: its links share the copying threads.
#[derive(Clone)]
pub struct ShmTransport {
    host_id: Arc<str>,
    copier: Copier,
    behind: Option<Arc<dyn Transport>>,
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
        match DescriptorClient::connect(Path::new(path), Some(peer.incarnation)).await {
            Ok(client) => {
                let link = ShmLink::new(peer, client, self.copier.clone(), self.behind.clone());
                Ok(Arc::new(link) as Arc<dyn Link>)
            }
            Err(DescriptorError::WrongIncarnation { found }) => {
                Err(ConnectError::WrongIncarnation {
                    node: peer.node.clone(),
                    expected: peer.incarnation,
                    found,
                })
            }
            Err(error @ (DescriptorError::NotAllowed | DescriptorError::Busy)) => {
                Err(ConnectError::Refused {
                    node: peer.node.clone(),
                    detail: error.to_string(),
                })
            }
            Err(error) => Err(ConnectError::Unreachable {
                node: peer.node.clone(),
                address: path.clone(),
                detail: error.to_string(),
            }),
        }
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
