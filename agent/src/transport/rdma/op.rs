//! One read under way: how much of it is left, and who waits for it.

use std::{
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use kvferry_memory::copy_ranges;
use kvferry_proto::{Part, RegionId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    config::ONE_LANE_BYTES,
    landing::Landing,
    left::Left,
    memory::{LocalMemory, Place},
};
use crate::transport::{CancelRead, Completion, PendingRead, ReadError};

/// A region of the owner, as one of its devices knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RemoteKeys {
    pub(super) device: u32,
    pub(super) data: kvferry_ibverbs::RemoteKey,
    pub(super) generations: kvferry_ibverbs::RemoteKey,
}

/// A region of the owner.
#[derive(Debug)]
pub(super) struct RemoteRegion {
    pub(super) id: RegionId,
    /// Empty: not to be read by RDMA.
    pub(super) keys: Vec<RemoteKeys>,
}

impl RemoteRegion {
    pub(super) fn key(&self, device: u32, part: Part) -> Option<kvferry_ibverbs::RemoteKey> {
        let keys = self.keys.iter().find(|keys| keys.device == device)?;
        Some(match part {
            Part::Data => keys.data,
            Part::Generations => keys.generations,
        })
    }
}

/// One READ that is to be done.
pub(super) struct Item {
    pub(super) op: Arc<ReadOp>,
    pub(super) region: Arc<RemoteRegion>,
    pub(super) part: Part,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Ranges of the registered memory.
    pub(super) into: Vec<Range<u64>>,
    pub(super) attempts: u8,
}

/// Where READs land, and from where small ones are copied on.
pub(super) struct Target {
    pub(super) local: Arc<LocalMemory>,
    pub(super) place: Option<Place>,
}

/// A read. It settles when nothing of it is left: no READ waits, none is with a device.
pub(super) struct ReadOp {
    landing: Landing,
    bytes: u64,
    target: OnceLock<Target>,
    /// The lane that a small one stays on; 0: none yet.
    lane: AtomicU64,
    /// Another transport did it: nothing is to be copied on.
    elsewhere: AtomicBool,
    /// Its READs, and one for whoever still prepares it.
    left: Left,
    cancelled: AtomicBool,
    told: Notify,
    end: Mutex<End>,
}

struct End {
    completion: Option<Completion>,
    error: Option<ReadError>,
}

/// How a cancel reaches the link.
pub(super) type OnCancel = Box<dyn Fn(&Arc<ReadOp>) + Send + Sync>;

struct Cancel {
    op: Arc<ReadOp>,
    then: OnCancel,
}

impl CancelRead for Cancel {
    fn cancel(&self) {
        if self.op.is_settled() || self.op.cancelled.swap(true, Ordering::AcqRel) {
            return;
        }
        self.op.told.notify_one();
        (self.then)(&self.op);
    }
}

impl ReadOp {
    /// One that is being prepared: [`ReadOp::over`] is owed once.
    pub(super) fn new(landing: Landing, bytes: u64, then: OnCancel) -> (Arc<Self>, PendingRead) {
        let op = Arc::new(Self {
            landing,
            bytes,
            target: OnceLock::new(),
            lane: AtomicU64::new(0),
            elsewhere: AtomicBool::new(false),
            left: Left::new(),
            cancelled: AtomicBool::new(false),
            told: Notify::new(),
            end: Mutex::new(End {
                completion: None,
                error: None,
            }),
        });
        let cancel = Arc::new(Cancel {
            op: Arc::clone(&op),
            then,
        });
        let (pending, completion) = PendingRead::new(cancel);
        op.end.lock().completion = Some(completion);
        (op, pending)
    }

    pub(super) fn landing(&self) -> &Landing {
        &self.landing
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    pub(super) fn is_settled(&self) -> bool {
        self.end.lock().completion.is_none()
    }

    /// Completes when it is cancelled. For the one who prepares it.
    pub(super) async fn cancelled(&self) {
        while !self.is_cancelled() {
            self.told.notified().await;
        }
    }

    /// Where its READs land from now on. Said once.
    pub(super) fn aim(&self, target: Target) {
        // A second time would be a fault of this module, and change nothing.
        let _ = self.target.set(target);
    }

    pub(super) fn target(&self) -> Option<&Target> {
        self.target.get()
    }

    /// The lane it must stay on, if there is one.
    pub(super) fn lane(&self) -> Option<u64> {
        Some(self.lane.load(Ordering::Relaxed)).filter(|lane| *lane != 0)
    }

    /// One of its READs goes to this lane.
    pub(super) fn goes_to(&self, lane: u64) {
        if self.bytes <= ONE_LANE_BYTES {
            self.lane.store(lane, Ordering::Relaxed);
        }
    }

    /// Another transport reads straight into its spans.
    pub(super) fn leave_to_another(&self) {
        self.elsewhere.store(true, Ordering::Release);
    }

    /// So many READs more.
    pub(super) fn add(&self, reads: usize) {
        self.left.add(reads);
    }

    /// One READ, or the preparation, is over. The first error stands.
    pub(super) fn over(&self, result: Result<(), ReadError>) {
        self.over_and_cut(result);
    }

    /// As [`ReadOp::over`]. True where the memory under it turned out to be another by now.
    pub(super) fn over_and_cut(&self, result: Result<(), ReadError>) -> bool {
        if let Err(error) = result {
            self.end.lock().error.get_or_insert(error);
        }
        if !self.left.is_last() {
            return false;
        }
        let mut end = self.end.lock();
        let Some(completion) = end.completion.take() else {
            return false;
        };
        let error = end.error.take();
        drop(end);
        let result = match error {
            _ if self.is_cancelled() => Err(ReadError::Cancelled),
            Some(error) => Err(error),
            None => self.deliver(),
        };
        let cut = matches!(result, Err(ReadError::Local(_)));
        match &self.landing {
            // Also after an error: what a device has written may still be on its way into the GPU.
            Landing::Gpu(gpu) if !self.elsewhere.load(Ordering::Acquire) => {
                gpu.settle(completion, result);
            }
            _ => completion.settle(result),
        }
        cut
    }

    /// A device never gave up one of its READs: nobody may ever be told that the memory is free.
    pub(super) fn never(&self) {
        let completion = self.end.lock().completion.take();
        // Dropping it would say that the memory is free.
        #[allow(clippy::disallowed_methods)]
        std::mem::forget(completion);
    }

    fn deliver(&self) -> Result<(), ReadError> {
        if self.elsewhere.load(Ordering::Acquire) {
            return Ok(());
        }
        let Landing::Host(spans) = &self.landing else {
            return Ok(());
        };
        let place = self.target.get().and_then(|target| target.place.as_ref());
        let scratch = place.map(|place| (place.memory(), place.range(self.bytes)));
        if let Some((memory, range)) = scratch {
            let ranges = spans.ranges.iter().filter(|r| !r.is_empty());
            copy_ranges(memory, [range], &spans.memory, ranges.cloned())?;
        }
        Ok(spans.memory.check_backed()?)
    }
}
