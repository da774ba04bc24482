//! RDMA between GPUs without host memory between (GPUDirect), on a fake libcuda each: its device memory is memory of this
//! process, which software devices register by its address as cards do with the peer-memory module.
//!
//! That module is said to be loaded where `/sys/module/nvidia_peermem` is: `tests/rdma/guest/gpu.sh` makes one.

use std::{sync::Arc, time::Duration};

use kvferry_agent::{
    region::{Memory, RegionCatalog},
    transport::{Link, PeerTarget, ReadError, Transport},
};
use kvferry_cuda::{StagingError, peer_memory_loaded};
use kvferry_cuda_fake::FakeCuda;

use crate::{
    gpu::{HOST_REGION, Machine, OntoGpu, begin, bytes_of, fill, host, is_open},
    rdma::{RdmaWorld, devices},
    world::{
        REGION, REGION_BYTES, SLOTS, World, add_memory, add_region, check_alive, data, eventually,
        incarnation, pattern, settled,
    },
};

const FLUSH: &str = "cuFlushGPUDirectRDMAWrites";

/// Functions that copy between the host and a GPU.
const COPIES: [&str; 3] = [
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpy2DAsync_v2",
];

/// A GPU whose memory devices can be told of.
fn machine(set: &[(&str, i64)]) -> Machine {
    let cuda = FakeCuda::new();
    for (what, value) in [("mapped", 1)].iter().chain(set) {
        cuda.set(what, *value);
    }
    Machine::with(cuda)
}

fn copies(machine: &Machine) -> i64 {
    COPIES.iter().map(|name| machine.cuda.calls(name)).sum()
}

pub struct RdmaGpuWorld {
    owner: Machine,
    reader: Machine,
    inner: RdmaWorld,
}

impl RdmaGpuWorld {
    /// None where there is no device, or where devices know GPU memory by its address although this test wants that
    /// they do not, or the other way round. Said aloud.
    async fn with(peer_memory: bool, reader: &[(&str, i64)]) -> Option<Self> {
        if peer_memory_loaded() != peer_memory {
            println!(
                "skipped: the peer-memory module is loaded: {}",
                !peer_memory
            );
            return None;
        }
        devices(0)?;
        let owner = machine(&[]);
        let catalog = Arc::new(RegionCatalog::new(incarnation()));
        add_memory(&catalog, REGION, owner.memory(REGION_BYTES), SLOTS);
        add_region(&catalog, HOST_REGION, REGION_BYTES, SLOTS);
        Some(Self {
            inner: RdmaWorld::serving(catalog).await?,
            reader: machine(reader),
            owner,
        })
    }

    /// A link whose reads into GPUs are the caller's.
    async fn plain_link(&self) -> Arc<dyn Link> {
        self.inner.link().await
    }

    /// Reads that began so far: straight and staged.
    fn reads(&self) -> (u64, u64) {
        let reads = self.reader.gpu.reads();
        (reads.straight.get(), reads.staged.get())
    }

    /// Another read, staged for the reason given by the case, brings the right bytes.
    async fn a_read_is_staged(&self) {
        let link = self.plain_link().await;
        for n in 1..=2 {
            let to = self.reader.memory(3 << 20);
            settled(begin(&link, vec![host(5..5 + (3 << 20))], &to))
                .await
                .unwrap();
            assert!(bytes_of(&to).await == pattern(5..5 + (3 << 20)));
            assert_eq!(self.reads(), (0, n));
        }
    }
}

impl World for RdmaGpuWorld {
    async fn start() -> Self {
        Self::with(true, &[]).await.expect("what was there is gone")
    }
    async fn possible() -> bool {
        Self::with(true, &[]).await.is_some()
    }
    fn catalog(&self) -> Arc<RegionCatalog> {
        self.inner.catalog()
    }
    fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(OntoGpu {
            inner: self.inner.transport(),
            gpu: Arc::clone(&self.reader.gpu),
        })
    }
    fn peer(&self) -> PeerTarget {
        self.inner.peer()
    }
    fn memory(&self, bytes: u64) -> Memory {
        self.owner.memory(bytes)
    }
    fn kill(&self) {
        self.inner.kill();
    }
}

/// A world, or the end of the test where there can be none.
macro_rules! world {
    ($peer_memory:expr, $reader:expr) => {
        match RdmaGpuWorld::with($peer_memory, $reader).await {
            Some(world) => world,
            None => return,
        }
    };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_go_from_gpu_to_gpu_without_a_copy_and_are_flushed_first() {
    let world = world!(true, &[]);
    let link = world.plain_link().await;
    let to = world.reader.memory(REGION_BYTES);
    let before = (copies(&world.owner), copies(&world.reader));
    let straight = |n| begin(&link, vec![data(n..REGION_BYTES), data(0..n)], &to);
    settled(straight(0)).await.unwrap();
    // Once when the memory was registered, once for the read.
    assert_eq!(world.reader.cuda.calls(FLUSH), 2);
    settled(straight(70_001)).await.unwrap();
    assert_eq!(world.reader.cuda.calls(FLUSH), 3);
    assert_eq!((copies(&world.owner), copies(&world.reader)), before);
    assert_eq!(world.reads(), (2, 0));
    let expected = [pattern(70_001..REGION_BYTES), pattern(0..70_001)].concat();
    assert!(bytes_of(&to).await == expected);
    // A dma-buf was tried first, on both sides.
    for machine in [&world.owner, &world.reader] {
        assert!(machine.cuda.calls("cuMemGetHandleForAddressRange") > 0);
        assert_eq!(machine.cuda.get("violations"), 0);
    }
    // What nobody has any more is deregistered and freed, so that an engine may have it back.
    drop(to);
    eventually("the memory is freed", || {
        world.reader.cuda.get("memories") == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_machine_orders_writes_nothing_is_flushed() {
    let world = world!(true, &[("ordering", 100), ("dmabuf", 0)]);
    let link = world.plain_link().await;
    let to = world.reader.memory(1 << 20);
    settled(begin(&link, vec![data(0..1 << 20)], &to))
        .await
        .unwrap();
    assert_eq!((world.reads(), world.reader.cuda.calls(FLUSH)), ((1, 0), 0));
    assert_eq!(world.reader.cuda.calls("cuMemGetHandleForAddressRange"), 0);
    assert!(bytes_of(&to).await == pattern(0..1 << 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_reads_settle_and_write_no_more() {
    let world = world!(true, &[]);
    let link = world.plain_link().await;
    let memories: Vec<Memory> = (0..6).map(|_| world.reader.memory(4 << 20)).collect();
    // Registered, so that all begin at once.
    for to in &memories {
        settled(begin(&link, vec![data(0..4 << 20)], to))
            .await
            .unwrap();
        fill(to, 0x55).await;
    }
    let (mut rounds, mut cancelled) = (1, 0);
    // All may have come before they are cancelled, where this is not let run in between: then once more.
    while cancelled == 0 {
        rounds += 1;
        assert!(rounds < 100, "none was ever cancelled");
        let before = link.received_bytes();
        let reads: Vec<_> = memories
            .iter()
            .map(|to| begin(&link, vec![data(0..4 << 20)], to))
            .collect();
        while link.received_bytes() == before {
            tokio::task::yield_now().await;
        }
        reads.iter().for_each(|read| read.cancel());
        for (read, to) in reads.into_iter().zip(&memories) {
            match settled(read).await {
                Ok(()) => assert!(bytes_of(to).await == pattern(0..4 << 20)),
                Err(ReadError::Cancelled) => cancelled += 1,
                Err(other) => panic!("{other}"),
            }
            fill(to, 0xAA).await;
        }
        check_alive(&link).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        for to in &memories {
            assert!(bytes_of(to).await.iter().all(|byte| *byte == 0xAA));
        }
    }
    assert_eq!(world.reads(), (6 * rounds, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gpu_that_is_lost_before_the_flush_never_settles_its_read_and_takes_no_more() {
    let world = world!(true, &[]);
    let link = world.plain_link().await;
    let to = world.reader.memory(1 << 20);
    settled(begin(&link, vec![data(0..1 << 20)], &to))
        .await
        .unwrap();
    world.reader.cuda.fail(FLUSH, 700, 0, i64::MAX);
    let mut pending = begin(&link, vec![data(0..1 << 20)], &to);
    eventually("the flush was tried", || {
        world.reader.cuda.calls(FLUSH) == 3
    })
    .await;
    // Whether a write is still on its way into it cannot be known, so the memory is never said to be free.
    assert!(is_open(&mut pending).await);
    pending.cancel();
    assert!(is_open(&mut pending).await);
    let result = settled(begin(&link, vec![data(0..1 << 20)], &to)).await;
    assert!(
        matches!(result, Err(ReadError::LocalGpu(StagingError::Copy(_)))),
        "{result:?}"
    );
    check_alive(&link).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_flush_where_one_is_needed_reads_are_staged() {
    world!(true, &[("flush_options", 2)])
        .a_read_is_staged()
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_that_fails_when_it_is_tried_out_means_staging() {
    let world = world!(true, &[]);
    world.reader.cuda.fail(FLUSH, 801, 0, i64::MAX);
    world.a_read_is_staged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_dma_buf_and_peer_memory_reads_are_staged() {
    world!(false, &[]).a_read_is_staged().await;
}
