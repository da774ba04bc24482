//! One queue pair of a link, and what is on it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use kvferry_ibverbs::{PostError, QueuePair, ReadChain, ReadyToSend, RemotePiece};

use super::{
    config::LANE_WINDOW_BYTES,
    device::Device,
    fault::{Cause, PathFault},
    op::Item,
    poller::token,
};

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

    /// Is it open, and do both its devices know what the READ touches?
    pub(super) fn could_carry(&self, item: &Item) -> bool {
        let target = item.op.target();
        let lands = target.and_then(|target| target.local.regions.get(self.device.index));
        self.is_open()
            && matches!(lands, Some(Some(_)))
            && item.region.key(self.remote, item.part).is_some()
    }

    pub(super) fn has_room(&self, item: &Item) -> bool {
        self.pair.room() > self.chained.len()
            && (self.bytes == 0 || self.bytes + item.len <= LANE_WINDOW_BYTES)
    }

    /// Lower is better: on the memory's own NUMA node, then with less to do.
    pub(super) fn rank(&self, item: &Item) -> (bool, u64) {
        let node = item.op.target().and_then(|target| target.local.numa_node);
        let far = match (node, self.device.context.numa_node()) {
            (Some(memory), Some(device)) => memory != device,
            _ => false,
        };
        (far, self.bytes)
    }

    /// Why it was closed.
    pub(super) fn cause(&self) -> Option<&Cause> {
        self.closed.as_ref().map(|(cause, _)| cause)
    }

    /// It was closed before then.
    pub(super) fn closed_before(&self, then: Instant) -> bool {
        self.closed.as_ref().is_some_and(|(_, at)| *at < then)
    }

    /// It is closed, and the device has nothing of it any more.
    pub(super) fn is_drained(&self) -> bool {
        !self.is_open() && self.reads == 0
    }

    /// Puts a READ into its chain. False where it cannot be done.
    pub(super) fn chain(&mut self, link: u32, number: u32, item: &Item) -> bool {
        let Some(key) = item.region.key(self.remote, item.part) else {
            return false;
        };
        let region = item
            .op
            .target()
            .and_then(|target| target.local.regions.get(self.device.index)?.as_ref());
        let Some(region) = region else { return false };
        let pieces: Option<Vec<_>> = item.into.iter().map(|r| region.piece(r.clone())).collect();
        let Some(pieces) = pieces else { return false };
        let remote = RemotePiece {
            // Inside the region, whose end can be computed.
            address: key.address.wrapping_add(item.offset),
            rkey: key.rkey,
        };
        let pushed = self.chain.push(token(link, number), remote, pieces).is_ok();
        if pushed {
            self.chained.push(number);
            self.bytes += item.len;
            self.reads += 1;
        }
        pushed
    }

    /// Posts what is chained, with one doorbell. Gives the numbers of the READs that were not taken; the lane is closed
    /// then.
    pub(super) fn ring(&mut self) -> Vec<u32> {
        if self.chained.is_empty() {
            return Vec::new();
        }
        let chained = self.chained.len();
        self.device.in_flight.fetch_add(chained, Ordering::Relaxed);
        let posted = match self.pair.post(&mut self.chain) {
            Ok(posted) => posted,
            Err(error) => {
                let posted = match &error {
                    PostError::Refused { taken, .. } => *taken,
                    _ => 0,
                };
                self.close(Cause::Path(PathFault::Post(Arc::new(error))));
                posted
            }
        };
        self.chain.clear();
        let back = self.chained.split_off(posted.min(chained));
        self.chained.clear();
        self.device
            .in_flight
            .fetch_sub(back.len(), Ordering::Relaxed);
        back
    }

    /// A READ that was posted is over.
    pub(super) fn over(&mut self, item: &Item) {
        self.device.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.took_back(item);
    }

    /// A READ is not on it any more.
    pub(super) fn took_back(&mut self, item: &Item) {
        self.bytes = self.bytes.saturating_sub(item.len);
        self.reads = self.reads.saturating_sub(1);
    }
}
