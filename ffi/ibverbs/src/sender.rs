//! The sending half of a queue pair: what its completion queue and its owner both reach.

use std::{
    io,
    ptr::{NonNull, null_mut},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use kvferry_rdma_sys::{
    Verbs, errno, ibv_qp, ibv_qp_attr, ibv_qp_attr_mask, ibv_qp_init_attr, ibv_qp_state,
    ibv_send_flags, ibv_send_wr, ibv_wr_opcode, post_send,
};

use crate::{
    Context, Finished, ProtectionDomain, ReadChain, WorkError, WorkStatus, chain::Keep,
    flight::Flight, lock, queue::next_serial,
};

/// Bytes of registered regions that were never freed, since a device did not give them back.
static LOST_BYTES: AtomicU64 = AtomicU64::new(0);

/// Bytes of registered regions that this process will never free, because a device did not say that it is done with
/// them. More than zero is a reason to look at the device.
#[must_use]
pub fn lost_bytes() -> u64 {
    LOST_BYTES.load(Ordering::Relaxed)
}

/// READs were not posted.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The queue pair failed or was closed: connect another. What waits in the chain is still there.
    #[error("the connection is closed{}", why(status))]
    Broken {
        /// What closed it; None where this side did.
        status: Option<WorkStatus>,
    },
    /// A local piece belongs to another protection domain. Nothing was posted.
    #[error("a local piece is registered with another protection domain")]
    ForeignRegion,
    /// More pieces than this queue pair was made for. Nothing was posted.
    #[error("a READ has {pieces} local pieces, the queue pair takes {most}")]
    TooManyPieces {
        /// As asked for.
        pieces: usize,
        /// What fits.
        most: u32,
    },
    /// The device refused. The queue pair is closed; what it had taken comes out of the completion queue.
    #[error("the device took {taken} READs and refused the next: {source}")]
    Refused {
        /// How many it took.
        taken: usize,
        /// What the driver said.
        source: io::Error,
    },
}

fn why(status: &Option<WorkStatus>) -> String {
    status.map_or_else(String::new, |status| format!(": {status}"))
}

pub(crate) struct Sender {
    serial: u32,
    qp_num: u32,
    max_pieces: u32,
    /// What it calls a success is believed only while the queue pair is not in the error state.
    doubted: bool,
    verbs: &'static Verbs,
    state: Mutex<State>,
}

struct State {
    /// None once the queue pair is (about to be) destroyed.
    raw: Option<NonNull<ibv_qp>>,
    flight: Flight<Keep>,
    closed: Option<Closed>,
    /// Reused from post to post.
    requests: Vec<ibv_send_wr>,
}

#[derive(Clone, Copy)]
struct Closed(Option<WorkStatus>);

// SAFETY: the pointers in `requests` are only followed within `post`, under the lock; libibverbs' calls on
// a queue pair may come from any thread.
unsafe impl Send for State {}

impl Sender {
    pub(crate) fn new(
        raw: NonNull<ibv_qp>,
        qp_num: u32,
        context: &Context,
        depth: u32,
        max_pieces: u32,
        signal_every: u32,
    ) -> Arc<Self> {
        Arc::new(Self {
            serial: next_serial(),
            qp_num,
            max_pieces,
            doubted: context.is_software(),
            verbs: context.verbs,
            state: Mutex::new(State {
                raw: Some(raw),
                flight: Flight::new(depth, signal_every),
                closed: None,
                requests: Vec::with_capacity(depth as usize),
            }),
        })
    }

    pub(crate) fn serial(&self) -> u32 {
        self.serial
    }

    pub(crate) fn in_flight(&self) -> usize {
        lock(&self.state).flight.len()
    }

    pub(crate) fn free(&self) -> usize {
        lock(&self.state).flight.free()
    }

    pub(crate) fn closed_by(&self) -> Option<Option<WorkStatus>> {
        lock(&self.state).closed.map(|closed| closed.0)
    }

    /// Posts as many READs from the front of the chain as there is room for.
    pub(crate) fn post(
        &self,
        domain: &Arc<ProtectionDomain>,
        chain: &mut ReadChain,
    ) -> Result<usize, PostError> {
        let mut state = lock(&self.state);
        let State {
            raw,
            flight,
            closed,
            requests,
        } = &mut *state;
        let raw = match (closed, *raw) {
            (Some(Closed(status)), _) => return Err(PostError::Broken { status: *status }),
            (None, None) => return Err(PostError::Broken { status: None }),
            (None, Some(raw)) => raw,
        };
        let count = chain.works.len().min(flight.free());
        if count == 0 {
            return Ok(0);
        }
        for work in chain.works.iter().take(count) {
            if !work
                .keep
                .regions()
                .all(|region| Arc::ptr_eq(region.domain(), domain))
            {
                return Err(PostError::ForeignRegion);
            }
            if work.pieces > self.max_pieces as usize {
                return Err(PostError::TooManyPieces {
                    pieces: work.pieces,
                    most: self.max_pieces,
                });
            }
        }
        requests.clear();
        let pieces = chain.pieces.as_mut_ptr();
        for (at, work) in chain.works.drain(..count).enumerate() {
            let (number, signalled) = flight.push(work.token, work.keep, at + 1 == count);
            let mut request = ibv_send_wr {
                wr_id: u64::from(self.serial) << 32 | u64::from(number),
                sg_list: pieces.wrapping_add(work.first_piece),
                num_sge: work.pieces as i32,
                opcode: ibv_wr_opcode::IBV_WR_RDMA_READ,
                send_flags: if signalled {
                    ibv_send_flags::IBV_SEND_SIGNALED.0
                } else {
                    0
                },
                ..Default::default()
            };
            request.wr.rdma.remote_addr = work.remote.address;
            request.wr.rdma.rkey = work.remote.rkey;
            requests.push(request);
        }
        let first = requests.as_mut_ptr();
        for at in 1..count {
            // SAFETY: `requests` has `count` entries, and no reference to any of them is alive.
            unsafe { (*first.add(at - 1)).next = first.add(at) };
        }
        let mut bad = null_mut();
        // SAFETY: the queue pair is alive, as `raw` is taken away under this lock before it is
        // destroyed. The requests are linked within `requests` and point into `chain.pieces`, neither of which
        // moves before the call returns. Every piece lies in a region that the flight keeps registered
        // until the request's completion, or a later one of this queue pair, was polled.
        let result = unsafe { post_send(raw.as_ptr(), first, &mut bad) };
        chain.compact();
        let Err(source) = result else {
            return Ok(count);
        };
        // Where the driver does not say which one it refused, it may have taken all.
        let taken = (0..count)
            .find(|at| std::ptr::eq(first.wrapping_add(*at), bad))
            .unwrap_or(count);
        flight.retract(count - taken);
        // The last one taken may be unsignalled: only the error state makes it complete.
        self.close(&mut state, None);
        Err(PostError::Refused { taken, source })
    }

    /// A completion was polled. What it kept alive goes to `spent`, for the caller to drop without a
    /// lock: deregistering takes time, and runs the code of whoever owns the memory.
    pub(crate) fn finish(
        &self,
        number: u32,
        status: Option<WorkStatus>,
        spent: &mut Vec<Keep>,
        report: &mut impl FnMut(Finished),
    ) {
        let mut state = lock(&self.state);
        let status = status.or_else(|| self.doubt(&state));
        let known = state.flight.finish(number, status, |token, keep, result| {
            spent.push(keep);
            report(Finished {
                qp_num: self.qp_num,
                token,
                result,
            });
        });
        if known && let Some(status) = status {
            self.close(&mut state, Some(status));
        }
    }

    /// Why a success is not to be believed.
    ///
    /// Soft-RoCE ends a READ as a success, without its bytes, when an answer comes out of order: rxe_comp.c goes to
    /// COMPST_ERROR without setting the request's status, and the kernel warns of just that
    /// (`WARN_ON_ONCE(wqe->status == IB_WC_SUCCESS)`). By the time that one can ask, the queue pair is in the error state.
    fn doubt(&self, state: &State) -> Option<WorkStatus> {
        if !self.doubted {
            return None;
        }
        if state.closed.is_some() {
            return Some(WorkStatus::Flushed);
        }
        let (mut now, mut made) = (ibv_qp_attr::default(), ibv_qp_init_attr::default());
        let asked = ibv_qp_attr_mask::IBV_QP_STATE.0 as i32;
        // SAFETY: the queue pair is alive, as in `post`; the call fills in the two and keeps neither.
        let refused = unsafe {
            self.verbs
                .ibv_query_qp(state.raw?.as_ptr(), &raw mut now, asked, &raw mut made)
        };
        (refused != 0 || now.qp_state != ibv_qp_state::IBV_QPS_RTS)
            .then_some(WorkStatus::BadResponse)
    }

    /// Moves the queue pair to the error state: what is in flight will come out as failed.
    pub(crate) fn fail(&self) {
        self.close(&mut lock(&self.state), None);
    }

    fn close(&self, state: &mut State, status: Option<WorkStatus>) {
        if state.closed.is_some() {
            return;
        }
        state.closed = Some(Closed(status));
        let Some(raw) = state.raw else { return };
        let mut attributes = ibv_qp_attr {
            qp_state: ibv_qp_state::IBV_QPS_ERR,
            ..Default::default()
        };
        // SAFETY: the queue pair is alive, as in `post`. A device that refuses this is gone, and then the
        // drain's bound decides.
        unsafe {
            self.verbs.ibv_modify_qp(
                raw.as_ptr(),
                &raw mut attributes,
                ibv_qp_attr_mask::IBV_QP_STATE.0 as i32,
            )
        };
    }

    /// Destroys the queue pair.
    pub(crate) fn destroy(&self) -> io::Result<()> {
        let raw = lock(&self.state).raw.take();
        let Some(raw) = raw else { return Ok(()) };
        // SAFETY: it was taken out of the state, so this happens once and nobody uses it afterwards.
        errno(unsafe { self.verbs.ibv_destroy_qp(raw.as_ptr()) }).map_or(Ok(()), Err)
    }

    /// What is still in flight can never be freed: the device may write to it at any time.
    pub(crate) fn abandon(&self, mut report: impl FnMut(Finished)) {
        lock(&self.state).flight.abandon(|token, keep| {
            let bytes = keep.regions().map(|region| region.len()).sum();
            LOST_BYTES.fetch_add(bytes, Ordering::Relaxed);
            crate::leak::keep_for_ever(keep);
            report(Finished {
                qp_num: self.qp_num,
                token,
                result: Err(WorkError::Unsettled),
            });
        });
    }
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in flight", self.in_flight())
    }
}
