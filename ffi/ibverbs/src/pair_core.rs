//! A queue pair in whatever state: how it is made, and how it is given up.

use std::{
    io,
    ptr::NonNull,
    sync::Arc,
    time::{Duration, Instant},
};

use kvferry_rdma_sys::{
    errno, ibv_qp, ibv_qp_attr, ibv_qp_attr_mask as mask, ibv_qp_cap, ibv_qp_init_attr, ibv_qp_type,
};

use crate::{CompletionQueue, PollError, ProtectionDomain, sender::Sender};

/// How long a queue pair that is dropped with work in flight waits for the device to give it up. Devices
/// do within milliseconds; one that does not is gone.
const DRAIN_BOUND: Duration = Duration::from_secs(1);

/// Between two looks while draining.
const DRAIN_STEP: Duration = Duration::from_micros(50);

/// How a queue pair is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PairOptions {
    /// READs that it holds at a time; cut to what the device can do.
    pub depth: u32,
    /// Local pieces of one READ; cut to what the device can do.
    pub max_pieces: u32,
    /// A completion for every n-th READ (and for the last of each post); at most the depth.
    pub signal_every: u32,
}

impl Default for PairOptions {
    fn default() -> Self {
        Self {
            depth: 128,
            max_pieces: 16,
            signal_every: 16,
        }
    }
}

/// A queue pair could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// Domain and completion queue are of two devices.
    #[error("protection domain and completion queue belong to two devices")]
    ForeignQueue,
    /// The completion queue could overrun.
    #[error(
        "the completion queue has room for {room} more completions, the queue pair needs {needed}"
    )]
    QueueFull {
        /// What is left.
        room: u32,
        /// What this one needs.
        needed: u32,
    },
    /// Anything else.
    #[error("{device}: cannot create a queue pair: {source}")]
    Failed {
        /// The device.
        device: String,
        /// What the driver said.
        source: io::Error,
    },
}

/// A queue pair could not be connected. It is gone; make another.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The two sides, or the options, do not fit.
    #[error("{device}: cannot connect: {problem}")]
    Mismatch {
        /// The device.
        device: String,
        /// What does not fit.
        problem: &'static str,
    },
    /// The driver refuses a step.
    #[error("{device}: cannot make the queue pair {step}: {source}")]
    Refused {
        /// The device.
        device: String,
        /// Which.
        step: &'static str,
        /// What the driver said.
        source: io::Error,
    },
}

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) sender: Arc<Sender>,
    raw: RawPair,
    pub(crate) qp_num: u32,
    pub(crate) depth: u32,
    pub(crate) max_pieces: u32,
    pub(crate) inline_bytes: u32,
    pub(crate) queue: Arc<CompletionQueue>,
    pub(crate) domain: Arc<ProtectionDomain>,
}

/// Alive as long as the [`Core`], which alone has the right to destroy it.
#[derive(Debug)]
struct RawPair(NonNull<ibv_qp>);

// SAFETY: libibverbs' calls on a queue pair may come from any thread.
unsafe impl Send for RawPair {}
// SAFETY: as above.
unsafe impl Sync for RawPair {}

impl Core {
    pub(crate) fn new(
        domain: &Arc<ProtectionDomain>,
        queue: &Arc<CompletionQueue>,
        options: PairOptions,
    ) -> Result<Self, PairError> {
        let context = domain.context();
        if !Arc::ptr_eq(context, queue.context()) {
            return Err(PairError::ForeignQueue);
        }
        let device = context.attributes();
        let depth = options.depth.clamp(1, device.max_queue_depth.max(1));
        let pieces = options.max_pieces.clamp(1, device.max_pieces.max(1));
        // Receives are never posted, but some drivers refuse a queue of none.
        let needed = depth + 1;
        if !queue.reserve(needed) {
            return Err(PairError::QueueFull {
                room: queue.room(),
                needed,
            });
        }
        let mut attributes = ibv_qp_init_attr {
            send_cq: queue.raw(),
            recv_cq: queue.raw(),
            qp_type: ibv_qp_type::IBV_QPT_RC,
            cap: ibv_qp_cap {
                max_send_wr: depth,
                max_recv_wr: 1,
                max_send_sge: pieces,
                max_recv_sge: 1,
                // READs carry no data; what the device grants anyway is written here.
                max_inline_data: 0,
            },
            ..Default::default()
        };
        // SAFETY: domain and queue are alive, and of one device.
        let raw = unsafe {
            context
                .verbs
                .ibv_create_qp(domain.raw(), &raw mut attributes)
        };
        let Some(raw) = NonNull::new(raw) else {
            let source = io::Error::last_os_error();
            queue.unreserve(needed);
            return Err(PairError::Failed {
                device: context.name().into(),
                source,
            });
        };
        // SAFETY: the queue pair was just made, and its number never changes.
        let qp_num = unsafe { raw.as_ref() }.qp_num;
        let sender = Sender::new(raw, qp_num, context, depth, pieces, options.signal_every);
        queue.attach(&sender);
        Ok(Self {
            sender,
            raw: RawPair(raw),
            qp_num,
            depth,
            max_pieces: pieces,
            inline_bytes: attributes.cap.max_inline_data,
            queue: Arc::clone(queue),
            domain: Arc::clone(domain),
        })
    }

    pub(crate) fn modify(
        &self,
        attributes: &mut ibv_qp_attr,
        what: mask,
        step: &'static str,
    ) -> Result<(), ConnectError> {
        let verbs = self.domain.context().verbs;
        // SAFETY: the queue pair is alive as long as `self`, and `attributes` is valid for the call.
        let result = unsafe { verbs.ibv_modify_qp(self.raw.0.as_ptr(), attributes, what.0 as i32) };
        errno(result).map_or(Ok(()), |source| {
            Err(ConnectError::Refused {
                device: self.device(),
                step,
                source,
            })
        })
    }

    pub(crate) fn device(&self) -> String {
        self.domain.context().name().into()
    }

    pub(crate) fn settle(&self, bound: Duration) -> Result<bool, PollError> {
        let deadline = Instant::now().checked_add(bound);
        while self.sender.in_flight() > 0 {
            self.queue.set_aside()?;
            if self.sender.in_flight() == 0 {
                break;
            }
            if deadline.is_some_and(|at| Instant::now() >= at) {
                return Ok(false);
            }
            std::thread::sleep(DRAIN_STEP);
        }
        Ok(true)
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if self.sender.in_flight() > 0 {
            self.sender.fail();
            // What is not settled by then is abandoned below, whatever the reason.
            let _ = self.settle(DRAIN_BOUND);
        }
        if self.sender.destroy().is_err() {
            // It lives on in the driver, and so must what it was made from.
            crate::leak::keep_for_ever(Arc::clone(&self.queue));
            crate::leak::keep_for_ever(Arc::clone(&self.domain));
        }
        self.queue.detach(&self.sender, self.depth + 1);
    }
}
