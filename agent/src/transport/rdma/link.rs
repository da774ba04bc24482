//! A link to one owner: reads become READs, and what fails is done another way.

use std::{
    fmt::Display,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use dashmap::DashMap;
use kvferry_proto::{RegionId, RemoteSpan};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{Notify, OnceCell},
    task::spawn_blocking,
};

use super::{
    config::CANCEL_GRACE,
    devices::Devices,
    fault::Loss,
    keeper,
    landing::{Landing, OnGpu},
    lane::Lane,
    lanes::{After, Lanes},
    memory::LocalMemory,
    op::{ReadOp, RemoteRegion, Target},
    owner_client::OwnerClient,
    poller::Ended,
};
use crate::transport::{
    Capabilities, GpuRead, GpuRequest, Link, PeerTarget, PendingRead, ReadError, ReadRequest,
    Transport, TransportKind, operation::check_request, spans::coalesce_remote,
};

/// As over sockets, which take over what RDMA cannot reach.
const CAPABILITIES: Capabilities = Capabilities {
    max_spans: 16_384,
    max_bytes: 256 << 20,
    // 400 Gb/s over a round trip of half a millisecond, queueing included.
    window_bytes: 32 << 20,
    // Further than the same host, as sockets: owners are compared by it, not transports.
    distance: 1,
    // With software devices.
    needs_checksum: false,
    // A READ of a few bytes takes a card as long as some KiB at 200 Gb/s, and a software device as long as a packet.
    span_bytes: 2 << 10,
};

/// A link over RDMA. Dropping it settles what is under way with [`ReadError::LinkLost`].
pub struct RdmaLink(pub(super) Arc<Shared>);

pub(super) struct Shared {
    /// Of tokens.
    pub(super) number: u32,
    pub(super) peer: PeerTarget,
    pub(super) devices: Arc<Devices>,
    pub(super) client: OwnerClient,
    pub(super) regions: DashMap<RegionId, Arc<RemoteRegion>>,
    /// Held by the one who asks for regions: others then find them known.
    pub(super) asking: tokio::sync::Mutex<()>,
    lanes: Mutex<Lanes>,
    received: AtomicU64,
    pub(super) lost: AtomicBool,
    /// For the keeper.
    pub(super) wake: Arc<Notify>,
    pub(super) behind: Option<Arc<dyn Transport>>,
    /// A link of the transport behind, for what cannot be read by RDMA.
    pub(super) fallback: OnceCell<Arc<dyn Link>>,
    pub(super) runtime: Handle,
    pub(super) me: Weak<Self>,
}

impl RdmaLink {
    /// Over connected queue pairs. Must be called on a tokio runtime, which then drives the link.
    pub(super) fn new(
        peer: &PeerTarget,
        devices: &Arc<Devices>,
        client: OwnerClient,
        lanes: Vec<Lane>,
        behind: Option<Arc<dyn Transport>>,
    ) -> Self {
        let number = devices.next_number();
        let shared = Arc::new_cyclic(|me| Shared {
            number,
            peer: peer.clone(),
            devices: Arc::clone(devices),
            client,
            regions: DashMap::new(),
            asking: tokio::sync::Mutex::default(),
            lanes: Mutex::new(Lanes::new(number, lanes)),
            received: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            wake: Arc::default(),
            behind,
            fallback: OnceCell::new(),
            runtime: Handle::current(),
            me: Weak::clone(me),
        });
        devices.links.insert(number, Arc::downgrade(&shared));
        tokio::spawn(keeper::run(
            Arc::downgrade(&shared),
            Arc::clone(&shared.wake),
            devices.events.subscribe(),
        ));
        Self(shared)
    }
}

impl Link for RdmaLink {
    fn kind(&self) -> TransportKind {
        TransportKind::Rdma
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            needs_checksum: self.0.devices.need_checksums(),
            ..CAPABILITIES
        }
    }

    fn read(&self, request: ReadRequest) -> PendingRead {
        let bytes = match check_request(&request, &CAPABILITIES) {
            Ok(bytes) => bytes,
            Err(error) => return PendingRead::settled(Err(error)),
        };
        let shared = &self.0;
        if self.is_lost() {
            return PendingRead::settled(Err(shared.lost(&"its queue pairs are gone")));
        }
        let (op, pending) = shared.op(Landing::Host(request.local), bytes);
        let aimed = shared.aim_at_once(&op);
        shared.begin(op, request.remote, aimed);
        pending
    }

    fn read_gpu(&self, request: &GpuRequest) -> GpuRead {
        let shared = &self.0;
        if self.is_lost() {
            let lost = shared.lost(&"its queue pairs are gone");
            return GpuRead::Straight(PendingRead::settled(Err(lost)));
        }
        let memory = &request.local.memory;
        let local = match shared.devices.locals.find_gpu(memory) {
            Some(Some(local)) if shared.carries(&local) => local,
            Some(_) => return GpuRead::Staged,
            None => {
                let (devices, memory) = (Arc::clone(&shared.devices), Arc::clone(memory));
                return GpuRead::Later(Box::pin(async move {
                    let register = move || devices.locals.register_gpu(&devices.list, &memory);
                    // Where it did not come about, it is asked for once more, and then staged.
                    let _ = spawn_blocking(register).await;
                }));
            }
        };
        let landing = Landing::Gpu(OnGpu {
            spans: request.local.clone(),
            runtime: shared.runtime.clone(),
        });
        let bytes = request.remote.iter().map(|span| span.len).sum();
        let (op, pending) = shared.op(landing, bytes);
        op.aim(Target { local, place: None });
        shared.begin(op, request.remote.clone(), true);
        GpuRead::Straight(pending)
    }

    fn received_bytes(&self) -> u64 {
        let fallback = self
            .0
            .fallback
            .get()
            .map_or(0, |link| link.received_bytes());
        self.0.received.load(Ordering::Relaxed) + fallback
    }

    fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }

    fn distrust(&self) {
        let lanes = self.0.lane_names();
        tracing::error!(node = %self.0.peer.node, lanes, "wrong bytes came over these RDMA devices");
        self.0.lose(Loss::WrongBytes);
    }
}

impl Drop for RdmaLink {
    fn drop(&mut self) {
        let shared = Arc::clone(&self.0);
        shared.act(|lanes, after| lanes.lose(Loss::Dropped, after));
        self.0.runtime.spawn(async move { shared.end().await });
    }
}

impl Shared {
    /// As whoever reads is told.
    pub(super) fn lost(&self, why: &dyn Display) -> ReadError {
        ReadError::LinkLost {
            node: self.peer.node.clone(),
            detail: why.to_string(),
        }
    }

    fn op(&self, landing: Landing, bytes: u64) -> (Arc<ReadOp>, PendingRead) {
        let link = Weak::clone(&self.me);
        let cancel = move |op: &Arc<ReadOp>| {
            if let Some(shared) = link.upgrade() {
                shared.cancel(op);
            }
        };
        ReadOp::new(landing, bytes, Box::new(cancel))
    }

    /// Starts a read at once where all that it takes is known.
    fn begin(self: &Arc<Self>, op: Arc<ReadOp>, asked: Vec<RemoteSpan>, aimed: bool) {
        let remote = coalesce_remote(&asked);
        if aimed && let Some(regions) = self.known(&remote) {
            self.start(&op, &remote, &regions);
        } else {
            let shared = Arc::clone(self);
            self.runtime
                .spawn(async move { shared.prepare(op, remote, asked).await });
        }
    }

    /// Can READs into it go over one of the queue pairs that there are now?
    fn carries(&self, local: &LocalMemory) -> bool {
        local.regions.iter().all(Option::is_some)
            || self.act(|lanes, _| {
                let mut open = lanes.list.iter().filter(|lane| lane.is_open());
                open.any(|lane| matches!(local.regions.get(lane.device.index), Some(Some(_))))
            })
    }

    /// Does something to the queue pairs, and afterwards what must be done without their lock.
    pub(super) fn act<T>(&self, what: impl FnOnce(&mut Lanes, &mut After) -> T) -> T {
        let mut after = After::default();
        let mut lanes = self.lanes.lock();
        let result = what(&mut lanes, &mut after);
        self.received.store(lanes.received, Ordering::Relaxed);
        let lost = lanes.lost.clone();
        drop(lanes);
        if let Some(why) = lost
            && !self.lost.swap(true, Ordering::AcqRel)
        {
            tracing::info!(node = %self.peer.node, "the RDMA link has ended: {why}");
        }
        for (op, result) in after.over {
            if op.over_and_cut(result.map_err(|why| self.lost(&why)))
                && let Landing::Host(spans) = op.landing()
            {
                let locals = &self.devices.locals;
                locals.forget(&self.devices.list, &spans.memory);
            }
        }
        for op in after.never {
            op.never();
        }
        for item in after.refused {
            self.ask_again(item);
        }
        if after.wake {
            self.wake.notify_one();
        }
        // Destroys queue pairs on which nothing is left.
        drop(after.gone);
        result
    }

    pub(super) fn ended(&self, ended: Vec<Ended>) {
        self.act(|lanes, after| lanes.ended(ended, after));
    }

    pub(super) fn cancel(&self, op: &Arc<ReadOp>) {
        if !self.act(|lanes, after| lanes.withdraw(op, after)) {
            return;
        }
        let (op, link) = (Arc::clone(op), Weak::clone(&self.me));
        self.runtime.spawn(async move {
            tokio::time::sleep(CANCEL_GRACE).await;
            if !op.is_settled()
                && let Some(shared) = link.upgrade()
            {
                shared.act(|lanes, after| lanes.close_under(&op, after));
            }
        });
    }
}
