//! GPU memory of engines, through the whole: registered by its IPC handle, pulled out of and into by other processes.
//!
//! The agents run on a fake libcuda (`ffi/cuda/fake`); this test is the engine, which allocates on the same fake GPU.

use std::{sync::Arc, time::Duration};

use kvferry_cuda::{GpuMemory, Library, Staging, StagingOptions};
use kvferry_cuda_fake::FakeCuda;
use kvferry_proto::{
    Reason,
    pb::{self, OutcomeKind, register_region_request::Source},
    reason_of,
};
use tonic::{Code, Status};

use crate::{
    cluster::{Cluster, LATE, eventually, pack},
    engine::{BLOCK_BYTES, Engine, PLANE_BYTES, assert_all, block, hashes, namespace, planar},
};

const TIMEOUT: Duration = Duration::from_secs(60);
/// Where the regions begin in the engine's allocation.
const OFFSET: u64 = 12_288;

/// An engine's GPU.
pub(crate) struct Gpu {
    cuda: FakeCuda,
    staging: Arc<Staging>,
}

impl Gpu {
    pub(crate) fn new() -> Self {
        let cuda = FakeCuda::new();
        let library = Library::load_from(cuda.path()).unwrap();
        let context = library.device(1).unwrap().context().unwrap();
        let staging = Staging::new(&context, StagingOptions::default()).unwrap();
        Self { cuda, staging }
    }

    /// What an agent is started with to see the same GPUs.
    pub(crate) fn environment(&self) -> (String, String) {
        let dir = self.cuda.dir().display().to_string();
        ("LD_LIBRARY_PATH".to_owned(), dir)
    }

    pub(crate) fn allocate(&self, slots: u32) -> Allocation<'_> {
        let bytes = OFFSET + u64::from(slots) * BLOCK_BYTES;
        Allocation {
            gpu: self,
            memory: GpuMemory::allocate(self.staging.context(), bytes).unwrap(),
            slots,
        }
    }
}

/// Memory of the engine on its GPU.
pub(crate) struct Allocation<'a> {
    gpu: &'a Gpu,
    memory: Arc<GpuMemory>,
    slots: u32,
}

impl Allocation<'_> {
    fn source(&self) -> pb::CudaIpcSource {
        let (handle, offset) = self.memory.export().unwrap();
        pb::CudaIpcSource {
            device_uuid: self.memory.context().device().uuid().to_string(),
            handle: handle.0.to_vec().into(),
            offset: offset + OFFSET,
            length: u64::from(self.slots) * BLOCK_BYTES,
        }
    }

    pub(crate) fn request(&self) -> pb::RegisterRegionRequest {
        pb::RegisterRegionRequest {
            namespace: Some(namespace("n")),
            source: Some(Source::CudaIpc(self.source())),
            geometry: Some(planar(self.slots)),
            keep_on_disconnect: false,
        }
    }

    async fn register(&self, engine: &Engine) -> u32 {
        let info = register(engine, self.request()).await.unwrap();
        assert_eq!(info.device_uuid, self.source().device_uuid);
        info.region
    }

    fn planes(&self, slot: u32) -> Vec<std::ops::Range<u64>> {
        planar(self.slots)
            .planes
            .iter()
            .map(|plane| OFFSET + plane.base + u64::from(slot) * plane.stride)
            .map(|start| start..start + PLANE_BYTES)
            .collect()
    }

    fn write(&self, slot: u32, mut bytes: &[u8]) {
        let mut inbound = self
            .gpu
            .staging
            .write(&self.memory, self.planes(slot))
            .unwrap();
        let deadline = std::time::Instant::now() + TIMEOUT;
        while let Some(fill) = inbound.next_buffer(deadline).unwrap() {
            let range = fill.range();
            let (now, later) = bytes.split_at((range.end - range.start) as usize);
            fill.memory().write_at(range.start, now).unwrap();
            bytes = later;
            inbound.submit(fill).unwrap();
        }
        inbound.finish(deadline).unwrap();
    }

    pub(crate) fn read(&self, slot: u32) -> Vec<u8> {
        let mut outbound = self
            .gpu
            .staging
            .read(&self.memory, self.planes(slot))
            .unwrap();
        let mut bytes = Vec::new();
        let deadline = std::time::Instant::now() + TIMEOUT;
        while let Some(chunk) = outbound.next(deadline).unwrap() {
            let at = bytes.len();
            let range = chunk.range();
            bytes.resize(at + (range.end - range.start) as usize, 0);
            chunk
                .memory()
                .read_at(range.start, &mut bytes[at..])
                .unwrap();
        }
        bytes
    }

    /// Reserves the slots, writes the blocks, and seals them: in that order.
    pub(crate) async fn publish(&self, engine: &Engine, region: u32, blocks: std::ops::Range<u64>) {
        let slots: Vec<u32> = (0..blocks.clone().count() as u32).collect();
        let mut api = engine.api.clone();
        api.reserve(pb::ReserveRequest {
            region,
            count: 0,
            slots: slots.clone(),
        })
        .await
        .unwrap();
        for (slot, n) in slots.iter().zip(blocks.clone()) {
            self.write(*slot, &block(n));
        }
        let sealed = api
            .seal(pb::SealRequest {
                region,
                slots,
                hashes: Some(pack(&hashes(blocks))),
                chained: true,
                parent: Vec::new().into(),
                wait_announced_ms: 60_000,
            })
            .await
            .unwrap()
            .into_inner();
        assert!(sealed.announced);
    }

    pub(crate) fn assert_holds(&self, blocks: &[u64]) {
        for (slot, n) in (0..).zip(blocks) {
            assert!(self.read(slot) == block(*n), "block {n} differs");
        }
    }
}

pub(crate) async fn register(
    engine: &Engine,
    request: pb::RegisterRegionRequest,
) -> Result<pb::RegionInfo, Status> {
    let answer = engine.api.clone().register_region(request).await;
    answer.map(tonic::Response::into_inner)
}

pub(crate) async fn unregister(engine: &Engine, region: u32) -> Result<u64, Status> {
    let request = pb::UnregisterRegionRequest { region };
    let answer = engine.api.clone().unregister_region(request).await?;
    Ok(answer.into_inner().blocks_removed)
}

#[tokio::test]
async fn blocks_go_from_gpu_to_gpu_and_between_gpu_and_host() {
    let gpu = Gpu::new();
    let mut cluster = Cluster::start().await;
    let with_gpu = [gpu.environment()];
    let a = cluster.agent_with("a", &[], &with_gpu).await;
    let tcp = ["--transport", "tcp"];
    let b = cluster.agent_with("b", &tcp, &with_gpu).await;
    // No libcuda for this one: it needs none to read out of another's GPU.
    let c = cluster.agent("c", &[]).await;

    let from = gpu.allocate(64);
    let published = from.register(&a).await;
    from.publish(&a, published, 0..64).await;
    let wanted: Vec<u64> = (0..64).rev().collect();

    let to = gpu.allocate(64);
    let landed = to.register(&b).await;
    let slots = || (0..64).collect();
    let outcomes = b
        .pull_slots("n", &wanted, landed, slots(), TIMEOUT)
        .await
        .unwrap();
    assert_all(&outcomes, OutcomeKind::Pulled, "tcp");
    to.assert_holds(&wanted);
    eventually("the replica is listed", || async {
        let owners = cluster.locate("n", &hashes(0..64)).await;
        owners.iter().all(|owners| owners.len() == 2)
    })
    .await;

    // Into host memory, on the same host.
    let host = c.region(namespace("n"), 64).await;
    let outcomes = c.pull("n", &wanted, Some(&host), TIMEOUT).await.unwrap();
    for (slot, (outcome, n)) in (0..).zip(outcomes.iter().zip(&wanted)) {
        assert_eq!(outcome.kind(), OutcomeKind::Pulled, "{outcome:?}");
        assert!(host.read(slot) == block(*n), "block {n} differs");
    }

    // What is in the same agent is copied: GPU to GPU, GPU to host, and out by value.
    let again = gpu.allocate(64);
    let second = again.register(&b).await;
    let outcomes = b
        .pull_slots("n", &wanted, second, slots(), TIMEOUT)
        .await
        .unwrap();
    assert_all(&outcomes, OutcomeKind::Local, "");
    again.assert_holds(&wanted);
    let beside = b.region(namespace("n"), 64).await;
    let outcomes = b.pull("n", &wanted, Some(&beside), TIMEOUT).await.unwrap();
    assert_all(&outcomes, OutcomeKind::Local, "");
    assert!(beside.read(63) == block(0));

    // Given back: the handle is closed, and the engine may free.
    assert_eq!(unregister(&b, landed).await.unwrap(), 64);
    drop(to);
    assert_eq!(gpu.cuda.get("violations"), 0);
}

#[tokio::test]
async fn what_cannot_be_opened_is_refused_with_what_to_do() {
    let gpu = Gpu::new();
    let mut cluster = Cluster::start().await;
    let a = cluster.agent_with("a", &[], &[gpu.environment()]).await;
    let without = cluster.agent("without", &[]).await;
    let memory = gpu.allocate(8);
    let good = memory.request();
    let with = |change: &dyn Fn(&mut pb::CudaIpcSource)| {
        let mut source = memory.source();
        change(&mut source);
        pb::RegisterRegionRequest {
            source: Some(Source::CudaIpc(source)),
            ..good.clone()
        }
    };
    let refused = |request, code, reason, says: &'static str| {
        let a = a.clone();
        async move {
            let status = register(&a, request).await.unwrap_err();
            assert_eq!(
                (status.code(), reason_of(&status)),
                (code, Some(reason)),
                "{status}"
            );
            assert!(status.message().contains(says), "{status}");
        }
    };
    use Code::{FailedPrecondition, InvalidArgument};
    let other = "GPU-00000000-1111-2222-3333-444444444444";
    type Change = dyn Fn(&mut pb::CudaIpcSource);
    let cases: [(&Change, _, _, _); 6] = [
        (
            &|s| s.device_uuid = other.to_owned(),
            FailedPrecondition,
            Reason::GpuUnavailable,
            "CUDA_VISIBLE_DEVICES",
        ),
        (
            &|s| s.device_uuid = "0".to_owned(),
            InvalidArgument,
            Reason::InvalidArgument,
            "GPU",
        ),
        (
            &|s| s.handle = vec![0x5a; 64].into(),
            FailedPrecondition,
            Reason::GpuHandle,
            "send a new handle",
        ),
        (
            &|s| s.handle = vec![1; 63].into(),
            InvalidArgument,
            Reason::InvalidArgument,
            "64 bytes",
        ),
        (
            &|s| s.offset += 1,
            InvalidArgument,
            Reason::SpanOutOfRegion,
            "outside the allocation",
        ),
        (
            &|s| s.length -= 1,
            InvalidArgument,
            Reason::SpanOutOfRegion,
            "the region's memory has",
        ),
    ];
    for (change, code, reason, says) in cases {
        refused(with(change), code, reason, says).await;
    }
    let kept = pb::RegisterRegionRequest {
        keep_on_disconnect: true,
        ..good.clone()
    };
    refused(
        kept,
        InvalidArgument,
        Reason::InvalidArgument,
        "keep_on_disconnect",
    )
    .await;

    // An agent without the driver.
    let status = register(&without, good.clone()).await.unwrap_err();
    if reason_of(&status) == Some(Reason::GpuUnavailable) {
        assert!(status.message().contains("driver"), "{status}");
    } else {
        // This machine has one; the fake's handle means nothing to it.
        assert_eq!(reason_of(&status), Some(Reason::GpuHandle), "{status}");
    }

    // The same bytes twice, in one allocation or through another handle of it.
    let region = memory.register(&a).await;
    refused(
        good.clone(),
        Code::AlreadyExists,
        Reason::MemoryInUse,
        "unregister",
    )
    .await;
    unregister(&a, region).await.unwrap();
    memory.register(&a).await;
}

#[tokio::test]
async fn an_engine_that_goes_takes_its_gpu_memory_with_it() {
    let gpu = Gpu::new();
    let mut cluster = Cluster::start().await;
    let a = cluster.agent_with("a", &[], &[gpu.environment()]).await;
    let memory = gpu.allocate(8);
    let region = memory.register(&a).await;
    memory.publish(&a, region, 0..8).await;
    drop(a);
    eventually("its blocks are gone", || async {
        let owners = cluster.locate("n", &hashes(0..8)).await;
        owners.iter().all(Vec::is_empty)
    })
    .await;
    // The agent lives, and takes the memory anew.
    let again = Engine::connect(&cluster.socket("a")).await;
    let region = memory.register(&again).await;
    memory.publish(&again, region, 0..8).await;
    drop(memory);
}

/// An agent whose GPU fails after some copies, with this status for ever.
pub(crate) fn failing(gpu: &Gpu, function: &str, status: i32, after: u32) -> [(String, String); 2] {
    let failure = format!("{function}:{status}:{after}");
    [gpu.environment(), ("FAKE_CUDA_FAIL".to_owned(), failure)]
}

/// The n-th block into the n-th slot: has an outcome in time, and where it was pulled it is right.
pub(crate) async fn pull_what_can_be(
    engine: &Engine,
    to: &Allocation<'_>,
    region: u32,
    n: u64,
    timeout: Duration,
) -> pb::BlockOutcome {
    let began = std::time::Instant::now();
    let slots = vec![n as u32];
    let outcomes = engine.pull_slots("n", &[n], region, slots, timeout).await;
    assert!(began.elapsed() < timeout + LATE);
    let outcome = outcomes.unwrap().remove(0);
    if outcome.kind() == OutcomeKind::Pulled {
        assert!(to.read(outcome.slot) == block(n), "{outcome:?}");
    }
    outcome
}

#[tokio::test]
async fn an_owner_that_loses_its_gpu_delivers_no_wrong_byte_and_says_so() {
    let gpu = Gpu::new();
    let mut cluster = Cluster::start().await;
    // The fifth copy out of it, and every one after, answers that the GPU is lost.
    let lost = failing(&gpu, "cuMemcpy2DAsync_v2", 700, 4);
    let a = cluster.agent_with("a", &[], &lost).await;
    let b = cluster.agent_with("b", &[], &[gpu.environment()]).await;
    let (from, to) = (gpu.allocate(8), gpu.allocate(8));
    let published = from.register(&a).await;
    let landed = to.register(&b).await;
    from.publish(&a, published, 0..8).await;
    let mut pulled = 0;
    for n in 0..8 {
        let outcome = pull_what_can_be(&b, &to, landed, n, TIMEOUT).await;
        use OutcomeKind::{Missing, Pulled, Stale, TimedOut, Unreachable};
        match outcome.kind() {
            Pulled => pulled += 1,
            Missing | Stale | Unreachable | TimedOut => {
                assert!(outcome.settled && !outcome.detail.is_empty());
            }
            _ => panic!("{outcome:?}"),
        }
    }
    assert!((1..8).contains(&pulled), "{pulled}");
    // Its blocks are not offered any more; those that were pulled have another owner.
    eventually("its blocks are withdrawn", || async {
        let owners = cluster.locate("n", &hashes(0..8)).await;
        owners.iter().flatten().all(|owner| owner == "b")
    })
    .await;
    // It still answers, and says what to do about its GPU.
    let more = gpu.allocate(8);
    let status = register(&a, more.request()).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::GpuUnavailable));
    assert!(status.message().contains("restart the agent"), "{status}");
}

/// How often the GPU answers before it is lost. A query may also be one about copies that are known to be done: then nothing
/// is under way, and it is lost a little later in another run.
const ANSWERS: std::ops::Range<u32> = 6..14;
/// What each of its copies takes: long enough to be asked about many times while it is under way, by whoever is let run at all.
const COPY_US: &str = "100000";
/// Until the end of this a pull waits whose copy nobody can say anything about; any other ends long before.
const UNTOLD: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_reader_that_loses_its_gpu_delivers_no_wrong_byte_and_never_frees_what_may_be_written() {
    for answers in ANSWERS {
        if is_lost_in_mid_copy(answers).await {
            return;
        }
    }
    panic!("the GPU was never lost in the middle of a copy");
}

/// False where it was lost between two pulls.
async fn is_lost_in_mid_copy(answers: u32) -> bool {
    let gpu = Gpu::new();
    let mut cluster = Cluster::start().await;
    let a = cluster.agent_with("a", &[], &[gpu.environment()]).await;
    let mut lost = failing(&gpu, "cuEventQuery", 700, answers).to_vec();
    lost.push(("FAKE_CUDA_DELAY_US".to_owned(), COPY_US.to_owned()));
    let b = cluster.agent_with("b", &[], &lost).await;
    let (from, to) = (gpu.allocate(32), gpu.allocate(32));
    let published = from.register(&a).await;
    let landed = to.register(&b).await;
    from.publish(&a, published, 0..32).await;
    let mut blocks = 0..32;
    let (at, failed) = loop {
        let n = blocks.next().expect("the GPU is lost after a few");
        let outcome = pull_what_can_be(&b, &to, landed, n, UNTOLD).await;
        if outcome.kind() != OutcomeKind::Pulled {
            break (n, outcome);
        }
    };
    if failed.settled {
        // Nothing had been written where it should have gone, and the engine is told why.
        assert_eq!(failed.kind(), OutcomeKind::NoSpace, "{failed:?}");
        assert!(failed.detail.contains("the GPU is lost"), "{failed:?}");
        return false;
    }
    // What was under way when it was lost never settles, and that is said.
    // The region has ended, and cannot be had again from this agent.
    eventually("the region has ended", || async {
        let slots = vec![at as u32 + 1];
        let later = b.pull_slots("n", &[at + 1], landed, slots, TIMEOUT).await;
        later.is_err_and(|status| reason_of(&status) == Some(Reason::RegionUnknown))
    })
    .await;
    let status = register(&b, to.request()).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::GpuUnavailable), "{status}");
    assert!(status.message().contains("restart the agent"), "{status}");
    // And the engine is not told that it may free the memory.
    let ended = tokio::time::timeout(Duration::from_millis(500), unregister(&b, landed)).await;
    assert!(ended.is_err(), "{ended:?}");
    true
}
