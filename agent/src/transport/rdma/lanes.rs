//! The queue pairs of a link, and which READ goes to which.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use kvferry_ibverbs::{QueuePair, ReadChain, ReadyToSend, RemotePiece, WorkError, WorkStatus};

use super::{
    config::{LANE_WINDOW_BYTES, MAX_ATTEMPTS},
    device::Device,
    op::{Item, ReadOp},
    poller::{Ended, token},
};

/// Why a queue pair was closed: what to do next depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cause {
    /// This side closed it, to settle a read: the path is good.
    Ours,
    /// The owner refused a key: the path is good, and the key is void.
    Key,
    /// The way to the owner: nothing goes over it any more.
    Path(String),
}

/// One connected queue pair.
pub(super) struct Lane {
    pub(super) id: u64,
    pub(super) device: Arc<Device>,
    /// The owner's device at the other end.
    pub(super) remote: u32,
    pub(super) pair: QueuePair<ReadyToSend>,
    chain: ReadChain,
    /// In the chain, in order.
    chained: Vec<u32>,
    /// On it, chained ones included.
    bytes: u64,
    reads: usize,
    closed: Option<(Cause, Instant)>,
}

impl Lane {
    pub(super) fn new(
        id: u64,
        device: Arc<Device>,
        remote: u32,
        pair: QueuePair<ReadyToSend>,
    ) -> Self {
        Self {
            id,
            device,
            remote,
            chain: pair.chain(),
            pair,
            chained: Vec::new(),
            bytes: 0,
            reads: 0,
            closed: None,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.closed.is_none()
    }

    pub(super) fn close(&mut self, cause: Cause) {
        if self.closed.is_none() {
            self.closed = Some((cause, Instant::now()));
            self.pair.fail();
        }
    }

    fn could_carry(&self, item: &Item) -> bool {
        let target = item.op.target();
        let lands = target.and_then(|target| target.local.regions.get(self.device.index));
        self.is_open()
            && matches!(lands, Some(Some(_)))
            && item.region.key(self.remote, item.part).is_some()
    }

    fn has_room(&self, item: &Item) -> bool {
        self.pair.room() > self.chained.len()
            && (self.bytes == 0 || self.bytes + item.len <= LANE_WINDOW_BYTES)
    }

    /// Lower is better: on the memory's own NUMA node, then with less to do.
    fn rank(&self, item: &Item) -> (bool, u64) {
        let node = item.op.target().and_then(|target| target.local.numa_node);
        let far = match (node, self.device.context.numa_node()) {
            (Some(memory), Some(device)) => memory != device,
            _ => false,
        };
        (far, self.bytes)
    }
}

/// What must be done after the lock is given back.
#[derive(Default)]
pub(super) struct After {
    /// Reads of which one READ is over.
    pub(super) over: Vec<(Arc<ReadOp>, Result<(), String>)>,
    /// Reads whose memory a device keeps for ever.
    pub(super) never: Vec<Arc<ReadOp>>,
    /// READs whose key the owner refused.
    pub(super) refused: Vec<Item>,
    /// Queue pairs with nothing on them any more: to be dropped.
    pub(super) gone: Vec<Lane>,
    /// The link's keeper has something to do.
    pub(super) wake: bool,
}

/// A link's READs and queue pairs.
#[derive(Default)]
pub(super) struct Lanes {
    /// Of tokens.
    link: u32,
    pub(super) list: Vec<Lane>,
    queue: VecDeque<Item>,
    flying: HashMap<u32, (u64, Item)>,
    next: u32,
    /// Why the link is lost.
    pub(super) lost: Option<String>,
    /// Received in READs that are over.
    pub(super) received: u64,
}

impl Lanes {
    pub(super) fn new(link: u32, list: Vec<Lane>) -> Self {
        Self {
            link,
            list,
            ..Self::default()
        }
    }

    pub(super) fn open(&self) -> usize {
        self.list.iter().filter(|lane| lane.is_open()).count()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.flying.is_empty()
    }

    /// More READs.
    pub(super) fn enqueue(&mut self, items: impl IntoIterator<Item = Item>, after: &mut After) {
        self.queue.extend(items);
        self.pump(after);
    }

    /// READs are over, however they ended.
    pub(super) fn ended(&mut self, ended: Vec<Ended>, after: &mut After) {
        for (number, result) in ended {
            let Some((lane, item)) = self.flying.remove(&number) else {
                continue;
            };
            let lane = self.list.iter_mut().find(|known| known.id == lane);
            if let Some(lane) = lane {
                lane.device.in_flight.fetch_sub(1, Ordering::Relaxed);
                lane.bytes = lane.bytes.saturating_sub(item.len);
                lane.reads = lane.reads.saturating_sub(1);
                if let Err(WorkError::Failed(status)) = result
                    && status != WorkStatus::Flushed
                {
                    let path = (lane.device.index, lane.remote);
                    let cause = cause(status);
                    lane.close(cause.clone());
                    self.close_path(path, &cause);
                }
            }
            match result {
                Ok(()) => {
                    self.received += item.len;
                    after.over.push((item.op, Ok(())));
                }
                Err(WorkError::Unsettled) => after.never.push(item.op),
                Err(error) => self.again(item, error, after),
            }
        }
        self.drop_drained(after);
        self.pump(after);
    }

    /// What one queue pair could not reach, no other on the same path will.
    fn close_path(&mut self, (device, remote): (usize, u32), cause: &Cause) {
        if matches!(cause, Cause::Path(_)) {
            let same = |lane: &&mut Lane| lane.device.index == device && lane.remote == remote;
            for lane in self.list.iter_mut().filter(same) {
                lane.close(cause.clone());
            }
        }
    }

    /// A READ that failed is done again, unless nobody wants it or it has been tried enough.
    fn again(&mut self, mut item: Item, error: WorkError, after: &mut After) {
        if item.op.is_cancelled() {
            return after.over.push((item.op, Ok(())));
        }
        if let WorkError::Failed(status) = error {
            item.attempts += u8::from(status != WorkStatus::Flushed);
            if status == WorkStatus::RemoteAccess && item.attempts < MAX_ATTEMPTS {
                return after.refused.push(item);
            }
        }
        match item.attempts < MAX_ATTEMPTS {
            true => self.queue.push_back(item),
            false => after.over.push((item.op, Err(error.to_string()))),
        }
    }

    /// Closes queue pairs, all that `which` says.
    pub(super) fn close(
        &mut self,
        cause: &Cause,
        which: impl Fn(&Lane) -> bool,
        after: &mut After,
    ) {
        for lane in self.list.iter_mut().filter(|lane| which(lane)) {
            lane.close(cause.clone());
        }
        self.drop_drained(after);
        self.pump(after);
    }

    /// Closes the queue pairs that still have READs of this read.
    pub(super) fn close_under(&mut self, op: &Arc<ReadOp>, after: &mut After) {
        let lanes: Vec<u64> = self
            .flying
            .values()
            .filter(|(_, item)| Arc::ptr_eq(&item.op, op))
            .map(|(lane, _)| *lane)
            .collect();
        self.close(&Cause::Ours, |lane| lanes.contains(&lane.id), after);
    }

    /// Takes READs that were not posted yet out of the queue. True where others are with a device.
    pub(super) fn withdraw(&mut self, op: &Arc<ReadOp>, after: &mut After) -> bool {
        let mut kept = VecDeque::with_capacity(self.queue.len());
        for item in self.queue.drain(..) {
            match Arc::ptr_eq(&item.op, op) {
                true => after.over.push((item.op, Ok(()))),
                false => kept.push_back(item),
            }
        }
        self.queue = kept;
        self.flying
            .values()
            .any(|(_, item)| Arc::ptr_eq(&item.op, op))
    }

    /// Nothing will complete any more: what waits ends now, what is with a device when it comes back.
    pub(super) fn lose(&mut self, why: &str, after: &mut After) {
        let why = self.lost.get_or_insert_with(|| why.to_owned()).clone();
        for item in self.queue.drain(..) {
            after.over.push((item.op, Err(why.clone())));
        }
        for lane in &mut self.list {
            lane.close(Cause::Path(why.clone()));
        }
        self.drop_drained(after);
        after.wake = true;
    }

    /// Queue pairs that a device did not drain by then. Dropping them ends their READs one way or the other.
    pub(super) fn overdue(&mut self, before: Instant) -> Vec<Lane> {
        let late = |lane: &mut Lane| lane.closed.as_ref().is_some_and(|(_, at)| *at < before);
        self.list.extract_if(.., late).collect()
    }

    /// Reads with READs that will never come back.
    pub(super) fn abandon(&mut self) -> Vec<Arc<ReadOp>> {
        let flying = self.flying.drain();
        flying.map(|(_, (_, item))| item.op).collect()
    }

    fn drop_drained(&mut self, after: &mut After) {
        let drained = |lane: &mut Lane| !lane.is_open() && lane.reads == 0;
        let mut path = None;
        for lane in self.list.extract_if(.., drained) {
            if let Some((Cause::Path(why), _)) = &lane.closed {
                path = Some(why.clone());
            }
            after.gone.push(lane);
            after.wake = true;
        }
        // With another queue pair, or one that only a cancel closed, there is a way yet.
        if let Some(why) = path
            && self.lost.is_none()
            && self
                .list
                .iter()
                .all(|lane| matches!(&lane.closed, Some((Cause::Path(_), _))))
        {
            self.lose(&why, after);
        }
    }

    /// Hands READs to queue pairs while there is room.
    fn pump(&mut self, after: &mut After) {
        if let Some(why) = self.lost.clone() {
            for item in self.queue.drain(..) {
                after.over.push((item.op, Err(why.clone())));
            }
            return;
        }
        while let Some(item) = self.queue.pop_front() {
            if item.op.is_cancelled() {
                after.over.push((item.op, Ok(())));
                continue;
            }
            let fitting = self.list.iter_mut().filter(|l| l.could_carry(&item));
            let best = fitting
                .filter(|lane| lane.has_room(&item))
                .min_by_key(|lane| lane.rank(&item));
            if let Some(lane) = best {
                let number = self.next;
                self.next = self.next.wrapping_add(1);
                if chain(lane, self.link, number, &item) {
                    self.flying.insert(number, (lane.id, item));
                } else {
                    let why = "a span is outside what was registered".to_owned();
                    after.over.push((item.op, Err(why)));
                }
            } else if self.open() == 0 || self.list.iter().any(|l| l.could_carry(&item)) {
                // An open queue pair will come back to it; without one, it waits for the keeper.
                self.queue.push_front(item);
                break;
            } else {
                let why = "no device is left that knows the region".to_owned();
                after.over.push((item.op, Err(why)));
            }
        }
        self.ring(after);
    }

    /// One doorbell per queue pair.
    fn ring(&mut self, after: &mut After) {
        for lane in &mut self.list {
            if lane.chained.is_empty() {
                continue;
            }
            let chained = lane.chained.len();
            lane.device.in_flight.fetch_add(chained, Ordering::Relaxed);
            let posted = match lane.pair.post(&mut lane.chain) {
                Ok(posted) => posted,
                Err(error) => {
                    let posted = match &error {
                        kvferry_ibverbs::PostError::Refused { taken, .. } => *taken,
                        _ => 0,
                    };
                    after.wake = true;
                    lane.close(Cause::Path(error.to_string()));
                    posted
                }
            };
            lane.chain.clear();
            let back = lane.chained.split_off(posted.min(chained));
            lane.chained.clear();
            lane.device
                .in_flight
                .fetch_sub(back.len(), Ordering::Relaxed);
            for number in back.into_iter().rev() {
                if let Some((_, item)) = self.flying.remove(&number) {
                    lane.bytes = lane.bytes.saturating_sub(item.len);
                    lane.reads = lane.reads.saturating_sub(1);
                    self.queue.push_front(item);
                }
            }
        }
    }
}

/// Puts a READ into a queue pair's chain.
fn chain(lane: &mut Lane, link: u32, number: u32, item: &Item) -> bool {
    let Some(key) = item.region.key(lane.remote, item.part) else {
        return false;
    };
    let region = item
        .op
        .target()
        .and_then(|target| target.local.regions.get(lane.device.index)?.as_ref());
    let Some(region) = region else { return false };
    let pieces: Option<Vec<_>> = item.into.iter().map(|r| region.piece(r.clone())).collect();
    let Some(pieces) = pieces else { return false };
    let remote = RemotePiece {
        // Inside the region, whose end can be computed.
        address: key.address.wrapping_add(item.offset),
        rkey: key.rkey,
    };
    if lane
        .chain
        .push(token(link, number), remote, pieces)
        .is_err()
    {
        return false;
    }
    lane.chained.push(number);
    lane.bytes += item.len;
    lane.reads += 1;
    true
}

fn cause(status: WorkStatus) -> Cause {
    match status {
        WorkStatus::RemoteAccess => Cause::Key,
        other => Cause::Path(other.to_string()),
    }
}
