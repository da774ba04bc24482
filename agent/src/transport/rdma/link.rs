//! A link to one owner: reads become READs, and what fails is done another way.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
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
    config::{CANCEL_GRACE, CHUNK_BYTES, CHUNK_PIECES, DRAIN_BOUND},
    cut::cut,
    device::Devices,
    keeper,
    lanes::{After, Cause, Lane, Lanes},
    op::{Item, ReadOp, RemoteRegion, Target},
    owner_client::OwnerClient,
    poller::Ended,
};
use crate::transport::{
    Capabilities, Link, PeerTarget, PendingRead, ReadError, ReadRequest, Transport, TransportKind,
    operation::check_request,
    spans::{SpanRefusal, check_words, coalesce_local, coalesce_remote},
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
};

/// A link over RDMA. Dropping it settles what is under way with [`ReadError::LinkLost`].
pub struct RdmaLink(pub(super) Arc<Shared>);

pub(super) struct Shared {
    /// Of tokens.
    pub(super) number: u32,
    pub(super) peer: PeerTarget,
    pub(super) devices: Arc<Devices>,
    pub(super) client: OwnerClient,
    regions: DashMap<RegionId, Arc<RemoteRegion>>,
    /// Held by the one who asks for regions: others then find them known.
    asking: tokio::sync::Mutex<()>,
    lanes: Mutex<Lanes>,
    received: AtomicU64,
    lost: AtomicBool,
    /// For the keeper.
    pub(super) wake: Arc<Notify>,
    behind: Option<Arc<dyn Transport>>,
    /// A link of the transport behind, for what cannot be read by RDMA.
    fallback: OnceCell<Arc<dyn Link>>,
    runtime: Handle,
    me: Weak<Self>,
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
            return PendingRead::settled(Err(shared.lost("its queue pairs are gone")));
        }
        let remote = coalesce_remote(&request.remote);
        let link = Weak::clone(&shared.me);
        let (op, pending) = ReadOp::new(
            request.local,
            bytes,
            Box::new(move |op| {
                if let Some(shared) = link.upgrade() {
                    shared.cancel(op);
                }
            }),
        );
        if shared.aim_at_once(&op)
            && let Some(regions) = shared.known(&remote)
        {
            shared.start(&op, &remote, &regions);
        } else {
            let shared = Arc::clone(shared);
            let handle = shared.runtime.clone();
            handle.spawn(async move { shared.prepare(op, remote, request.remote).await });
        }
        pending
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
        self.0.lose("wrong bytes came over it");
    }
}

impl Drop for RdmaLink {
    fn drop(&mut self) {
        let shared = Arc::clone(&self.0);
        shared.act(|lanes, after| lanes.lose("the link was dropped", after));
        self.0.runtime.spawn(async move { shared.end().await });
    }
}

/// What stands in the way of reading by RDMA.
enum Obstacle {
    /// The read is refused, by whatever way it came.
    Refused(ReadError),
    /// Another transport may do it.
    NotByRdma(String),
}

impl Shared {
    pub(super) fn lost(&self, detail: &str) -> ReadError {
        ReadError::LinkLost {
            node: self.peer.node.clone(),
            detail: detail.to_owned(),
        }
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
            if op.over_and_cut(result.map_err(|why| self.lost(&why))) {
                self.devices.locals.forget(&self.devices.list, op.memory());
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

    fn cancel(&self, op: &Arc<ReadOp>) {
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

    /// Finds where READs can land without waiting for anything. False where the memory must be registered first.
    fn aim_at_once(&self, op: &ReadOp) -> bool {
        let locals = &self.devices.locals;
        let target = match locals.find(op.memory()) {
            Some(local) => Some(Target { local, place: None }),
            None => locals.scratch(op.bytes()).map(|place| Target {
                local: Arc::clone(place.local()),
                place: Some(place),
            }),
        };
        match target {
            Some(target) => {
                op.aim(target);
                true
            }
            None => false,
        }
    }

    fn known(&self, remote: &[RemoteSpan]) -> Option<Vec<Arc<RemoteRegion>>> {
        let mut regions: Vec<Arc<RemoteRegion>> = Vec::with_capacity(remote.len());
        for span in remote {
            let region = match regions.last() {
                Some(last) if last.id == span.region => Arc::clone(last),
                _ => Arc::clone(&*self.regions.get(&span.region)?),
            };
            if region.keys.is_empty() || check(&region, span).is_err() {
                return None;
            }
            regions.push(region);
        }
        Some(regions)
    }

    /// Hands a prepared read to the queue pairs.
    fn start(&self, op: &Arc<ReadOp>, remote: &[RemoteSpan], regions: &[Arc<RemoteRegion>]) {
        let place = op.target().and_then(|target| target.place.as_ref());
        let local = match place {
            Some(place) => vec![place.range(op.bytes())],
            None => coalesce_local(op.spans().ranges.clone()),
        };
        let device = |d: &Arc<super::device::Device>| d.context.attributes().max_pieces;
        let pieces = self.devices.list.iter().map(device).min().unwrap_or(1);
        let pieces = pieces.clamp(1, CHUNK_PIECES) as usize;
        let cuts = cut(
            remote.iter().map(|span| span.len),
            local,
            CHUNK_BYTES,
            pieces,
        );
        op.add(cuts.len());
        let items = cuts.into_iter().filter_map(|cut| {
            let (span, region) = (remote.get(cut.span)?, regions.get(cut.span)?);
            Some(Item {
                op: Arc::clone(op),
                region: Arc::clone(region),
                part: span.part,
                // Checked to be inside the region.
                offset: span.offset.saturating_add(cut.offset),
                len: cut.len_bytes(),
                into: cut.into,
                attempts: 0,
            })
        });
        let items: Vec<Item> = items.collect();
        self.act(|lanes, after| lanes.enqueue(items, after));
        op.over(Ok(()));
        // It may have been cancelled while it was on its way here.
        if op.is_cancelled() && !op.is_settled() {
            self.cancel(op);
        }
    }

    /// Registers the memory and asks for the regions first.
    async fn prepare(
        self: Arc<Self>,
        op: Arc<ReadOp>,
        remote: Vec<RemoteSpan>,
        asked: Vec<RemoteSpan>,
    ) {
        let ready = async {
            let regions = self.describe(&remote).await?;
            if op.target().is_none() {
                self.register(&op).await?;
            }
            Ok(regions)
        };
        let ready = tokio::select! {
            () = op.cancelled() => return op.over(Ok(())),
            ready = ready => ready,
        };
        match ready {
            Ok(regions) => self.start(&op, &remote, &regions),
            Err(Obstacle::Refused(error)) => op.over(Err(error)),
            Err(Obstacle::NotByRdma(why)) => self.read_behind(&op, asked, &why).await,
        }
    }

    async fn register(&self, op: &ReadOp) -> Result<(), Obstacle> {
        let (devices, memory) = (Arc::clone(&self.devices), Arc::clone(op.memory()));
        let registered =
            spawn_blocking(move || devices.locals.register(&devices.list, &memory)).await;
        match registered {
            Ok(Ok(local)) => {
                op.aim(Target { local, place: None });
                Ok(())
            }
            Ok(Err(error)) => Err(Obstacle::NotByRdma(error.to_string())),
            Err(error) => Err(Obstacle::NotByRdma(error.to_string())),
        }
    }

    /// The spans' regions, checked; asks the owner for those that are not known.
    async fn describe(&self, remote: &[RemoteSpan]) -> Result<Vec<Arc<RemoteRegion>>, Obstacle> {
        let unknown = || {
            let mut unknown: Vec<RegionId> = remote.iter().map(|span| span.region).collect();
            unknown.retain(|id| !self.regions.contains_key(id));
            unknown.sort_unstable();
            unknown.dedup();
            unknown
        };
        if !unknown().is_empty() {
            let _asking = self.asking.lock().await;
            let unknown = unknown();
            let described = self.client.describe(&unknown).await;
            let described = described.map_err(|e| Obstacle::Refused(self.lost(&e)))?;
            for (id, region) in unknown.iter().zip(described) {
                match region {
                    Some(region) => {
                        self.regions.insert(*id, Arc::new(region));
                    }
                    None => {
                        self.regions.remove(id);
                        return Err(Obstacle::Refused(ReadError::RegionGone {
                            node: self.peer.node.clone(),
                            region: id.0,
                        }));
                    }
                }
            }
        }
        let mut regions = Vec::with_capacity(remote.len());
        for span in remote {
            let region = self.regions.get(&span.region).map(|r| Arc::clone(&r));
            let region = region
                .ok_or_else(|| Obstacle::Refused(self.lost("a region was forgotten meanwhile")))?;
            if region.keys.is_empty() {
                return Err(Obstacle::NotByRdma(format!(
                    "{} does not serve region {} by RDMA",
                    self.peer.node, span.region
                )));
            }
            check(&region, span).map_err(|refusal| {
                Obstacle::Refused(ReadError::SpanRefused {
                    node: self.peer.node.clone(),
                    detail: refusal.as_str(),
                })
            })?;
            regions.push(region);
        }
        Ok(regions)
    }

    /// The owner refused a key: it has another one now, or the region is gone.
    fn ask_again(&self, mut item: Item) {
        let Some(shared) = self.me.upgrade() else {
            return item.op.over(Err(self.lost("the link was dropped")));
        };
        self.runtime.spawn(async move {
            let span = RemoteSpan {
                region: item.region.id,
                part: item.part,
                offset: item.offset,
                len: item.len,
            };
            // Others may have asked meanwhile: only the void keys are forgotten.
            shared
                .regions
                .remove_if(&span.region, |_, known| Arc::ptr_eq(known, &item.region));
            match shared.describe(&[span]).await {
                Ok(regions) => {
                    item.region = regions.into_iter().next().unwrap_or(item.region);
                    shared.act(|lanes, after| lanes.enqueue([item], after));
                }
                Err(Obstacle::Refused(error)) => item.op.over(Err(error)),
                Err(Obstacle::NotByRdma(why)) => item.op.over(Err(shared.lost(&why))),
            }
        });
    }

    /// Reads over the transport behind, and says so.
    async fn read_behind(&self, op: &Arc<ReadOp>, remote: Vec<RemoteSpan>, why: &str) {
        let connect = async {
            let Some(behind) = &self.behind else {
                return Err(format!("{why}, and nothing but RDMA may be used"));
            };
            let open = || async {
                let link = behind.connect(&self.peer).await?;
                let transport = link.kind().as_str();
                tracing::warn!(node = %self.peer.node, transport, "not all can be read by RDMA: {why}");
                Ok::<_, crate::transport::ConnectError>(link)
            };
            let link = self.fallback.get_or_try_init(open).await;
            link.cloned().map_err(|error| format!("{why}; {error}"))
        };
        let link = tokio::select! {
            () = op.cancelled() => return op.over(Ok(())),
            link = connect => link,
        };
        let link = match link {
            Ok(link) => link,
            Err(why) => return op.over(Err(self.lost(&why))),
        };
        op.leave_to_another();
        let mut pending = link.read(ReadRequest {
            remote,
            local: op.spans().clone(),
        });
        let result = tokio::select! {
            result = &mut pending => result,
            () = op.cancelled() => {
                pending.cancel();
                pending.await
            }
        };
        if link.is_lost() {
            // The one behind does not come back by itself; the next link gets a new one.
            self.act(|lanes, after| lanes.lose("the link behind it is lost", after));
        }
        op.over(result);
    }

    /// Drops queue pairs that their device did not drain in time.
    pub(super) async fn drop_overdue(&self) {
        let Some(before) = Instant::now().checked_sub(DRAIN_BOUND) else {
            return;
        };
        let overdue = self.act(|lanes, _| lanes.overdue(before));
        if !overdue.is_empty() {
            tracing::error!(
                node = %self.peer.node,
                "a device did not give up the READs of {} closed queue pairs; their memory is lost",
                overdue.len()
            );
            // Waits for the device once more.
            let _ = spawn_blocking(move || drop(overdue)).await;
        }
    }

    /// Closed queue pairs of a link that is dropped: waits for what is under way, and says goodbye.
    async fn end(self: Arc<Self>) {
        let begin = Instant::now();
        while !self.act(|lanes, _| lanes.is_idle()) && begin.elapsed() < DRAIN_BOUND * 2 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            self.drop_overdue().await;
        }
        for op in self.act(|lanes, _| lanes.abandon()) {
            op.never();
        }
        self.devices.links.remove(&self.number);
        self.client.close().await;
    }

    /// Queue pairs of these devices are wanted: all that have none open.
    pub(super) fn missing(&self) -> Vec<usize> {
        let wanted = self.devices.list.iter().map(|device| device.index);
        self.act(|lanes, _| {
            let open = |index: &usize| {
                let mut list = lanes.list.iter();
                list.any(|lane| lane.is_open() && lane.device.index == *index)
            };
            wanted.filter(|index| !open(index)).collect()
        })
    }

    pub(super) fn adopt(&self, new: Vec<Lane>) {
        self.act(|lanes, after| {
            // Once lost, lost for ever.
            match lanes.lost {
                None => lanes.list.extend(new),
                Some(_) => after.gone.extend(new),
            }
            lanes.enqueue([], after);
        });
    }

    /// Closes the queue pairs on a device of ours.
    pub(super) fn device_down(&self, device: usize) {
        let cause = Cause::Path("its device's port is down".to_owned());
        self.act(|lanes, after| {
            lanes.close(&cause, |lane| lane.device.index == device, after);
        });
    }

    /// A queue pair of ours failed without a READ that says so.
    pub(super) fn pair_failed(&self, qp_num: u32) {
        let cause = Cause::Path("its queue pair failed".to_owned());
        self.act(|lanes, after| {
            lanes.close(&cause, |lane| lane.pair.qp_num() == qp_num, after);
        });
    }

    /// Which devices its queue pairs join, for messages to people: ours, and the number of the owner's.
    fn lane_names(&self) -> String {
        let mut names = self.act(|lanes, _| {
            let lanes = lanes.list.iter();
            lanes
                .map(|lane| format!("{} to its device {}", lane.device.name(), lane.remote))
                .collect::<Vec<_>>()
        });
        names.sort();
        names.dedup();
        names.join(", ")
    }

    pub(super) fn lose(&self, why: &str) {
        self.act(|lanes, after| lanes.lose(why, after));
    }

    pub(super) fn is_lost_now(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Is there a way now, or one that still drains?
    pub(super) fn has_lanes(&self) -> bool {
        self.act(|lanes, after| {
            lanes.enqueue([], after);
            !lanes.list.is_empty()
        })
    }

    pub(super) fn has_open_lanes(&self) -> bool {
        self.act(|lanes, _| lanes.open() > 0)
    }
}

/// Is the span inside the region, as every one of its devices knows it?
fn check(region: &RemoteRegion, span: &RemoteSpan) -> Result<(), SpanRefusal> {
    check_words(span)?;
    let inside = |keys: &super::op::RemoteKeys| {
        let memory = match span.part {
            kvferry_proto::Part::Data => keys.data,
            kvferry_proto::Part::Generations => keys.generations,
        };
        span.end().is_some_and(|end| end <= memory.len)
    };
    match region.keys.iter().all(inside) {
        true => Ok(()),
        false => Err(SpanRefusal::OutOfRange),
    }
}
