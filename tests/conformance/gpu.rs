//! GPU memory on both sides, on a fake libcuda each: the suite over TCP, and what only GPUs can get wrong.

use std::{sync::Arc, time::Duration};

use kvferry_agent::{
    gpu::{Gpu, GpuMemory},
    region::{Memory, RegionCatalog},
    transfer::{Destination, PlannedRead},
    transport::{
        BoxFuture, CancelRead, Capabilities, ConnectError, Link, PeerTarget, PendingRead,
        ReadError, ReadRequest, Transport, TransportKind,
        shm::{ShmOptions, ShmServer, ShmTransport, host_id},
        staged,
        tcp::{ServeCounters, TcpLimits, TcpServer, TcpTransport},
    },
};
use kvferry_cuda::{Library, Staging, StagingError};
use kvferry_cuda_fake::FakeCuda;
use kvferry_proto::{NodeAddresses, RegionId, RemoteSpan};
use tokio::sync::Notify;

use crate::{
    keys::Keys,
    proxy::Proxy,
    tickets::Parties,
    world::{
        BEYOND_BUFFERS, REGION, REGION_BYTES, SLOTS, World, add_memory, add_region, check_alive,
        contents, data, eventually, incarnation, local, pattern, peer, read, settled, whole,
    },
};

/// A region in host memory, beside the one on the GPU.
pub const HOST_REGION: RegionId = RegionId(9);

/// A machine with a GPU of its own.
pub struct Machine {
    pub cuda: FakeCuda,
    pub gpu: Arc<Gpu>,
}

impl Machine {
    pub fn new() -> Self {
        Self::with(FakeCuda::new())
    }

    pub fn with(cuda: FakeCuda) -> Self {
        let library = Library::load_from(cuda.path()).unwrap();
        let context = library.device(0).unwrap().context().unwrap();
        Self {
            gpu: Gpu::new(&context).unwrap(),
            cuda,
        }
    }

    pub fn memory(&self, bytes: u64) -> Memory {
        let own = kvferry_cuda::GpuMemory::allocate(self.gpu.context(), bytes).unwrap();
        GpuMemory::new(&self.gpu, own).into()
    }
}

pub struct GpuWorld {
    owner: Machine,
    reader: Machine,
    catalog: Arc<RegionCatalog>,
    counters: Arc<ServeCounters>,
    proxy: Proxy,
    stop: Arc<Notify>,
    /// Where TLS is spoken.
    keys: Option<Keys>,
}

impl GpuWorld {
    async fn with(limits: TcpLimits) -> Self {
        Self::of(limits, None).await
    }

    async fn of(limits: TcpLimits, keys: Option<Keys>) -> Self {
        let owner = Machine::new();
        let catalog = Arc::new(RegionCatalog::new(incarnation()));
        add_memory(&catalog, REGION, owner.memory(REGION_BYTES), SLOTS);
        add_region(&catalog, HOST_REGION, REGION_BYTES, SLOTS);
        let loopback = "127.0.0.1:0".parse().unwrap();
        let server = TcpServer::bind(loopback, Arc::clone(&catalog), limits)
            .await
            .unwrap();
        let server = match &keys {
            Some(keys) => server.by_tls(keys.server("owner")),
            None => server,
        };
        let (address, counters) = (server.local_addr(), server.counters());
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        tokio::spawn(async move { server.serve(stopped.notified()).await });
        Self {
            owner,
            reader: Machine::new(),
            catalog,
            counters,
            proxy: Proxy::start(address).await,
            stop,
            keys,
        }
    }

    fn sockets(&self) -> TcpTransport {
        let keys = self.keys.as_ref();
        keys.map_or_else(TcpTransport::default, Keys::reader)
    }

    /// A link that takes host memory, as links do.
    async fn plain_link(&self) -> Arc<dyn Link> {
        self.sockets().connect(&self.peer()).await.unwrap()
    }

    fn begin(&self, link: &Arc<dyn Link>, remote: Vec<RemoteSpan>, to: &Memory) -> PendingRead {
        begin(link, remote, to)
    }
}

/// Starts a read into this GPU memory, all of it.
pub fn begin(link: &Arc<dyn Link>, remote: Vec<RemoteSpan>, to: &Memory) -> PendingRead {
    let local = Destination {
        memory: to.clone(),
        ranges: vec![0..to.len()].into(),
    };
    staged::read(link, PlannedRead { remote, local })
}

impl World for GpuWorld {
    async fn start() -> Self {
        Self::with(TcpLimits::default()).await
    }
    fn catalog(&self) -> Arc<RegionCatalog> {
        Arc::clone(&self.catalog)
    }
    fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(OntoGpu {
            inner: Arc::new(self.sockets()),
            gpu: Arc::clone(&self.reader.gpu),
        })
    }
    fn peer(&self) -> PeerTarget {
        peer(NodeAddresses {
            data: Some(self.proxy.address),
            data_tls: self.keys.is_some(),
            ..NodeAddresses::default()
        })
    }
    fn memory(&self, bytes: u64) -> Memory {
        self.owner.memory(bytes)
    }
    fn kill(&self) {
        self.stop.notify_one();
        self.proxy.cut();
    }
}

/// The same, by TLS.
pub struct GpuTlsWorld(GpuWorld);

impl World for GpuTlsWorld {
    async fn start() -> Self {
        Self(GpuWorld::of(TcpLimits::default(), Some(Keys::new())).await)
    }
    fn catalog(&self) -> Arc<RegionCatalog> {
        self.0.catalog()
    }
    fn transport(&self) -> Arc<dyn Transport> {
        self.0.transport()
    }
    fn peer(&self) -> PeerTarget {
        self.0.peer()
    }
    fn memory(&self, bytes: u64) -> Memory {
        self.0.memory(bytes)
    }
    fn kill(&self) {
        self.0.kill();
    }
}

/// Reads into GPU memory, and shows what is there then where the suite looks: in host memory.
pub struct OntoGpu {
    pub inner: Arc<dyn Transport>,
    pub gpu: Arc<Gpu>,
}

impl Transport for OntoGpu {
    fn kind(&self) -> TransportKind {
        self.inner.kind()
    }
    fn reaches(&self, peer: &PeerTarget) -> bool {
        self.inner.reaches(peer)
    }
    fn connect<'a>(
        &'a self,
        peer: &'a PeerTarget,
    ) -> BoxFuture<'a, Result<Arc<dyn Link>, ConnectError>> {
        Box::pin(async move {
            let inner = self.inner.connect(peer).await?;
            let gpu = Arc::clone(&self.gpu);
            Ok(Arc::new(OntoGpuLink { inner, gpu }) as Arc<dyn Link>)
        })
    }
}

struct OntoGpuLink {
    inner: Arc<dyn Link>,
    gpu: Arc<Gpu>,
}

/// Of a read that was refused at once.
struct Over;

impl CancelRead for Over {
    fn cancel(&self) {}
}

impl Link for OntoGpuLink {
    fn kind(&self) -> TransportKind {
        self.inner.kind()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    fn read(&self, request: ReadRequest) -> PendingRead {
        let bytes = request.local.memory.len();
        let own = kvferry_cuda::GpuMemory::allocate(self.gpu.context(), bytes).unwrap();
        let memory = Memory::from(GpuMemory::new(&self.gpu, own));
        let local = Destination {
            memory: memory.clone(),
            ranges: request.local.ranges.clone().into(),
        };
        let remote = request.remote;
        let read = staged::read(&self.inner, PlannedRead { remote, local });
        let cancel = read.canceller().unwrap_or_else(|| Arc::new(Over));
        let (pending, completion) = PendingRead::new(cancel);
        tokio::spawn(async move {
            let result = match read.await {
                Ok(()) => tokio::task::spawn_blocking(move || {
                    let ranges = request.local.ranges;
                    let to = Memory::from(request.local.memory);
                    memory.copy(ranges.clone(), &to, ranges)
                })
                .await
                .unwrap()
                .map_err(|error| match error {
                    kvferry_agent::region::MemoryFault::Host(error) => ReadError::Local(error),
                    other => panic!("{other}"),
                }),
                failed => failed,
            };
            completion.settle(result);
        });
        pending
    }
    fn received_bytes(&self) -> u64 {
        self.inner.received_bytes()
    }
    fn is_lost(&self) -> bool {
        self.inner.is_lost()
    }
}

/// What GPU memory holds.
pub async fn bytes_of(memory: &Memory) -> Vec<u8> {
    let memory = memory.clone();
    tokio::task::spawn_blocking(move || {
        let mut bytes = vec![0; memory.len() as usize];
        memory.read_at(0, &mut bytes).unwrap();
        bytes
    })
    .await
    .unwrap()
}

pub async fn fill(memory: &Memory, byte: u8) {
    let memory = memory.clone();
    tokio::task::spawn_blocking(move || {
        let bytes = vec![byte; memory.len() as usize];
        memory.write_at(0, &bytes).unwrap();
    })
    .await
    .unwrap();
}

/// Has not settled, and will not within a moment.
pub async fn is_open(pending: &mut PendingRead) -> bool {
    tokio::time::timeout(Duration::from_millis(300), pending)
        .await
        .is_err()
}

/// Buffers are given back behind what they were used for.
async fn all_free(ring: &Staging) {
    eventually("all buffers free", || ring.free_buffers() == 32).await;
}

pub fn host(range: std::ops::Range<u64>) -> RemoteSpan {
    RemoteSpan {
        region: HOST_REGION,
        ..data(range)
    }
}

pub async fn host_region_is_served(link: &Arc<dyn Link>) {
    let memory = local(1000);
    read(link, vec![host(5..1005)], whole(&memory))
        .await
        .unwrap();
    assert_eq!(contents(&memory, 0..1000), pattern(5..1005));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_read_has_spans_of_gpu_and_host_and_words_in_order() {
    let world = GpuWorld::start().await;
    let link = world.plain_link().await;
    let region = world.catalog.get(REGION).unwrap();
    region.generations.begin_write(3);
    region.generations.seal(3);
    let spans = vec![
        host(10..20),
        data(100..3_000_100),
        data(5..9),
        crate::world::words(3..4),
        host(0..70_000),
        data(7_000_000..7_000_001),
        host(1..2),
    ];
    let memory = local(spans.iter().map(|span| span.len).sum());
    read(&link, spans, whole(&memory)).await.unwrap();
    let expected = [
        pattern(10..20),
        pattern(100..3_000_100),
        pattern(5..9),
        2_u64.to_le_bytes().to_vec(),
        pattern(0..70_000),
        pattern(7_000_000..7_000_001),
        pattern(1..2),
    ]
    .concat();
    assert!(contents(&memory, 0..memory.len()) == expected);
    let serve = world.owner.gpu.serve();
    all_free(serve).await;
    assert_eq!(world.owner.cuda.get("violations"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_read_settles_when_the_gpu_is_done_and_not_before() {
    let world = GpuWorld::start().await;
    let link = world.plain_link().await;
    let to = world.reader.memory(2 << 20);
    fill(&to, 0x55).await;
    world.reader.cuda.set("hold", 1);
    let mut pending = world.begin(&link, vec![data(0..2 << 20)], &to);
    eventually("received", || link.received_bytes() >= 2 << 20).await;
    eventually("copies were started", || {
        world.reader.cuda.calls("cuMemcpyHtoDAsync_v2") >= 4
    })
    .await;
    pending.cancel();
    assert!(
        is_open(&mut pending).await,
        "the GPU still has copies to do"
    );
    world.reader.cuda.set("hold", 0);
    // It was complete when it was cancelled, or nearly.
    match settled(pending).await {
        Ok(()) => assert!(bytes_of(&to).await == pattern(0..2 << 20)),
        Err(ReadError::Cancelled) => {}
        Err(other) => panic!("{other}"),
    }
    fill(&to, 0xAA).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(bytes_of(&to).await.iter().all(|byte| *byte == 0xAA));
    all_free(world.reader.gpu.land()).await;
    assert_eq!(world.reader.cuda.get("violations"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_whose_owner_stands_still_is_cancelled_and_writes_no_more() {
    let world = GpuWorld::start().await;
    let link = world.plain_link().await;
    check_alive(&link).await;
    let to = world.reader.memory(6 << 20);
    let before = link.received_bytes();
    world.proxy.allow(3 << 20);
    let pending = world.begin(&link, vec![data(0..6 << 20)], &to);
    eventually("received a part", || {
        link.received_bytes() > before + (1 << 20)
    })
    .await;
    pending.cancel();
    let result = settled(pending).await;
    assert!(matches!(result, Err(ReadError::Cancelled)), "{result:?}");
    fill(&to, 0xAA).await;
    world.proxy.allow(u64::MAX);
    check_alive(&link).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(bytes_of(&to).await.iter().all(|byte| *byte == 0xAA));
    all_free(world.reader.gpu.land()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_whose_gpu_is_lost_refuses_its_spans_and_serves_the_rest() {
    let world = GpuWorld::start().await;
    let link = world.plain_link().await;
    check_alive(&link).await;
    world.owner.cuda.lose_the_gpu();
    for _ in 0..2 {
        let result = read(&link, vec![data(0..100)], whole(&local(100))).await;
        match result {
            Err(ReadError::SpanRefused { detail, .. }) => assert!(detail.contains("GPU")),
            other => panic!("{other:?}"),
        }
        host_region_is_served(&link).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_that_fails_in_the_middle_of_a_response_loses_that_connection_only() {
    let world = GpuWorld::start().await;
    let link = world.plain_link().await;
    check_alive(&link).await;
    // Two chunks are copied, the third is not; the GPU is good afterwards.
    world.owner.cuda.fail("cuMemcpyDtoHAsync_v2", 999, 5, 1);
    let memory = local(REGION_BYTES);
    let result = read(&link, vec![data(0..REGION_BYTES)], whole(&memory)).await;
    assert!(
        matches!(
            result,
            Err(ReadError::LinkLost { .. } | ReadError::SpanRefused { .. })
        ),
        "{result:?}"
    );
    check_alive(&world.plain_link().await).await;
    let serve = world.owner.gpu.serve();
    all_free(serve).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_gpu_takes_no_reads_and_one_that_was_under_way_never_settles() {
    let world = GpuWorld::start().await;
    let link = world.plain_link().await;
    let to = world.reader.memory(1 << 20);
    world.reader.cuda.set("hold", 1);
    let mut pending = world.begin(&link, vec![data(0..1 << 20)], &to);
    eventually("a copy was started", || {
        world.reader.cuda.calls("cuMemcpyHtoDAsync_v2") >= 1
    })
    .await;
    world.reader.cuda.lose_the_gpu();
    world.reader.cuda.set("hold", 0);
    // Whether that copy is done cannot be known, so the memory is never said to be free.
    assert!(is_open(&mut pending).await);
    pending.cancel();
    assert!(is_open(&mut pending).await);
    let result = settled(world.begin(&link, vec![data(0..1 << 20)], &to)).await;
    assert!(
        matches!(result, Err(ReadError::LocalGpu(StagingError::Copy(_)))),
        "{result:?}"
    );
    host_region_is_served(&link).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_into_the_gpu_that_is_refused_is_an_error_and_the_next_read_is_right() {
    let world = GpuWorld::start().await;
    let link = world.plain_link().await;
    let to = world.reader.memory(3 << 20);
    world.reader.cuda.fail("cuEventCreate", 2, 1, 1);
    let result = settled(world.begin(&link, vec![data(0..3 << 20)], &to)).await;
    assert!(matches!(result, Err(ReadError::LocalGpu(_))), "{result:?}");
    settled(world.begin(&link, vec![data(0..3 << 20)], &to))
        .await
        .unwrap();
    assert!(bytes_of(&to).await == pattern(0..3 << 20));
    all_free(world.reader.gpu.land()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_take_nothing_do_not_keep_the_staging_buffers() {
    let world = GpuWorld::with(TcpLimits {
        write_stall: Duration::from_secs(1),
        ..TcpLimits::default()
    })
    .await;
    let mut stopped = Vec::new();
    for _ in 0..10 {
        stopped.push(world.plain_link().await);
    }
    world.proxy.allow(0);
    // What comes is not looked at.
    let memory = local(REGION_BYTES);
    let reads: Vec<_> = stopped
        .iter()
        .flat_map(|link| std::iter::repeat_n(link, BEYOND_BUFFERS))
        .map(|link| {
            link.read(ReadRequest {
                remote: vec![data(0..REGION_BYTES)],
                local: whole(&memory),
            })
        })
        .collect();
    let serve = world.owner.gpu.serve();
    eventually("buffers in use", || serve.free_buffers() < 32).await;
    eventually("all are dropped", || world.counters.open() == 0).await;
    all_free(serve).await;
    world.proxy.allow(u64::MAX);
    for pending in reads {
        // Small ones may have gone through; none is wrong.
        let _ = settled(pending).await;
    }
    check_alive(&world.plain_link().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_the_same_host_gpu_memory_is_read_over_sockets_within_the_link() {
    let world = GpuWorld::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shm");
    let server = ShmServer::bind(&path, world.catalog(), ShmOptions::default()).unwrap();
    tokio::spawn(server.serve(std::future::pending()));
    let target = peer(NodeAddresses {
        shm: Some(path.display().to_string()),
        host_id: host_id(),
        ..world.peer().addresses
    });
    let behind = Arc::new(TcpTransport::default());
    let link = ShmTransport::default()
        .with_behind(behind)
        .connect(&target)
        .await
        .unwrap();
    host_region_is_served(&link).await;
    assert_eq!(world.counters.accepted(), 0);
    check_alive(&link).await;
    assert_eq!(world.counters.accepted(), 1);
    // Both in one read, and again now that it is known.
    for _ in 0..2 {
        let memory = local(2000);
        read(&link, vec![host(0..1000), data(0..1000)], whole(&memory))
            .await
            .unwrap();
        assert_eq!(contents(&memory, 0..1000), contents(&memory, 1000..2000));
    }
    host_region_is_served(&link).await;
    // Sockets may ask for more than shared memory does: whom they keep out is told so, and that the owner lives.
    let gate = Parties::new().gate;
    let loopback = "127.0.0.1:0".parse().unwrap();
    let guarded = TcpServer::bind(loopback, world.catalog(), TcpLimits::default()).await;
    let guarded = guarded.unwrap().behind(gate);
    let addresses = NodeAddresses {
        data: Some(guarded.local_addr()),
        ..target.addresses.clone()
    };
    tokio::spawn(guarded.serve(std::future::pending()));
    let shut_out = ShmTransport::default().with_behind(Arc::new(TcpTransport::default()));
    let shut_out = shut_out.connect(&peer(addresses)).await.unwrap();
    let result = read(&shut_out, vec![data(0..10)], whole(&local(10))).await;
    match result {
        Err(ReadError::NoLink { error, .. }) => assert!(error.is_denial(), "{error}"),
        other => panic!("{other:?}"),
    }
    host_region_is_served(&shut_out).await;
    // Where nothing but shared memory may be used, it is said.
    let alone = ShmTransport::default().connect(&target).await.unwrap();
    let result = read(&alone, vec![data(0..10)], whole(&local(10))).await;
    match result {
        Err(ReadError::NoLink { why, error }) => {
            assert!(why.contains("GPU memory"), "{why}");
            assert!(matches!(error, ConnectError::NoPath { .. }), "{error}");
        }
        other => panic!("{other:?}"),
    }
    host_region_is_served(&alone).await;
    world.kill();
    eventually("lost", || link.is_lost()).await;
}
