//! Links into the simulated network.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kvferry_proto::{NodeId, Part, RemoteSpan};
use tokio::{runtime::Handle, select, time::timeout};
use tokio_util::sync::CancellationToken;

use super::network::{SimChunk, SimFaults, SimNetwork, SimNode};
use crate::{
    region::Region,
    transport::{
        BoxFuture, CancelRead, Capabilities, ConnectError, Link, PeerTarget, PendingRead,
        ReadError, ReadRequest, Transport, TransportKind,
        operation::{Operation, Target, check_request},
        random::SplitMix64,
        spans::{SpanFault, SpanRefusal, WORD_BYTES, find_region},
    },
};

/// Until a stopped owner is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// As the transports that it stands for.
const CAPABILITIES: Capabilities = Capabilities {
    max_spans: 16_384,
    max_bytes: 256 << 20,
    window_bytes: 32 << 20,
    distance: 1,
    needs_checksum: false,
    span_bytes: 0,
};

/// A reader's way into a [`SimNetwork`]: peers are found by name.
#[derive(Clone)]
pub struct SimTransport {
    network: SimNetwork,
}

impl SimTransport {
    pub(super) fn new(network: SimNetwork) -> Self {
        Self { network }
    }

    async fn open(&self, peer: &PeerTarget) -> Result<SimLink, ConnectError> {
        let unreachable = |detail: &str| ConnectError::Unreachable {
            node: peer.node.clone(),
            address: "sim".to_owned(),
            detail: detail.to_owned(),
        };
        let node = self.network.node(&peer.node);
        let node = node.ok_or_else(|| unreachable("it is not running"))?;
        if self.network.happens(self.network.faults().unreachable_ppm) {
            return Err(unreachable("as chance would have it"));
        }
        let mut frozen = node.frozen.subscribe();
        let thawed = timeout(CONNECT_TIMEOUT, frozen.wait_for(|frozen| !*frozen));
        if thawed.await.is_err() {
            return Err(unreachable("no answer in time"));
        }
        let found = node.catalog.incarnation();
        if found != peer.incarnation {
            return Err(ConnectError::WrongIncarnation {
                node: peer.node.clone(),
                expected: peer.incarnation,
                found,
            });
        }
        Ok(SimLink {
            name: peer.node.clone(),
            lost: node.lost.child_token(),
            node,
            network: self.network.clone(),
            received: Arc::default(),
            runtime: Handle::current(),
        })
    }
}

impl Transport for SimTransport {
    fn kind(&self) -> TransportKind {
        TransportKind::Sim
    }

    fn reaches(&self, _peer: &PeerTarget) -> bool {
        true
    }

    fn connect<'a>(
        &'a self,
        peer: &'a PeerTarget,
    ) -> BoxFuture<'a, Result<Arc<dyn Link>, ConnectError>> {
        Box::pin(async move { Ok(Arc::new(self.open(peer).await?) as Arc<dyn Link>) })
    }
}

/// A link into a [`SimNetwork`].
pub struct SimLink {
    name: NodeId,
    node: SimNode,
    lost: CancellationToken,
    network: SimNetwork,
    received: Arc<AtomicU64>,
    runtime: Handle,
}

/// A cancel also ends the task of a read that stands still.
struct SimCancel {
    operation: Arc<Operation>,
    ended: CancellationToken,
}

impl CancelRead for SimCancel {
    fn cancel(&self) {
        self.operation.cancel();
        self.ended.cancel();
    }
}

impl Link for SimLink {
    fn kind(&self) -> TransportKind {
        TransportKind::Sim
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn read(&self, request: ReadRequest) -> PendingRead {
        let bytes = match check_request(&request, &CAPABILITIES) {
            Ok(bytes) => bytes,
            Err(error) => return PendingRead::settled(Err(error)),
        };
        let ended = CancellationToken::new();
        let cancelled = ended.clone();
        let (operation, pending) = Operation::with_cancel(request.local, bytes, |operation| {
            Arc::new(SimCancel { operation, ended })
        });
        let read = SimRead {
            name: self.name.clone(),
            node: self.node.clone(),
            network: self.network.clone(),
            random: self.network.fork(),
            faults: self.network.faults(),
            received: Arc::clone(&self.received),
            link_lost: self.lost.clone(),
            operation: Arc::clone(&operation),
            remote: request.remote,
        };
        let (lost, name) = (self.lost.clone(), self.name.clone());
        self.runtime.spawn(async move {
            let result = select! {
                biased;
                () = cancelled.cancelled() => return, // it has settled
                () = lost.cancelled() => Err(ReadError::LinkLost {
                    node: name,
                    detail: "the simulated link was cut".to_owned(),
                }),
                result = read.run() => result,
            };
            operation.settle(result);
        });
        pending
    }

    fn received_bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }
}

impl Drop for SimLink {
    fn drop(&mut self) {
        self.lost.cancel();
    }
}

struct SimRead {
    name: NodeId,
    node: SimNode,
    network: SimNetwork,
    random: SplitMix64,
    faults: SimFaults,
    received: Arc<AtomicU64>,
    link_lost: CancellationToken,
    operation: Arc<Operation>,
    remote: Vec<RemoteSpan>,
}

impl SimRead {
    async fn run(mut self) -> Result<(), ReadError> {
        let delay = self.delay();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        // Faults are drawn in a fixed order, so that one does not shift the others.
        let lost = self.random.happens(self.faults.lost_ppm);
        let hang = self.random.happens(self.faults.hang_ppm);
        let gone = self.random.happens(self.faults.gone_ppm);
        self.while_frozen().await;
        let regions = self.find(gone)?;
        let spans = std::mem::take(&mut self.remote);
        for (region, span) in regions.iter().zip(&spans) {
            self.transfer(region, span, lost, hang).await?;
        }
        Ok(())
    }

    fn delay(&mut self) -> Duration {
        let nanos = |d: &Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let (low, high) = (self.faults.delay.start(), self.faults.delay.end());
        Duration::from_nanos(self.random.within(nanos(low), nanos(high)))
    }

    async fn while_frozen(&self) {
        let mut frozen = self.node.frozen.subscribe();
        // The sender lives as long as the node, which this read holds.
        let _ = frozen.wait_for(|frozen| !*frozen).await;
    }

    fn find(&self, gone: bool) -> Result<Vec<Arc<Region>>, ReadError> {
        let fault = |fault: SpanFault| match fault {
            SpanFault::RegionGone(region) => ReadError::RegionGone {
                node: self.name.clone(),
                region: region.0,
            },
            SpanFault::Refused(refusal) => ReadError::SpanRefused {
                node: self.name.clone(),
                detail: refusal.as_str(),
            },
        };
        if gone && let Some(span) = self.remote.first() {
            return Err(fault(SpanFault::RegionGone(span.region)));
        }
        let find = |span| find_region(&self.node.catalog, None, span).map_err(fault);
        self.remote.iter().map(find).collect()
    }

    async fn transfer(
        &mut self,
        region: &Region,
        span: &RemoteSpan,
        lost: bool,
        hang: bool,
    ) -> Result<(), ReadError> {
        let mut rest = *span;
        while rest.len > 0 {
            self.while_frozen().await;
            let mut chunk = rest;
            chunk.len = self.chunk_bytes(&rest);
            if let Some(hook) = self.network.hook() {
                hook(&SimChunk {
                    node: self.name.clone(),
                    span: chunk,
                });
            }
            if !self.fetch(region, &chunk)? {
                return Ok(()); // given up
            }
            self.received.fetch_add(chunk.len, Ordering::Relaxed);
            if lost {
                self.link_lost.cancel();
            }
            if hang {
                std::future::pending::<()>().await;
            }
            rest.offset += chunk.len;
            rest.len -= chunk.len;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    fn chunk_bytes(&mut self, rest: &RemoteSpan) -> u64 {
        let (low, high) = (
            self.faults.chunk_bytes.start(),
            self.faults.chunk_bytes.end(),
        );
        let bytes = self.random.within(*low, *high);
        match rest.part {
            Part::Data => bytes.clamp(1, rest.len),
            // Whole words.
            Part::Generations => (bytes / WORD_BYTES * WORD_BYTES).clamp(WORD_BYTES, rest.len),
        }
    }

    /// False when nobody wants it any more.
    fn fetch(&self, region: &Region, chunk: &RemoteSpan) -> Result<bool, ReadError> {
        let mut guard = self.operation.target();
        match guard.as_mut() {
            Some(target) => copy(region, chunk, target).map(|()| true),
            None => Ok(false),
        }
    }
}

fn copy(region: &Region, chunk: &RemoteSpan, target: &mut Target) -> Result<(), ReadError> {
    let Some(memory) = region.memory.host() else {
        return Err(ReadError::Invalid("the simulated owner has no GPU"));
    };
    match chunk.part {
        Part::Data => target.fill(memory, chunk.offset..chunk.offset + chunk.len)?,
        Part::Generations => {
            for at in (chunk.offset..chunk.offset + chunk.len).step_by(WORD_BYTES as usize) {
                let word = u32::try_from(at / WORD_BYTES)
                    .ok()
                    .and_then(|slot| region.generations.load(slot))
                    .ok_or(ReadError::Invalid(SpanRefusal::OutOfRange.as_str()))?;
                target.fill_bytes(&word.to_le_bytes())?;
            }
        }
    }
    Ok(())
}
