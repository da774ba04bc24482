//! An owner with regions, a way to it, and the means to be unkind to both.

use std::{future::Future, ops::Range, sync::Arc, time::Duration};

use kvferry_agent::{
    region::{Memory, Region, RegionCatalog},
    transport::{ConnectError, Link, LocalSpans, PeerTarget, ReadError, ReadRequest, Transport},
};
use kvferry_memory::{GenerationTable, HostMemory, HugePages};
use kvferry_proto::{
    ChecksumPolicy, Geometry, HashLen, Incarnation, Layout, NamespaceName, NamespaceSpec,
    NodeAddresses, NodeId, Part, RegionId, RemoteSpan,
};

/// No read of these tests takes as long on any machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// A region that every world has, of this many bytes, filled with the pattern.
pub const REGION: RegionId = RegionId(7);
pub const REGION_BYTES: u64 = 8 << 20;
pub const SLOTS: u32 = 64;
/// So many regions are more than a kernel holds of a connection: 63 MiB, where buffers begin with 32 MiB at both ends.
pub const BEYOND_BUFFERS: usize = 16;

pub trait World: Send + Sync + Sized + 'static {
    fn start() -> impl Future<Output = Self> + Send;
    /// Can there be one on this machine? Says why not.
    fn possible() -> impl Future<Output = bool> + Send {
        async { true }
    }
    fn catalog(&self) -> Arc<RegionCatalog>;
    fn transport(&self) -> Arc<dyn Transport>;
    /// How to reach the owner.
    fn peer(&self) -> PeerTarget;
    /// Memory as this world's owners have it.
    fn memory(&self, bytes: u64) -> Memory {
        host_memory(bytes)
    }
    /// Ends the owner as a crash would: its sockets close.
    fn kill(&self);

    fn link(&self) -> impl Future<Output = Arc<dyn Link>> + Send {
        async { self.connect(&self.peer()).await.unwrap() }
    }

    fn connect(
        &self,
        peer: &PeerTarget,
    ) -> impl Future<Output = Result<Arc<dyn Link>, ConnectError>> + Send {
        let transport = self.transport();
        let peer = peer.clone();
        async move { transport.connect(&peer).await }
    }
}

/// A world whose owner can stand still in the middle of a read.
pub trait Stalls: World {
    /// Lets that many more bytes (about) through to the reader, then none.
    fn stall_after(&self, bytes: u64);
    fn resume(&self);
}

pub fn incarnation() -> Incarnation {
    Incarnation::new(42).unwrap()
}

pub fn peer(addresses: NodeAddresses) -> PeerTarget {
    PeerTarget {
        node: NodeId::new("owner").unwrap(),
        incarnation: incarnation(),
        addresses,
    }
}

/// A catalogue with [`REGION`] in it.
pub fn catalog() -> Arc<RegionCatalog> {
    let catalog = Arc::new(RegionCatalog::new(incarnation()));
    add_region(&catalog, REGION, REGION_BYTES, SLOTS);
    catalog
}

pub fn host_memory(bytes: u64) -> Memory {
    HostMemory::pool("conformance", bytes, HugePages::Off)
        .unwrap()
        .into()
}

pub fn add_region(catalog: &RegionCatalog, id: RegionId, bytes: u64, slots: u32) -> Arc<Region> {
    add_memory(catalog, id, host_memory(bytes), slots)
}

/// A region of this memory, filled with the pattern.
pub fn add_memory(
    catalog: &RegionCatalog,
    id: RegionId,
    memory: Memory,
    slots: u32,
) -> Arc<Region> {
    memory.write_at(0, &pattern(0..memory.len())).unwrap();
    insert(catalog, id, memory, slots)
}

pub fn insert(
    catalog: &RegionCatalog,
    id: RegionId,
    memory: impl Into<Memory>,
    slots: u32,
) -> Arc<Region> {
    insert_in("test", catalog, id, memory, slots)
}

/// As [`insert`], in a namespace of its own.
pub fn insert_in(
    namespace: &str,
    catalog: &RegionCatalog,
    id: RegionId,
    memory: impl Into<Memory>,
    slots: u32,
) -> Arc<Region> {
    let memory = memory.into();
    let block = memory.len() / u64::from(slots);
    let region = Arc::new(Region {
        id,
        namespace: Arc::new(NamespaceSpec {
            name: NamespaceName::new(namespace).unwrap(),
            layout: Layout::new("u8", 1, 1, block).unwrap(),
            hash_len: HashLen::new(32).unwrap(),
            checksum: ChecksumPolicy::default(),
        }),
        geometry: Geometry::contiguous(slots, block).unwrap(),
        memory,
        generations: Arc::new(GenerationTable::new(slots).unwrap()),
        pool: true,
    });
    catalog.insert(Arc::clone(&region));
    region
}

/// Not a multiple of any page or block, so that bytes from the wrong place are wrong bytes.
const PERIOD: usize = 65_521;

/// The bytes a region holds at a range.
pub fn pattern(range: Range<u64>) -> Vec<u8> {
    let period: Vec<u8> = (0..PERIOD as u64)
        .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect();
    let (mut at, mut out) = (range.start as usize, Vec::new());
    while at < range.end as usize {
        let from = at % PERIOD;
        let len = (PERIOD - from).min(range.end as usize - at);
        out.extend_from_slice(&period[from..from + len]);
        at += len;
    }
    out
}

pub fn data(range: Range<u64>) -> RemoteSpan {
    RemoteSpan {
        region: REGION,
        part: Part::Data,
        offset: range.start,
        len: range.end - range.start,
    }
}

pub fn words(range: Range<u64>) -> RemoteSpan {
    RemoteSpan {
        part: Part::Generations,
        ..data(range.start * 8..range.end * 8)
    }
}

pub fn local(bytes: u64) -> Arc<HostMemory> {
    Arc::new(HostMemory::pool("local", bytes, HugePages::Off).unwrap())
}

#[allow(clippy::single_range_in_vec_init)]
pub fn whole(memory: &Arc<HostMemory>) -> LocalSpans {
    LocalSpans {
        memory: Arc::clone(memory),
        ranges: vec![0..memory.len()],
    }
}

pub fn contents(memory: &HostMemory, range: Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    memory.read_at(range.start, &mut bytes).unwrap();
    bytes
}

/// One read, awaited with patience.
pub async fn read(
    link: &Arc<dyn Link>,
    remote: Vec<RemoteSpan>,
    local: LocalSpans,
) -> Result<(), ReadError> {
    let pending = link.read(ReadRequest { remote, local });
    settled(pending).await
}

/// Data and the words that validate it: in one read where the link can, else in two.
pub async fn read_with_words(link: &Arc<dyn Link>, data: ReadRequest, words: ReadRequest) {
    if link.reads_in_order() {
        settled(link.read_with_words(data, words)).await.unwrap();
    } else {
        settled(link.read(data)).await.unwrap();
        settled(link.read(words)).await.unwrap();
    }
}

pub async fn settled(
    pending: impl Future<Output = Result<(), ReadError>>,
) -> Result<(), ReadError> {
    tokio::time::timeout(PATIENCE, pending)
        .await
        .expect("the read did not settle")
}

/// The link still works: reads something and checks it.
pub async fn check_alive(link: &Arc<dyn Link>) {
    let memory = local(1000);
    read(link, vec![data(12_345..13_345)], whole(&memory))
        .await
        .unwrap();
    assert_eq!(contents(&memory, 0..1000), pattern(12_345..13_345));
}

/// Waits for something that must become true.
pub async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !is() {
        assert!(start.elapsed() < PATIENCE, "never {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
