//! Reliable queue pairs. Their states are types, so that a READ can only be posted to one that is connected.

use std::{sync::Arc, time::Duration};

use kvferry_rdma_sys::{ibv_access_flags, ibv_qp_attr, ibv_qp_attr_mask as mask, ibv_qp_state};

use crate::{
    CompletionQueue, ConnectError, ConnectOptions, Endpoint, LocalAddress, PairError, PairOptions,
    PollError, PostError, ProtectionDomain, Psn, ReadChain, WorkStatus,
    endpoint::{Agreed, agree},
    pair_core::Core,
};

/// Made, and nothing else.
#[derive(Debug)]
pub struct Reset(());

/// Bound to a port; its [`Endpoint`] can be told to a peer.
#[derive(Debug)]
pub struct Init {
    address: LocalAddress,
    local: Endpoint,
}

/// Knows its peer, and lets it read.
#[derive(Debug)]
pub struct ReadyToReceive {
    address: LocalAddress,
    local: Endpoint,
    agreed: Agreed,
    options: ConnectOptions,
}

/// Connected: reads from its peer.
#[derive(Debug)]
pub struct ReadyToSend {
    address: LocalAddress,
    local: Endpoint,
    agreed: Agreed,
}

/// Closed. What was in flight comes out of the completion queue.
#[derive(Debug)]
pub struct Failed(());

/// A reliable queue pair in a state. Dropping one with READs in flight closes it and waits, at most a second, until
/// the device gave them up; what it does not give up is never freed ([`lost_bytes`](crate::lost_bytes)).
///
/// A READ cannot be posted before there is a connection:
///
/// ```compile_fail,E0599
/// # use kvferry_ibverbs::*;
/// fn too_early(pair: &QueuePair<Init>, chain: &mut ReadChain) {
///     pair.post(chain);
/// }
/// ```
///
/// nor after it was closed:
///
/// ```compile_fail,E0382
/// # use kvferry_ibverbs::*;
/// fn too_late(pair: QueuePair<ReadyToSend>, chain: &mut ReadChain) {
///     let closed = pair.close();
///     pair.post(chain);
/// }
/// ```
///
/// A state cannot be skipped:
///
/// ```compile_fail,E0599
/// # use kvferry_ibverbs::*;
/// fn skip(pair: QueuePair<Reset>, peer: &Endpoint) {
///     pair.connect(peer, &ConnectOptions::default());
/// }
/// ```
///
/// nor made up:
///
/// ```compile_fail,E0423
/// # use kvferry_ibverbs::*;
/// let state = Failed(());
/// ```
///
/// What peers may read is no place to read into, and the other way round:
///
/// ```compile_fail,E0599
/// # use kvferry_ibverbs::*;
/// # use std::sync::Arc;
/// fn overwrite(published: &Arc<ReadableRegion>) {
///     published.piece(0..8);
/// }
/// ```
///
/// ```compile_fail,E0599
/// # use kvferry_ibverbs::*;
/// # use std::sync::Arc;
/// fn publish(private: &Arc<LocalRegion>) -> RemoteKey {
///     private.key()
/// }
/// ```
///
/// Ordinary buffers cannot be registered, since somebody may hold a reference to their bytes:
///
/// ```compile_fail,E0277
/// # use kvferry_ibverbs::*;
/// # use std::sync::Arc;
/// fn register(domain: &Arc<ProtectionDomain>, buffer: Arc<Vec<u8>>) {
///     LocalRegion::register(domain, &buffer, 0..8, RegisterOptions::default());
/// }
/// ```
///
/// And this is how it goes:
///
/// ```no_run
/// # use kvferry_ibverbs::*;
/// # fn demo(pair: QueuePair<Init>, peer: Endpoint, from: RemotePiece, to: LocalPiece) -> Option<()> {
/// let pair = pair.connect(&peer, &ConnectOptions::default()).ok()?.ready().ok()?;
/// let mut chain = pair.chain();
/// chain.push(1, from, [to]).ok()?;
/// pair.post(&mut chain).ok()?;
/// let mut done = Vec::new();
/// pair.queue().poll(&mut done).ok()?;
/// # Some(())
/// # }
/// ```
#[derive(Debug)]
pub struct QueuePair<S> {
    core: Core,
    state: S,
}

impl QueuePair<Reset> {
    /// Makes one.
    ///
    /// # Errors
    /// [`PairError`].
    pub fn new(
        domain: &Arc<ProtectionDomain>,
        queue: &Arc<CompletionQueue>,
        options: PairOptions,
    ) -> Result<Self, PairError> {
        Ok(Self {
            core: Core::new(domain, queue, options)?,
            state: Reset(()),
        })
    }

    /// Binds it to a port.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn bind(self, address: &LocalAddress) -> Result<QueuePair<Init>, ConnectError> {
        let mut attributes = ibv_qp_attr {
            qp_state: ibv_qp_state::IBV_QPS_INIT,
            port_num: address.port,
            pkey_index: 0,
            // The peer may read, and nothing else.
            qp_access_flags: ibv_access_flags::IBV_ACCESS_REMOTE_READ.0,
            ..Default::default()
        };
        let what = mask::IBV_QP_STATE
            | mask::IBV_QP_PKEY_INDEX
            | mask::IBV_QP_PORT
            | mask::IBV_QP_ACCESS_FLAGS;
        self.core
            .modify(&mut attributes, what, "ready to connect")?;
        let device = self.core.domain.context().attributes();
        let local = Endpoint {
            qp_num: self.core.qp_num,
            psn: Psn::random(),
            gid: address.gid,
            lid: address.lid,
            link_layer: address.link_layer,
            mtu: address.mtu,
            responder_depth: device.responder_depth,
            initiator_depth: device.initiator_depth,
        };
        Ok(QueuePair {
            core: self.core,
            state: Init {
                address: *address,
                local,
            },
        })
    }
}

impl QueuePair<Init> {
    /// What the peer must be told.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.state.local
    }

    /// Names the peer, which can read from then on.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn connect(
        self,
        remote: &Endpoint,
        options: &ConnectOptions,
    ) -> Result<QueuePair<ReadyToReceive>, ConnectError> {
        let Init { address, local } = self.state;
        let agreed =
            agree(&address, &local, remote, options).map_err(|problem| ConnectError::Mismatch {
                device: self.core.device(),
                problem,
            })?;
        let mut attributes = ibv_qp_attr {
            qp_state: ibv_qp_state::IBV_QPS_RTR,
            path_mtu: agreed.mtu.raw(),
            dest_qp_num: remote.qp_num,
            rq_psn: remote.psn.get(),
            max_dest_rd_atomic: agreed.answers,
            // 0.64 ms; nothing here ever waits for a receive.
            min_rnr_timer: 12,
            ..Default::default()
        };
        let route = &mut attributes.ah_attr;
        route.port_num = address.port;
        route.dlid = remote.lid;
        route.sl = options.service_level;
        route.is_global = u8::from(agreed.global);
        route.grh.dgid.raw = remote.gid.0;
        route.grh.sgid_index = address.gid_index;
        route.grh.hop_limit = options.hop_limit;
        route.grh.traffic_class = options.traffic_class;
        let what = mask::IBV_QP_STATE
            | mask::IBV_QP_AV
            | mask::IBV_QP_PATH_MTU
            | mask::IBV_QP_DEST_QPN
            | mask::IBV_QP_RQ_PSN
            | mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | mask::IBV_QP_MIN_RNR_TIMER;
        self.core
            .modify(&mut attributes, what, "ready to receive")?;
        Ok(QueuePair {
            core: self.core,
            state: ReadyToReceive {
                address,
                local,
                agreed,
                options: *options,
            },
        })
    }
}

impl QueuePair<ReadyToReceive> {
    /// Makes it able to read, once the peer knows this side's endpoint.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn ready(self) -> Result<QueuePair<ReadyToSend>, ConnectError> {
        let ReadyToReceive {
            address,
            local,
            agreed,
            options,
        } = self.state;
        let mut attributes = ibv_qp_attr {
            qp_state: ibv_qp_state::IBV_QPS_RTS,
            sq_psn: local.psn.get(),
            timeout: options.timeout_exponent,
            retry_cnt: options.retries,
            rnr_retry: options.not_ready_retries,
            max_rd_atomic: agreed.asks,
            ..Default::default()
        };
        let what = mask::IBV_QP_STATE
            | mask::IBV_QP_TIMEOUT
            | mask::IBV_QP_RETRY_CNT
            | mask::IBV_QP_RNR_RETRY
            | mask::IBV_QP_SQ_PSN
            | mask::IBV_QP_MAX_QP_RD_ATOMIC;
        self.core.modify(&mut attributes, what, "ready to send")?;
        Ok(QueuePair {
            core: self.core,
            state: ReadyToSend {
                address,
                local,
                agreed,
            },
        })
    }
}

impl QueuePair<ReadyToSend> {
    /// An empty chain for READs to this queue pair.
    #[must_use]
    pub fn chain(&self) -> ReadChain {
        ReadChain::new(self.core.max_pieces, self.state.address.max_read_bytes)
    }

    /// Posts READs from the front of the chain, as many as there is room for: one doorbell for all. Gives how many;
    /// the others stay in the chain. 0 with a chain that is not empty: poll first. Each READ posted keeps the
    /// regions it writes to, and comes out of the completion queue once.
    ///
    /// # Errors
    /// [`PostError`].
    pub fn post(&self, chain: &mut ReadChain) -> Result<usize, PostError> {
        self.core.sender.post(&self.core.domain, chain)
    }

    /// READs that could be posted now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.core.sender.free()
    }

    /// What was agreed with the peer: READs that the two devices work on at a time.
    #[must_use]
    pub fn reads_at_a_time(&self) -> u8 {
        self.state.agreed.asks
    }

    /// Most bytes of one READ.
    #[must_use]
    pub fn max_read_bytes(&self) -> u32 {
        self.state.address.max_read_bytes
    }

    /// This side, as the peer was told.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.state.local
    }

    /// Closes the connection while others still hold it: later posts are refused, and what is in flight comes out
    /// of the completion queue as failed, soon. [`QueuePair::in_flight`] tells when all has.
    pub fn fail(&self) {
        self.core.sender.fail();
    }

    /// Is it closed, by an error or by [`QueuePair::fail`]?
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.core.sender.closed_by().is_some()
    }

    /// The error that closed it; None while it is open, and where this side closed it.
    #[must_use]
    pub fn closed_by(&self) -> Option<WorkStatus> {
        self.core.sender.closed_by().flatten()
    }
}

impl<S> QueuePair<S> {
    /// Its number, as completions name it.
    #[must_use]
    pub fn qp_num(&self) -> u32 {
        self.core.qp_num
    }

    /// READs posted and not yet polled as over: as long as there are any, their memory is the device's.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.core.sender.in_flight()
    }

    /// READs it holds at a time.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.core.depth
    }

    /// Local pieces of one READ, at most.
    #[must_use]
    pub fn max_pieces(&self) -> u32 {
        self.core.max_pieces
    }

    /// Bytes that a SEND or WRITE could carry within its work request, as the device granted without being asked for any.
    /// READs are all that is posted here, and they carry none.
    #[must_use]
    pub fn inline_bytes(&self) -> u32 {
        self.core.inline_bytes
    }

    /// Where its completions arrive.
    #[must_use]
    pub fn queue(&self) -> &Arc<CompletionQueue> {
        &self.core.queue
    }

    /// Closes it. What is in flight comes out of the completion queue as failed.
    #[must_use = "dropping it waits for what is in flight"]
    pub fn close(self) -> QueuePair<Failed> {
        self.core.sender.fail();
        QueuePair {
            core: self.core,
            state: Failed(()),
        }
    }
}

impl QueuePair<Failed> {
    /// Waits until nothing is in flight, at most `bound`. What comes out meanwhile, of this queue pair and of others, is
    /// given to the next who polls the completion queue. True when all is settled.
    ///
    /// # Errors
    /// [`PollError`].
    pub fn settle(&self, bound: Duration) -> Result<bool, PollError> {
        self.core.settle(bound)
    }
}
