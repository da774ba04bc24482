use std::sync::atomic::AtomicU64;

use kvferry_proto::NodeAddresses;
use kvferry_security::ticket::Refusal;

use super::*;
use crate::{
    region::RegionCatalog,
    transport::sim::{SimFaults, SimNetwork},
    transport::{BoxFuture, Capabilities, PendingRead, ReadRequest, tcp::TcpTransport},
};

fn peer(name: &str, incarnation: u64) -> PeerTarget {
    PeerTarget {
        node: NodeId::new(name).unwrap(),
        incarnation: Incarnation::new(incarnation).unwrap(),
        addresses: NodeAddresses::default(),
    }
}

fn start(network: &SimNetwork, peer: &PeerTarget) {
    let catalog = Arc::new(RegionCatalog::new(peer.incarnation));
    network.start(&peer.node, catalog);
}

fn links(network: &SimNetwork, config: LinksConfig) -> Links {
    Links::new(vec![Arc::new(network.transport())], None, config)
}

#[tokio::test]
async fn one_link_is_opened_and_kept_until_it_is_lost() {
    let network = SimNetwork::new(1);
    let a = peer("a", 1);
    start(&network, &a);
    let links = links(&network, LinksConfig::default());
    let (first, second) = tokio::join!(
        links.link(&a, ChecksumPolicy::Off),
        links.link(&a, ChecksumPolicy::Off)
    );
    assert!(Arc::ptr_eq(&first.unwrap(), &second.unwrap()));
    assert_eq!(links.counters().connects(), 1);
    network.cut(&a.node);
    assert!(links.existing(&a, ChecksumPolicy::Off).is_none());
    assert!(!links.link(&a, ChecksumPolicy::Off).await.unwrap().is_lost());
    assert_eq!(links.counters().connects(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failed_peer_is_left_alone_for_a_while() {
    let network = SimNetwork::new(1);
    let config = LinksConfig {
        backoff_first: Duration::from_millis(100),
        ..LinksConfig::default()
    };
    let links = links(&network, config);
    let a = peer("a", 1);
    assert!(links.link(&a, ChecksumPolicy::Off).await.is_err());
    start(&network, &a);
    // Fails fast with the last error, without a try.
    assert!(matches!(
        links.link(&a, ChecksumPolicy::Off).await,
        Err(ConnectError::Unreachable { .. })
    ));
    assert_eq!(links.counters().failures(), 1);
    assert_eq!(links.counters().backed_off(), 1);
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(links.link(&a, ChecksumPolicy::Off).await.is_ok());
}

#[tokio::test]
async fn the_next_transport_is_used_where_the_best_fails() {
    let network = SimNetwork::new(1);
    let mut a = peer("a", 1);
    start(&network, &a);
    // A data address where nobody listens: a port that was free a moment ago.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    a.addresses.data = Some(listener.local_addr().unwrap());
    drop(listener);
    let transports: Vec<Arc<dyn Transport>> = vec![
        Arc::new(TcpTransport::default()),
        Arc::new(network.transport()),
    ];
    let both = Links::new(transports.clone(), None, LinksConfig::default());
    assert_eq!(
        both.link(&a, ChecksumPolicy::Off).await.unwrap().kind(),
        TransportKind::Sim
    );
    assert_eq!(both.counters().fallbacks(), 1);
    let ways: Vec<_> = both.counters().fallbacks_by_way().collect();
    let taken: Vec<_> = ways.iter().filter(|way| way.3 > 0).collect();
    assert_eq!(taken.len(), 1, "{ways:?}");
    let forced = Links::new(transports, Some(TransportKind::Tcp), LinksConfig::default());
    assert!(forced.link(&a, ChecksumPolicy::Off).await.is_err());
    a.addresses.data = None;
    let nowhere = peer("nowhere", 1);
    assert!(matches!(
        forced.link(&nowhere, ChecksumPolicy::Off).await,
        Err(ConnectError::NoPath { .. })
    ));
}

/// A transport whose peers refuse our tickets, or our user.
struct Shut {
    by_user: bool,
}

impl Transport for Shut {
    fn kind(&self) -> TransportKind {
        TransportKind::Shm
    }

    fn reaches(&self, _: &PeerTarget) -> bool {
        true
    }

    fn connect<'a>(
        &'a self,
        peer: &'a PeerTarget,
    ) -> BoxFuture<'a, Result<Arc<dyn Link>, ConnectError>> {
        let node = peer.node.clone();
        let refused = match self.by_user {
            true => ConnectError::UserRefused {
                node,
                transport: TransportKind::Shm.as_str(),
                detail: "see its lists".into(),
            },
            false => ConnectError::TicketRefused {
                node,
                refusal: Refusal::Expired,
            },
        };
        Box::pin(async { Err(refused) })
    }
}

/// What a pull hears of `a`, which is shut by the one transport; `there` says whether the other one finds it.
async fn shut(by_user: bool, there: Option<bool>) -> Result<Arc<dyn Link>, ConnectError> {
    let mut transports: Vec<Arc<dyn Transport>> = vec![Arc::new(Shut { by_user })];
    if let Some(there) = there {
        let network = SimNetwork::new(1);
        if there {
            start(&network, &peer("a", 1));
        }
        transports.push(Arc::new(network.transport()));
    }
    let ways = transports.len() as u64;
    // Whoever comes first.
    let mut found = Vec::new();
    for _ in 0..2 {
        let links = Links::new(transports.clone(), None, LinksConfig::default());
        found.push(links.link(&peer("a", 1), ChecksumPolicy::Off).await);
        let failures = links.counters().failures();
        assert!(failures == ways || found.iter().all(Result::is_ok));
        transports.reverse();
    }
    let said: Vec<_> = found.iter().map(|f| f.as_ref().err()).collect();
    assert_eq!(format!("{:?}", said[0]), format!("{:?}", said[1]));
    found.remove(0)
}

#[tokio::test]
async fn a_refused_ticket_is_the_reason_also_where_the_next_transport_finds_nobody() {
    let failed = shut(false, Some(false)).await;
    assert!(failed.is_err_and(|error| error.is_denial()));
}

#[tokio::test]
async fn a_refused_user_is_the_reason_only_where_there_is_no_other_way() {
    let alone = shut(true, None).await;
    assert!(alone.is_err_and(|error| error.is_denial()));
    // The other way may be well again soon: an outage.
    let nobody_there = shut(true, Some(false)).await;
    assert!(matches!(
        nobody_there,
        Err(ConnectError::Unreachable { .. })
    ));
    assert!(shut(true, Some(true)).await.is_ok(), "it is taken");
}

/// The simulated transport under another name.
struct Named {
    kind: TransportKind,
    network: SimNetwork,
    needs_checksum: bool,
}

struct NamedLink(Arc<dyn Link>, TransportKind);

impl Transport for Named {
    fn kind(&self) -> TransportKind {
        self.kind
    }
    fn reaches(&self, _: &PeerTarget) -> bool {
        true
    }
    fn needs_checksum(&self) -> bool {
        self.needs_checksum
    }
    fn connect<'a>(
        &'a self,
        peer: &'a PeerTarget,
    ) -> BoxFuture<'a, Result<Arc<dyn Link>, ConnectError>> {
        Box::pin(async move {
            let link = self.network.transport().connect(peer).await?;
            Ok(Arc::new(NamedLink(link, self.kind)) as Arc<dyn Link>)
        })
    }
}

impl Link for NamedLink {
    fn kind(&self) -> TransportKind {
        self.1
    }
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    fn read(&self, request: ReadRequest) -> PendingRead {
        self.0.read(request)
    }
    fn received_bytes(&self) -> u64 {
        self.0.received_bytes()
    }
    fn is_lost(&self) -> bool {
        self.0.is_lost()
    }
}

/// A peer that is reached over a fast network and over sockets, each a simulation of its own.
struct TwoWays {
    fast: SimNetwork,
    links: Links,
    peer: PeerTarget,
}

impl TwoWays {
    fn new(needs_checksum: bool) -> Self {
        let (fast, slow) = (SimNetwork::new(1), SimNetwork::new(2));
        let peer = peer("a", 1);
        start(&fast, &peer);
        start(&slow, &peer);
        let named = |kind, network: &SimNetwork, needs_checksum| {
            Arc::new(Named {
                kind,
                network: network.clone(),
                needs_checksum,
            }) as Arc<dyn Transport>
        };
        let transports = vec![
            named(TransportKind::Rdma, &fast, needs_checksum),
            named(TransportKind::Tcp, &slow, false),
        ];
        Self {
            fast,
            links: Links::new(transports, None, LinksConfig::default()),
            peer,
        }
    }

    async fn kind(&self, policy: ChecksumPolicy) -> TransportKind {
        self.links.link(&self.peer, policy).await.unwrap().kind()
    }

    fn fast_fails(&self, fails: bool) {
        self.fast.set_faults(SimFaults {
            unreachable_ppm: if fails { 1_000_000 } else { 0 },
            ..SimFaults::default()
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_falls_back_at_once_and_climbs_when_the_better_way_is_well() {
    let ways = TwoWays::new(false);
    assert_eq!(ways.kind(ChecksumPolicy::Off).await, TransportKind::Rdma);
    ways.fast_fails(true);
    ways.fast.cut(&ways.peer.node);
    // It is not even tried: whoever waits for blocks must not wait for it.
    let counters = ways.links.counters();
    assert_eq!(ways.kind(ChecksumPolicy::Off).await, TransportKind::Tcp);
    assert_eq!((counters.fallbacks(), counters.failures()), (1, 0));
    let way = ("rdma", "tcp", "failed_recently", 1);
    assert!(counters.fallbacks_by_way().any(|taken| taken == way));
    let over_tcp = ways.links.link(&ways.peer, ChecksumPolicy::Off).await;
    settle(20).await;
    assert!(counters.failures() > 0);
    assert_eq!(ways.kind(ChecksumPolicy::Off).await, TransportKind::Tcp);
    ways.fast_fails(false);
    settle(35).await;
    assert_eq!(ways.kind(ChecksumPolicy::Off).await, TransportKind::Rdma);
    assert_eq!(counters.recoveries(), 1);
    // What still reads over the other one is not disturbed.
    assert!(!over_tcp.unwrap().is_lost());
}

/// Time for the upkeep, of which it needs less than this.
async fn settle(seconds: u64) {
    for _ in 0..seconds * 2 {
        tokio::time::advance(Duration::from_millis(500)).await;
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn blocks_without_checksums_take_a_way_that_vouches_for_its_bytes() {
    let ways = TwoWays::new(true);
    assert_eq!(ways.kind(ChecksumPolicy::Always).await, TransportKind::Rdma);
    for policy in [ChecksumPolicy::Off, ChecksumPolicy::Sampled] {
        assert_eq!(ways.kind(policy).await, TransportKind::Tcp);
    }
    assert_eq!(ways.links.len(), 2);
    assert_eq!(ways.links.counters().fallbacks(), 0);
    // Where no way needs them there is one link for all.
    let ways = TwoWays::new(false);
    ways.kind(ChecksumPolicy::Always).await;
    assert_eq!(ways.kind(ChecksumPolicy::Off).await, TransportKind::Rdma);
    assert_eq!(ways.links.len(), 1);
}

#[tokio::test]
async fn a_way_that_brought_wrong_bytes_is_left_alone() {
    let ways = TwoWays::new(true);
    let link = ways.links.link(&ways.peer, ChecksumPolicy::Always).await;
    ways.links.distrust(&ways.peer, &link.unwrap());
    assert_eq!(ways.links.counters().distrusted(), 1);
    assert_eq!(ways.kind(ChecksumPolicy::Always).await, TransportKind::Tcp);
}

#[tokio::test]
async fn links_are_bounded_and_the_one_unused_longest_goes() {
    let network = SimNetwork::new(1);
    let config = LinksConfig {
        max_links: 2,
        ..LinksConfig::default()
    };
    let links = links(&network, config);
    let peers: Vec<_> = ["a", "b", "c"].iter().map(|name| peer(name, 1)).collect();
    for peer in &peers {
        start(&network, peer);
        drop(links.link(peer, ChecksumPolicy::Off).await.unwrap());
    }
    assert_eq!(links.len(), 2);
    assert!(links.existing(&peers[0], ChecksumPolicy::Off).is_none());
    assert_eq!(links.counters().evictions(), 1);
    // With all in use, one more is given out and not kept.
    let _b = links.link(&peers[1], ChecksumPolicy::Off).await.unwrap();
    let _c = links.link(&peers[2], ChecksumPolicy::Off).await.unwrap();
    let a = links.link(&peers[0], ChecksumPolicy::Off).await.unwrap();
    assert!(!a.is_lost());
    assert_eq!(links.len(), 2);
}

#[tokio::test]
async fn a_restart_voids_the_old_link() {
    let network = SimNetwork::new(1);
    let (old, new) = (peer("a", 1), peer("a", 2));
    start(&network, &old);
    let links = links(&network, LinksConfig::default());
    links.link(&old, ChecksumPolicy::Off).await.unwrap();
    start(&network, &new);
    assert!(matches!(
        links.link(&old, ChecksumPolicy::Off).await,
        Err(ConnectError::WrongIncarnation { found, .. }) if found == new.incarnation
    ));
    links.link(&new, ChecksumPolicy::Off).await.unwrap();
    links.void_before(&new.node, new.incarnation);
    assert_eq!(links.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_suspect_is_cleared_by_a_probe_that_is_answered() {
    let network = SimNetwork::new(1);
    let a = peer("a", 1);
    start(&network, &a);
    let links = links(&network, LinksConfig::default());
    links.link(&a, ChecksumPolicy::Off).await.unwrap();
    network.set_faults(SimFaults {
        unreachable_ppm: 1_000_000,
        ..SimFaults::default()
    });
    links.suspect(&a);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(links.is_suspect(&a.node, a.incarnation));
    assert!(links.counters().probes() > 0);
    network.set_faults(SimFaults::default());
    for _ in 0..200 {
        if !links.is_suspect(&a.node, a.incarnation) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("still suspect");
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_connect_is_shared() {
    struct Slow(SimNetwork, AtomicU64);
    impl Transport for Slow {
        fn kind(&self) -> TransportKind {
            TransportKind::Sim
        }
        fn reaches(&self, _: &PeerTarget) -> bool {
            true
        }
        fn connect<'a>(
            &'a self,
            peer: &'a PeerTarget,
        ) -> BoxFuture<'a, Result<Arc<dyn Link>, ConnectError>> {
            Box::pin(async move {
                self.1.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
                self.0.transport().connect(peer).await
            })
        }
    }
    let network = SimNetwork::new(1);
    let slow = Arc::new(Slow(network, AtomicU64::new(0)));
    let links = Links::new(
        vec![Arc::clone(&slow) as Arc<dyn Transport>],
        None,
        LinksConfig::default(),
    );
    let a = peer("a", 1);
    let results = tokio::join!(
        links.link(&a, ChecksumPolicy::Off),
        links.link(&a, ChecksumPolicy::Off),
        links.link(&a, ChecksumPolicy::Off)
    );
    assert!(results.0.is_err() && results.1.is_err() && results.2.is_err());
    assert_eq!(slow.1.load(Ordering::Relaxed), 1);
}
