//! TCP: an owner behind a proxy that can stop, and what only sockets can get wrong.

use std::{sync::Arc, time::Duration};

use kvferry_agent::{
    region::RegionCatalog,
    tickets::Gate,
    transport::{
        Link, PeerTarget, ReadError, ReadRequest, Transport,
        tcp::{ServeCounters, TcpConfig, TcpLimits, TcpServer, TcpTransport},
    },
};
use kvferry_memory::HostMemory;
use kvferry_proto::{NodeAddresses, RegionId, RemoteSpan};
use kvferry_security::tls::ServerTls;
use tokio::sync::Notify;

use crate::{
    keys::Keys,
    proxy::Proxy,
    world::{
        BEYOND_BUFFERS, REGION_BYTES, Stalls, World, catalog, check_alive, contents, data,
        eventually, insert, local, pattern, peer, read, settled, whole,
    },
};

pub struct TcpWorld {
    pub catalog: Arc<RegionCatalog>,
    pub counters: Arc<ServeCounters>,
    proxy: Proxy,
    stop: Arc<Notify>,
    /// Past the proxy.
    pub direct: PeerTarget,
    pub reader: TcpTransport,
    /// Where TLS is spoken.
    pub keys: Option<Keys>,
}

impl TcpWorld {
    pub async fn with(limits: TcpLimits) -> Self {
        Self::of(Gate::open(), None, limits).await
    }

    /// An owner that speaks TLS only, and a reader that reads nothing in clear.
    pub async fn by_tls(limits: TcpLimits) -> Self {
        Self::of(Gate::open(), Some(Keys::new()), limits).await
    }

    /// An owner that lets in whom the gate does, and has a certificate where there are keys.
    pub async fn of(gate: impl Into<Arc<Gate>>, keys: Option<Keys>, limits: TcpLimits) -> Self {
        let tls = keys.as_ref().map(|keys| keys.server("owner"));
        let world = Self::speaking(tls, gate, limits).await;
        let reader = keys
            .as_ref()
            .map_or_else(TcpTransport::default, Keys::reader);
        Self {
            reader,
            keys,
            ..world
        }
    }

    pub async fn speaking(
        tls: Option<Arc<ServerTls>>,
        gate: impl Into<Arc<Gate>>,
        limits: TcpLimits,
    ) -> Self {
        let catalog = catalog();
        let loopback = "127.0.0.1:0".parse().unwrap();
        let server = TcpServer::bind(loopback, Arc::clone(&catalog), limits)
            .await
            .unwrap()
            .behind(gate.into());
        let data_tls = tls.is_some();
        let server = match tls {
            Some(tls) => server.by_tls(tls),
            None => server,
        };
        let (address, counters) = (server.local_addr(), server.counters());
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        tokio::spawn(async move { server.serve(stopped.notified()).await });
        Self {
            catalog,
            counters,
            proxy: Proxy::start(address).await,
            stop,
            direct: peer(NodeAddresses {
                data: Some(address),
                data_tls,
                ..NodeAddresses::default()
            }),
            reader: TcpTransport::default(),
            keys: None,
        }
    }

    pub async fn direct_link(&self) -> Arc<dyn Link> {
        self.connect(&self.direct).await.unwrap()
    }
}

impl World for TcpWorld {
    async fn start() -> Self {
        Self::with(TcpLimits::default()).await
    }
    fn catalog(&self) -> Arc<RegionCatalog> {
        Arc::clone(&self.catalog)
    }
    fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(self.reader.clone())
    }
    fn peer(&self) -> PeerTarget {
        peer(NodeAddresses {
            data: Some(self.proxy.address),
            ..self.direct.addresses.clone()
        })
    }
    fn kill(&self) {
        self.stop.notify_one();
        self.proxy.cut();
    }
}

impl Stalls for TcpWorld {
    fn stall_after(&self, bytes: u64) {
        self.proxy.allow(bytes);
    }
    fn resume(&self) {
        self.proxy.allow(u64::MAX);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_answers_too_much_delivers_none_of_it() {
    answers_too_much(&TcpWorld::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_slipped_into_tls_is_not_delivered() {
    answers_too_much(&TcpWorld::by_tls(TcpLimits::default()).await).await;
}

async fn answers_too_much(world: &TcpWorld) {
    // Zeros, text, and what looks like a response's beginning.
    for extra in [vec![0; 4096], b"surplus".repeat(100), vec![1; 16]] {
        let link = world.link().await;
        check_alive(&link).await;
        world.proxy.slip_in(extra);
        let mut lost = false;
        for _ in 0..20 {
            let memory = local(1000);
            let read = link.read(ReadRequest {
                remote: vec![data(0..1000)],
                local: whole(&memory),
            });
            match settled(read).await {
                Ok(()) => assert_eq!(contents(&memory, 0..1000), pattern(0..1000)),
                Err(ReadError::LinkLost { .. }) => lost = true,
                Err(other) => panic!("{other:?}"),
            }
        }
        assert!(lost, "nobody noticed");
        // Another connection to the same owner is as good as ever.
        check_alive(&world.link().await).await;
    }
}

/// Who looks for stalls sees what comes slowly as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trickle_is_counted_as_it_comes() {
    trickle(&TcpWorld::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trickle_by_tls_is_counted_as_it_comes() {
    trickle(&TcpWorld::by_tls(TcpLimits::default()).await).await;
}

async fn trickle(world: &TcpWorld) {
    let link = world.link().await;
    check_alive(&link).await;
    world.stall_after(0);
    let memory = local(4 << 20);
    let mut before = link.received_bytes();
    let pending = link.read(ReadRequest {
        remote: vec![data(0..4 << 20)],
        local: whole(&memory),
    });
    for _ in 0..3 {
        world.stall_after(40_000);
        // By TLS half a record is no payload yet.
        eventually("counted", || link.received_bytes() >= before + 20_000).await;
        before = link.received_bytes();
    }
    world.resume();
    settled(pending).await.unwrap();
    assert!(contents(&memory, 0..4 << 20) == pattern(0..4 << 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_owes_abandoned_bytes_and_stands_still_is_closed() {
    let world = TcpWorld::start().await;
    let link = world.link().await;
    world.stall_after(0);
    let pending = link.read(ReadRequest {
        remote: vec![data(0..1000)],
        local: whole(&local(1000)),
    });
    pending.cancel();
    assert!(matches!(settled(pending).await, Err(ReadError::Cancelled)));
    eventually("closed", || link.is_lost()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_connections_are_opened_under_load() {
    let world = TcpWorld::start().await;
    let link = world.link().await;
    world.stall_after(0);
    let reads: Vec<_> = (0..40)
        .map(|_| {
            link.read(ReadRequest {
                remote: vec![data(0..1 << 20)],
                local: whole(&local(1 << 20)),
            })
        })
        .collect();
    // While there is so much to do: later there may be nothing left for another one.
    eventually("more connections", || world.counters.accepted() > 1).await;
    world.resume();
    for pending in reads {
        settled(pending).await.unwrap();
    }
    let most = TcpConfig::default().max_connections as u64;
    assert!(world.counters.accepted() <= most);
    check_alive(&link).await;
}

/// An engine that cuts the file of memory that is registered: its readers lose a connection, and the
/// owner goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_region_closes_the_connection_and_nothing_else() {
    cut_region(&TcpWorld::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_region_closes_the_connection_by_tls_and_nothing_else() {
    cut_region(&TcpWorld::by_tls(TcpLimits::default()).await).await;
}

async fn cut_region(world: &TcpWorld) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let id = RegionId(30);
    let memory = HostMemory::import_path(file.path()).unwrap();
    insert(&world.catalog, id, memory, 16);
    let span = RemoteSpan {
        region: id,
        ..data(0..1 << 20)
    };
    let link = world.link().await;
    read(&link, vec![span], whole(&local(1 << 20)))
        .await
        .unwrap();
    file.as_file().set_len(4096).unwrap();
    let result = read(&link, vec![span], whole(&local(1 << 20))).await;
    assert!(
        matches!(result, Err(ReadError::LinkLost { .. })),
        "{result:?}"
    );
    check_alive(&world.link().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_takes_nothing_loses_its_connection_and_no_one_else_does() {
    takes_nothing(&TcpWorld::with(impatient()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_by_tls_that_takes_nothing_loses_its_connection_and_no_one_else_does() {
    takes_nothing(&TcpWorld::by_tls(impatient()).await).await;
}

fn impatient() -> TcpLimits {
    TcpLimits {
        write_stall: Duration::from_secs(1),
        ..TcpLimits::default()
    }
}

async fn takes_nothing(world: &TcpWorld) {
    let other = world.direct_link().await;
    let link = world.link().await;
    world.stall_after(0);
    let span = data(0..REGION_BYTES);
    let reads: Vec<_> = (0..BEYOND_BUFFERS)
        .map(|_| {
            link.read(ReadRequest {
                remote: vec![span],
                local: whole(&local(REGION_BYTES)),
            })
        })
        .collect();
    check_alive(&other).await;
    eventually("dropped", || world.counters.open() == 1).await;
    check_alive(&other).await;
    world.resume();
    let mut lost = 0;
    for pending in reads {
        lost += usize::from(settled(pending).await.is_err());
    }
    assert!(lost > 0);
}
