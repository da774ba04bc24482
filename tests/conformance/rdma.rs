//! RDMA, where a device is at hand: `tests/rdma` has a virtual machine with two.
//!
//! `KVFERRY_RDMA_DEVICES=OWNER,READER` names the devices (default: all for both), `KVFERRY_RDMA_REQUIRED=1` makes
//! their absence a failure, `KVFERRY_RDMA_GID` names the index to use.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use kvferry_agent::{
    PeerApi,
    region::RegionCatalog,
    session::Identity,
    tickets::Gate,
    transport::{
        ConnectError, PeerTarget, ReadError, ReadRequest, Transport,
        rdma::{Devices, RdmaConfig, RdmaOwner, RdmaTransport},
    },
};
use kvferry_proto::{Labels, NodeAddresses, RegionId, RemoteSpan};
use kvferry_security::ticket::Refusal;
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use crate::tickets::{Parties, SECRET, add_secret};
use crate::world::{
    PATIENCE, World, add_region, catalog, check_alive, contents, data, eventually, local, pattern,
    peer, read, settled, whole,
};

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
        Self::serving(catalog()).await
    }

    /// As above, of these regions.
    pub async fn serving(catalog: Arc<RegionCatalog>) -> Option<Self> {
        Self::behind(Arc::new(Gate::open()), catalog).await
    }

    /// To those whom the gate lets in.
    async fn behind(gate: Arc<Gate>, catalog: Arc<RegionCatalog>) -> Option<Self> {
        let (serving, reader) = (devices(0)?, devices(1)?);
        let owner = RdmaOwner::behind(gate, &serving, &catalog);
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
        Self::try_start()
            .await
            .expect("a device that was there is gone")
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

/// A world, or the end of the test where there is no device.
macro_rules! world {
    () => {
        match RdmaWorld::try_start().await {
            Some(world) => world,
            None => return,
        }
    };
}

/// A key that the owner has taken back: the reader still has it, and its READs are refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_void_key_is_a_gone_region_and_the_link_lives() {
    let world = world!();
    let link = world.link().await;
    let id = RegionId(60);
    add_region(&world.catalog(), id, 1 << 20, 16);
    let span = RemoteSpan {
        region: id,
        ..data(0..1 << 20)
    };
    read(&link, vec![span], whole(&local(1 << 20)))
        .await
        .unwrap();
    world.catalog().remove(id);
    let start = Instant::now();
    loop {
        // Until the owner has let go of it the reads succeed: the words would be odd.
        match read(&link, vec![span], whole(&local(1 << 20))).await {
            Ok(()) => assert!(start.elapsed() < PATIENCE),
            Err(ReadError::RegionGone { region: 60, .. }) => break,
            Err(other) => panic!("{other}"),
        }
    }
    check_alive(&link).await;
    assert!(!link.is_lost());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simultaneous_connects_from_both_sides_work() {
    let (one, two) = (world!(), world!());
    let (first, second) = tokio::join!(one.link(), two.link());
    let (third, fourth) = tokio::join!(two.link(), one.link());
    for link in [first, second, third, fourth] {
        check_alive(&link).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_link_says_goodbye() {
    let world = world!();
    let link = world.link().await;
    check_alive(&link).await;
    assert_eq!(world.owner.sessions(), 1);
    drop(link);
    eventually("goodbye", || world.owner.sessions() == 0).await;
}

/// An owner that lets nobody in without a ticket, a coordinator that gives some, and a reader.
async fn ticketed() -> Option<(RdmaWorld, Parties, RdmaTransport)> {
    let (parties, catalog) = (Parties::new(), catalog());
    add_secret(&catalog);
    let world = RdmaWorld::behind(Arc::clone(&parties.gate), catalog).await?;
    let reader = RdmaTransport::new(Arc::clone(&world.reader), "reader", None);
    let reader = reader.with_tickets(Arc::clone(&parties.wallet));
    Some((world, parties, reader))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queue_pairs_are_for_those_with_a_ticket() {
    let Some((world, parties, reader)) = ticketed().await else {
        return;
    };
    // The world's own way shows none.
    let refused = world.connect(&world.peer()).await.map(drop);
    assert!(
        matches!(
            refused,
            Err(ConnectError::TicketRefused {
                refusal: Refusal::Absent,
                ..
            })
        ),
        "{refused:?}"
    );
    assert_eq!(world.owner.sessions(), 0);
    let link = reader.connect(&world.peer()).await.unwrap();
    check_alive(&link).await;
    assert_eq!(parties.gate.counters().admitted.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_other_namespaces_are_not_told() {
    let Some((world, parties, reader)) = ticketed().await else {
        return;
    };
    let link = reader.connect(&world.peer()).await.unwrap();
    check_alive(&link).await;
    let secret = RemoteSpan {
        region: SECRET,
        ..data(0..4096)
    };
    let memory = local(4096);
    let refused = read(&link, vec![secret], whole(&memory)).await;
    assert!(
        matches!(
            refused,
            Err(ReadError::TicketRefused {
                refusal: Refusal::OtherNamespace,
                ..
            })
        ),
        "{refused:?}"
    );
    assert!(contents(&memory, 0..4096).iter().all(|byte| *byte == 0));
    // Another ticket, another room: with all that it names.
    parties.change(|terms| terms.scopes = vec!["test", "secret"]);
    let link = reader.connect(&world.peer()).await.unwrap();
    read(&link, vec![secret], whole(&memory)).await.unwrap();
    assert!(contents(&memory, 0..4096) == [0x5e; 4096]);
    check_alive(&link).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_with_its_ticket_and_goes_on_with_another() {
    let Some((world, parties, reader)) = ticketed().await else {
        return;
    };
    // The owner looks every 2.5 seconds, and the reader renews every 5: the second time, with 6 seconds to spare.
    parties.change(|terms| {
        terms.honoured_ms = 16_000;
        terms.left = 2;
    });
    let link = reader.connect(&world.peer()).await.unwrap();
    eventually("renewed", || parties.gate.counters().renewed.get() >= 1).await;
    check_alive(&link).await;
    eventually("ended", || parties.gate.counters().expired.get() == 1).await;
    assert_eq!(world.owner.sessions(), 0);
    eventually("noticed", || link.is_lost()).await;
    parties.change(|terms| terms.left = 1);
    check_alive(&reader.connect(&world.peer()).await.unwrap()).await;
}

fn ip(words: &str) {
    let done = std::process::Command::new("ip")
        .args(words.split(' '))
        .status();
    assert!(done.unwrap().success(), "ip {words}");
}

/// `KVFERRY_RDMA_LINK=va` is the reader's or the owner's interface. It stays down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_link_down_a_cancelled_read_settles_and_the_others_are_lost() {
    let Ok(interface) = std::env::var("KVFERRY_RDMA_LINK") else {
        return println!("skipped: KVFERRY_RDMA_LINK names no interface to take down");
    };
    let world = world!();
    // An interface that has just come up again, in a guest without a processor of its own.
    let deadline = Instant::now() + PATIENCE;
    let link = loop {
        match world.connect(&world.peer()).await {
            Err(ConnectError::Unreachable { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            connected => break connected.unwrap(),
        }
    };
    check_alive(&link).await;
    let start = |_| {
        let memory = local(4 << 20);
        let pending = link.read(ReadRequest {
            remote: vec![data(0..4 << 20)],
            local: whole(&memory),
        });
        (memory, pending)
    };
    let mut reads: Vec<_> = (0..8).map(start).collect();
    tokio::time::sleep(Duration::from_millis(30)).await;
    ip(&format!("link set {interface} down"));
    let (memory, cancelled) = reads.pop().unwrap();
    cancelled.cancel();
    // As it is told to, or with its link, where the device says first that its port is down.
    match settled(cancelled).await {
        Ok(()) => assert!(contents(&memory, 0..9) == pattern(0..9)),
        Err(ReadError::Cancelled | ReadError::LinkLost { .. }) => {}
        Err(other) => panic!("{other}"),
    }
    for (memory, pending) in reads {
        match settled(pending).await {
            Ok(()) => assert!(contents(&memory, 0..4 << 20) == pattern(0..4 << 20)),
            Err(ReadError::LinkLost { .. }) => {}
            Err(other) => panic!("{other}"),
        }
        memory.write_at(0, &[0xAA; 4096]).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(contents(&memory, 0..4096).iter().all(|byte| *byte == 0xAA));
    }
    eventually("lost", || link.is_lost()).await;
}
