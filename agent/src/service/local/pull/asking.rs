//! Whom a pull asks: the coordinators for owners, the links for owners' memory.

use std::sync::Arc;

use kvferry_proto::{BlockHash, ChecksumPolicy, NamespaceSpec};
use tokio::time::Instant;

use crate::{
    coordinators::{CoordinatorError, Located},
    service::local::LocalApi,
    transfer::{BlockIndex, Connect, Locate, LocateError},
    transport::{BoxFuture, ConnectError, Link, Links, PeerTarget},
};

/// Owners of one pull's blocks.
pub(super) struct Asking {
    api: LocalApi,
    spec: Arc<NamespaceSpec>,
    hashes: Vec<BlockHash>,
    deadline: Instant,
}

impl Asking {
    pub(super) fn new(
        api: LocalApi,
        spec: Arc<NamespaceSpec>,
        hashes: Vec<BlockHash>,
        deadline: Instant,
    ) -> Self {
        Self {
            api,
            spec,
            hashes,
            deadline,
        }
    }
}

impl Locate for Asking {
    fn locate<'a>(
        &'a self,
        blocks: &'a [BlockIndex],
    ) -> BoxFuture<'a, Result<Located, LocateError>> {
        Box::pin(async move {
            let hashes = blocks.iter().filter_map(|b| self.hashes.get(*b as usize));
            self.api
                .locate(&self.spec, hashes, self.deadline)
                .await
                .map_err(|error| {
                    let detail = error.to_string();
                    match error {
                        CoordinatorError::Unreachable { .. }
                        | CoordinatorError::Nonsense { .. } => LocateError::Unavailable { detail },
                        CoordinatorError::NamespaceUnknown { .. }
                        | CoordinatorError::Refused { .. } => LocateError::Refused { detail },
                    }
                })
        })
    }
}

/// The agent's links, as a pull sees them.
pub(super) struct PeerLinks {
    links: Links,
    /// Of the blocks to be read.
    policy: ChecksumPolicy,
    host_id: String,
}

impl PeerLinks {
    pub(super) fn new(api: &LocalApi, policy: ChecksumPolicy) -> Self {
        Self {
            links: api.links.clone(),
            policy,
            host_id: api.identity.addresses.host_id.clone(),
        }
    }
}

impl Connect for PeerLinks {
    fn link<'a>(
        &'a self,
        peer: &'a PeerTarget,
    ) -> BoxFuture<'a, Result<Arc<dyn Link>, ConnectError>> {
        Box::pin(self.links.link(peer, self.policy))
    }

    fn open_link(&self, peer: &PeerTarget) -> Option<Arc<dyn Link>> {
        self.links.existing(peer, self.policy)
    }

    fn distrust(&self, peer: &PeerTarget, link: &Arc<dyn Link>) {
        self.links.distrust(peer, link);
    }

    fn suspect(&self, peer: &PeerTarget) {
        self.links.suspect(peer);
    }

    fn is_suspect(&self, peer: &PeerTarget) -> bool {
        self.links.is_suspect(&peer.node, peer.incarnation)
    }

    fn distance(&self, peer: &PeerTarget) -> u8 {
        u8::from(peer.addresses.host_id != self.host_id)
    }
}
