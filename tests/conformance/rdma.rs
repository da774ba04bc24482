//! RDMA, where a device is at hand: `tests/rdma` has a virtual machine with two.
//!
//! `KVFERRY_RDMA_DEVICES=OWNER,READER` names the devices (default: all for both), `KVFERRY_RDMA_REQUIRED=1` makes
//! their absence a failure, `KVFERRY_RDMA_GID` names the index to use.

use std::{net::SocketAddr, sync::Arc};

use kvferry_agent::{
    PeerApi,
    region::RegionCatalog,
    session::Identity,
    transport::{
        PeerTarget, Transport,
        rdma::{Devices, RdmaConfig, RdmaOwner, RdmaTransport},
    },
};
use kvferry_proto::{Labels, NodeAddresses};
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use crate::world::{World, catalog, peer};

/// The devices of the owner, or of the reader.
pub fn devices(place: usize) -> Option<Arc<Devices>> {
    let names = std::env::var("KVFERRY_RDMA_DEVICES").unwrap_or_default();
    let name = names.split(',').nth(place).filter(|name| !name.is_empty());
    let opened = Devices::open(RdmaConfig {
        nics: name.map(str::to_owned).into_iter().collect(),
        gid_index: std::env::var("KVFERRY_RDMA_GID")
            .ok()
            .and_then(|index| index.parse().ok()),
        ..RdmaConfig::default()
    });
    match opened {
        Ok(devices) => Some(devices),
        Err(why) => {
            assert!(
                std::env::var_os("KVFERRY_RDMA_REQUIRED").is_none(),
                "no RDMA: {why}"
            );
            println!("skipped: no RDMA here: {why}");
            None
        }
    }
}

pub struct RdmaWorld {
    pub catalog: Arc<RegionCatalog>,
    pub owner: Arc<RdmaOwner>,
    address: SocketAddr,
    reader: Arc<Devices>,
    stop: watch::Sender<bool>,
}

impl RdmaWorld {
    /// None where there is no device, said aloud.
    pub async fn try_start() -> Option<Self> {
        let (serving, reader) = (devices(0)?, devices(1)?);
        let catalog = catalog();
        let owner = RdmaOwner::new(&serving, &catalog);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let identity = Identity {
            node: peer(NodeAddresses::default()).node,
            incarnation: catalog.incarnation(),
            addresses: NodeAddresses::default(),
            labels: Labels::default(),
        };
        let (stop, stopped) = watch::channel(false);
        let ended = |mut stopped: watch::Receiver<bool>| async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        tokio::spawn(Arc::clone(&owner).serve(ended(stopped.clone())));
        let service = PeerApi::server(identity, Some(Arc::clone(&owner)));
        tokio::spawn(async move {
            let serving = Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener));
            // As a crash: connections close at once.
            tokio::select! {
                served = serving => served.unwrap(),
                () = ended(stopped) => {}
            }
        });
        Some(Self {
            catalog,
            owner,
            address,
            reader,
            stop,
        })
    }
}

impl World for RdmaWorld {
    async fn start() -> Self {
        Self::try_start().await.expect("a device that was there is gone")
    }
    async fn possible() -> bool {
        devices(0).is_some()
    }
    fn catalog(&self) -> Arc<RegionCatalog> {
        Arc::clone(&self.catalog)
    }
    fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(RdmaTransport::new(Arc::clone(&self.reader), "reader", None))
    }
    fn peer(&self) -> PeerTarget {
        peer(NodeAddresses {
            peer: Some(self.address),
            rdma: true,
            ..NodeAddresses::default()
        })
    }
    fn kill(&self) {
        self.stop.send_replace(true);
    }
}
