//! A link's ways to its owner: lost, found again, closed.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::{task::spawn_blocking, time::sleep};

use super::{
    config::DRAIN_BOUND,
    fault::{Cause, Loss, PathFault},
    lane::Lane,
    link::Shared,
};

/// How often a link that ends looks whether its READs are over.
const DRAIN_POLL: Duration = Duration::from_millis(5);

impl Shared {
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
    pub(super) async fn end(self: Arc<Self>) {
        let begin = Instant::now();
        while !self.act(|lanes, _| lanes.is_idle()) && begin.elapsed() < DRAIN_BOUND * 2 {
            sleep(DRAIN_POLL).await;
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
        let cause = Cause::Path(PathFault::DeviceDown);
        self.act(|lanes, after| {
            lanes.close(&cause, |lane| lane.device.index == device, after);
        });
    }

    /// A queue pair of ours failed without a READ that says so.
    pub(super) fn pair_failed(&self, device: usize, qp_num: u32) {
        let cause = Cause::Path(PathFault::PairFailed);
        self.act(|lanes, after| {
            let failed = |lane: &Lane| lane.device.index == device && lane.pair.qp_num() == qp_num;
            lanes.close(&cause, failed, after);
        });
    }

    /// Which devices its queue pairs join, for messages to people: ours, and the number of the owner's.
    pub(super) fn lane_names(&self) -> String {
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

    pub(super) fn lose(&self, why: Loss) {
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
