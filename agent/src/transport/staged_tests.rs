//! What a link makes of reads into a GPU, and what becomes of them then. The ways themselves are in `tests/conformance`.

use std::sync::atomic::{AtomicUsize, Ordering};

use kvferry_cuda::{Library, StagingError};
use kvferry_cuda_fake::FakeCuda;
use kvferry_proto::{Part, RegionId};
use tokio::{sync::Semaphore, time::timeout};

use super::*;
use crate::{
    gpu::GpuMemory,
    region::Memory,
    transfer::Destination,
    transport::{CancelRead, Capabilities, Completion, TransportKind},
};

const BYTES: u64 = 2_500_000;
const SOON: Duration = Duration::from_secs(20);

/// Says "later" a number of times, then takes reads.
struct Registering {
    laters: usize,
    asked: AtomicUsize,
    /// A permit for each "later" that is over.
    ready: Arc<Semaphore>,
    /// Reads that go straight, as their link holds them.
    taken: parking_lot::Mutex<Vec<Completion>>,
    cancelled: Arc<AtomicUsize>,
}

struct Cancelled(Arc<AtomicUsize>);

impl CancelRead for Cancelled {
    fn cancel(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Link for Registering {
    fn kind(&self) -> TransportKind {
        TransportKind::Rdma
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_spans: 16,
            max_bytes: BYTES,
            window_bytes: BYTES,
            distance: 1,
            needs_checksum: false,
            span_bytes: 0,
        }
    }
    fn read(&self, request: ReadRequest) -> PendingRead {
        for range in request.local.ranges {
            let bytes = vec![7; (range.end - range.start) as usize];
            request.local.memory.write_at(range.start, &bytes).unwrap();
        }
        PendingRead::settled(Ok(()))
    }
    fn read_gpu(&self, _: &GpuRequest) -> GpuRead {
        if self.asked.fetch_add(1, Ordering::SeqCst) < self.laters {
            let ready = Arc::clone(&self.ready);
            return GpuRead::Later(Box::pin(async move {
                ready.acquire().await.unwrap().forget();
            }));
        }
        let cancel = Arc::new(Cancelled(Arc::clone(&self.cancelled)));
        let (pending, completion) = PendingRead::new(cancel);
        self.taken.lock().push(completion);
        GpuRead::Straight(pending)
    }
    fn received_bytes(&self) -> u64 {
        0
    }
    fn is_lost(&self) -> bool {
        false
    }
}

struct Rig {
    cuda: FakeCuda,
    gpu: Arc<Gpu>,
    memory: Memory,
    registering: Arc<Registering>,
}

impl Rig {
    fn new(laters: usize) -> Self {
        let cuda = FakeCuda::new();
        let library = Library::load_from(cuda.path()).unwrap();
        let gpu = Gpu::new(&library.device(0).unwrap().context().unwrap()).unwrap();
        let own = kvferry_cuda::GpuMemory::allocate(gpu.context(), BYTES).unwrap();
        Self {
            memory: GpuMemory::new(&gpu, own).into(),
            gpu,
            cuda,
            registering: Arc::new(Registering {
                laters,
                asked: AtomicUsize::new(0),
                ready: Arc::new(Semaphore::new(0)),
                taken: parking_lot::Mutex::default(),
                cancelled: Arc::default(),
            }),
        }
    }

    fn begin(&self) -> PendingRead {
        let link: Arc<dyn Link> = Arc::clone(&self.registering) as _;
        let span = RemoteSpan {
            region: RegionId(1),
            part: Part::Data,
            offset: 0,
            len: BYTES,
        };
        let local = Destination {
            memory: self.memory.clone(),
            ranges: vec![0..1_000_000, 1_000_000..BYTES].into(),
        };
        let remote = vec![span];
        read(&link, PlannedRead { remote, local })
    }

    /// Reads that began: straight and staged.
    fn reads(&self) -> (u64, u64) {
        let reads = self.gpu.reads();
        (reads.straight.get(), reads.staged.get())
    }
}

async fn settled(pending: PendingRead) -> Result<(), ReadError> {
    timeout(SOON, pending).await.expect("it settles")
}

#[tokio::test]
async fn a_read_that_waits_for_a_registration_is_cancelled_at_once() {
    let rig = Rig::new(1);
    let pending = rig.begin();
    pending.cancel();
    assert!(matches!(settled(pending).await, Err(ReadError::Cancelled)));
    assert_eq!(rig.reads(), (0, 0));
}

#[tokio::test]
async fn afterwards_it_goes_straight_and_its_cancel_reaches_the_link() {
    let rig = Rig::new(1);
    let mut pending = rig.begin();
    rig.registering.ready.add_permits(1);
    while rig.reads() != (1, 0) {
        tokio::task::yield_now().await;
    }
    pending.cancel();
    while rig.registering.cancelled.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // It has settled when the link says so, and not before.
    let early = timeout(Duration::from_millis(50), &mut pending).await;
    assert!(early.is_err());
    let completion = rig.registering.taken.lock().pop().unwrap();
    completion.settle(Err(ReadError::Cancelled));
    assert!(matches!(settled(pending).await, Err(ReadError::Cancelled)));
}

#[tokio::test]
async fn a_link_that_is_never_ready_is_staged_over() {
    let rig = Rig::new(usize::MAX);
    let pending = rig.begin();
    rig.registering.ready.add_permits(1);
    settled(pending).await.unwrap();
    assert_eq!(rig.reads(), (0, 1));
    let memory = rig.memory.clone();
    let mut bytes = vec![0; BYTES as usize];
    let bytes = tokio::task::spawn_blocking(move || {
        memory.read_at(0, &mut bytes).unwrap();
        bytes
    });
    assert!(bytes.await.unwrap().iter().all(|byte| *byte == 7));
}

#[tokio::test]
async fn a_lost_gpu_is_asked_of_no_link() {
    let rig = Rig::new(0);
    rig.cuda.lose_the_gpu();
    assert!(rig.gpu.context().flush_rdma_writes().is_err());
    assert!(rig.gpu.context().is_lost());
    let result = settled(rig.begin()).await;
    assert!(
        matches!(result, Err(ReadError::LocalGpu(StagingError::Copy(_)))),
        "{result:?}"
    );
    assert_eq!(rig.registering.asked.load(Ordering::SeqCst), 0);
}
