//! A link to an owner on the same host.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use kvferry_proto::{NodeId, RegionId, RemoteSpan};
use tokio::{
    runtime::Handle,
    select,
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval},
};

use super::{
    behind::{Behind, Wanted},
    client::{DescriptorClient, DescriptorError},
    copier::{Copier, Copy},
    mapped::{MapError, MappedRegion},
    watch::Watch,
};
use crate::{
    tickets::{Held, Wallet},
    transport::{
        Capabilities, ConnectError, Link, PeerTarget, PendingRead, ReadError, ReadRequest,
        Transport, TransportKind,
        chained::chained,
        operation::{Operation, check_request, check_with_words},
        spans::coalesce_remote,
    },
};

/// Copied on the caller's thread: less than handing it to another costs.
const INLINE_BYTES: u64 = 64 << 10;
/// Most regions one link maps; an owner has a handful.
const MAX_MAPPED: usize = 1024;
/// How often a link that was let in with a ticket asks whether there is a later one.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// Most reads that wait for a region to be mapped.
const MAX_MAP_REQUESTS: usize = 1024;

const CAPABILITIES: Capabilities = Capabilities {
    max_spans: 65_536,
    // A copy can be given up after every chunk, so this bounds nothing but arithmetic.
    max_bytes: 4 << 30,
    // Memory has no round trip: a few copies ahead keep the threads busy.
    window_bytes: 64 << 20,
    distance: 0,
    needs_checksum: false,
    span_bytes: 0,
};

/// A link over mapped memory.
#[derive(Clone)]
pub struct ShmLink {
    shared: Arc<Shared>,
    requests: mpsc::Sender<MapRequest>,
    copier: Copier,
    runtime: Handle,
    behind: Arc<Behind>,
}

struct Shared {
    peer: PeerTarget,
    regions: DashMap<RegionId, Arc<MappedRegion>>,
    lost: AtomicBool,
    received: Arc<AtomicU64>,
    owner: Arc<Watch>,
}

struct MapRequest {
    region: RegionId,
    answer: oneshot::Sender<Result<(), NotMapped>>,
}

/// Why a region is not mapped.
enum NotMapped {
    /// It is to be read another way.
    NotMappable,
    Failed(ReadError),
}

impl From<ReadError> for NotMapped {
    fn from(error: ReadError) -> Self {
        Self::Failed(error)
    }
}

impl ShmLink {
    /// Takes over a connection that has said hello. Must be called on a tokio runtime.
    pub(super) fn new(
        peer: &PeerTarget,
        client: DescriptorClient,
        owner: Watch,
        shown: Option<(Arc<Wallet>, Held)>,
        copier: Copier,
        behind: Option<Arc<dyn Transport>>,
    ) -> Self {
        let shared = Arc::new(Shared {
            peer: peer.clone(),
            regions: DashMap::new(),
            lost: AtomicBool::new(false),
            received: Arc::default(),
            owner: Arc::new(owner),
        });
        let (requests, incoming) = mpsc::channel(MAX_MAP_REQUESTS);
        tokio::spawn(keep_connection(
            Arc::clone(&shared),
            client,
            shown,
            incoming,
        ));
        Self {
            shared,
            requests,
            copier,
            runtime: Handle::current(),
            behind: Behind::new(peer, behind),
        }
    }

    /// Asks for the regions that are missing, then reads.
    async fn read_later(self, wanted: Wanted) -> Result<PendingRead, ReadError> {
        for span in &wanted.data.remote {
            if self.shared.regions.contains_key(&span.region) {
                continue;
            }
            match self.shared.ask_for(&self.requests, span.region).await {
                Ok(()) => {}
                // One of them is enough: the whole is read that way.
                Err(NotMapped::NotMappable) => {
                    self.behind.learn(span.region);
                    break;
                }
                Err(NotMapped::Failed(error)) => return Err(error),
            }
        }
        Ok(self.begin(wanted))
    }

    /// Of requests that were found in order.
    fn begin(&self, wanted: Wanted) -> PendingRead {
        if self.is_lost() {
            return PendingRead::settled(Err(self.shared.link_lost("its socket is closed")));
        }
        if self.behind.takes(&wanted.data.remote) {
            return self.behind.read(wanted, &self.runtime);
        }
        let mut remote = coalesce_remote(&wanted.data.remote);
        if let Some(words) = &wanted.words {
            remote.extend(coalesce_remote(&words.remote));
        }
        let parts = match self.shared.mapped(&remote) {
            Some(Ok(parts)) => parts,
            Some(Err(error)) => return PendingRead::settled(Err(error)),
            None => return chained(&self.runtime, self.clone().read_later(wanted)),
        };
        let bytes = remote.iter().map(|span| span.len).sum();
        let (operation, pending) = match wanted.words {
            Some(words) => Operation::in_order(wanted.data.local, words.local, bytes),
            None => Operation::new(wanted.data.local, bytes),
        };
        let copy = self.shared.copy(operation, parts);
        start(&self.copier, copy, &self.runtime);
        pending
    }
}

impl Link for ShmLink {
    fn kind(&self) -> TransportKind {
        TransportKind::Shm
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn read(&self, request: ReadRequest) -> PendingRead {
        match check_request(&request, &CAPABILITIES) {
            Ok(_) => self.begin(Wanted {
                data: request,
                words: None,
            }),
            Err(error) => PendingRead::settled(Err(error)),
        }
    }

    /// One thread copies the data and then loads the words.
    fn reads_in_order(&self) -> bool {
        true
    }

    fn read_with_words(&self, data: ReadRequest, words: ReadRequest) -> PendingRead {
        match check_with_words(&data, &words, &CAPABILITIES) {
            Ok(_) => self.begin(Wanted {
                data,
                words: Some(words),
            }),
            Err(error) => PendingRead::settled(Err(error)),
        }
    }

    fn received_bytes(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed) + self.behind.received_bytes()
    }

    fn is_lost(&self) -> bool {
        self.shared.lost.load(Ordering::Acquire) || self.behind.is_lost()
    }
}

/// Small copies here and now, large ones on the copier's threads.
fn start(copier: &Copier, copy: Copy, runtime: &Handle) {
    if copy.operation.bytes <= INLINE_BYTES {
        return copy.run();
    }
    if let Err(copy) = copier.submit(copy, runtime) {
        copy.operation.settle(Err(ReadError::LinkLost {
            node: copy.node.clone(),
            detail: "too many copies wait; this host does not keep up".to_owned(),
        }));
    }
}

impl Shared {
    fn link_lost(&self, detail: &str) -> ReadError {
        ReadError::LinkLost {
            node: self.peer.node.clone(),
            detail: detail.to_owned(),
        }
    }

    fn copy(&self, operation: Arc<Operation>, parts: Vec<(Arc<MappedRegion>, RemoteSpan)>) -> Copy {
        Copy {
            node: self.peer.node.clone(),
            operation,
            parts,
            received: Arc::clone(&self.received),
            owner: Arc::clone(&self.owner),
        }
    }

    /// The spans with their regions, checked; None where some region is not mapped yet.
    #[allow(clippy::type_complexity)]
    fn mapped(
        &self,
        remote: &[RemoteSpan],
    ) -> Option<Result<Vec<(Arc<MappedRegion>, RemoteSpan)>, ReadError>> {
        let mut parts: Vec<(Arc<MappedRegion>, RemoteSpan)> = Vec::with_capacity(remote.len());
        for span in remote {
            let region = match parts.last() {
                Some((region, last)) if last.region == span.region => Arc::clone(region),
                _ => Arc::clone(&*self.regions.get(&span.region)?),
            };
            if let Err(refusal) = region.check(span) {
                return Some(Err(ReadError::SpanRefused {
                    node: self.peer.node.clone(),
                    detail: refusal.as_str(),
                }));
            }
            parts.push((region, *span));
        }
        Some(Ok(parts))
    }

    /// Has a region mapped.
    async fn ask_for(
        &self,
        requests: &mpsc::Sender<MapRequest>,
        region: RegionId,
    ) -> Result<(), NotMapped> {
        let (answer, answered) = oneshot::channel();
        let request = MapRequest { region, answer };
        // Both ends fail only when the task that keeps the connection has ended.
        let sent = requests.send(request).await;
        let closed = || self.link_lost("its socket closed while a region was mapped");
        sent.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }

    /// Stays beyond the ticket it was let in with.
    async fn renew(&self, client: &DescriptorClient, shown: &mut Option<(Arc<Wallet>, Held)>) {
        let Some((wallet, held)) = shown else {
            return;
        };
        let Some(later) = wallet.renewed(&self.peer).await else {
            return;
        };
        if later.number <= held.number {
            return;
        }
        match client.renew(&later).await {
            Ok(()) => *held = later,
            Err(DescriptorError::TicketRefused { refusal }) => {
                tracing::warn!(node = %self.peer.node, "a renewed ticket is refused: {refusal}");
                wallet.refused(&self.peer, later.number, refusal);
            }
            // The connection is over, as the next look at it shows.
            Err(error) => {
                tracing::debug!(node = %self.peer.node, %error, "a ticket is not renewed");
            }
        }
    }

    async fn map(
        &self,
        client: &DescriptorClient,
        shown: Option<&(Arc<Wallet>, Held)>,
        id: RegionId,
    ) -> Result<(), NotMapped> {
        if self.regions.contains_key(&id) {
            return Ok(());
        }
        if self.regions.len() >= MAX_MAPPED {
            return Err(self
                .link_lost("it has mapped as many regions as it may")
                .into());
        }
        let opened = client.open_region(id, self.peer.incarnation, false).await;
        if matches!(opened, Err(DescriptorError::NotMappable { .. })) {
            return Err(NotMapped::NotMappable);
        }
        let descriptors = opened.map_err(|error| {
            // A new link begins with another ticket.
            if let (DescriptorError::TicketRefused { refusal }, Some((wallet, held))) =
                (&error, shown)
            {
                wallet.refused(&self.peer, held.number, *refusal);
            }
            if ends_link(&error) {
                self.lost.store(true, Ordering::Release);
            }
            not_opened(&self.peer.node, error)
        })?;
        let region = MappedRegion::new(descriptors).map_err(|error| {
            tracing::warn!(node = %self.peer.node, region = %id, %error, "cannot map a region");
            match error {
                MapError::Memory(_) => self.link_lost(&error.to_string()),
                MapError::Length { .. } | MapError::Generations { .. } => ReadError::SpanRefused {
                    node: self.peer.node.clone(),
                    detail: "its memory is not what the owner says it is",
                },
            }
        })?;
        self.regions.insert(id, Arc::new(region));
        Ok(())
    }
}

/// Is the connection, or the ticket it was opened with, of no use any more?
fn ends_link(error: &DescriptorError) -> bool {
    !matches!(
        error,
        DescriptorError::RegionGone { .. } | DescriptorError::NotAllowed | DescriptorError::Failed
    )
}

/// What the reader is told of a region whose descriptors the owner does not give.
fn not_opened(node: &NodeId, error: DescriptorError) -> ReadError {
    let node = node.clone();
    match error {
        DescriptorError::RegionGone { region } => ReadError::RegionGone {
            node,
            region: region.0,
        },
        DescriptorError::TicketRefused { refusal } => ReadError::TicketRefused { node, refusal },
        DescriptorError::NotAllowed => ReadError::NoLink {
            why: "a region is not handed out".to_owned(),
            error: ConnectError::UserRefused {
                node,
                transport: TransportKind::Shm.as_str(),
                detail: error.to_string(),
            },
        },
        // Where the owner has none to give now the region is as it was: nothing is stale.
        other => ReadError::LinkLost {
            node,
            detail: other.to_string(),
        },
    }
}

/// Maps regions one after another and notices when the owner hangs up, until the link is dropped.
async fn keep_connection(
    shared: Arc<Shared>,
    client: DescriptorClient,
    mut shown: Option<(Arc<Wallet>, Held)>,
    mut incoming: mpsc::Receiver<MapRequest>,
) {
    let mut tick = interval(RENEW_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !shared.lost.load(Ordering::Acquire) {
        select! {
            () = client.hung_up() => break,
            _ = tick.tick(), if shown.is_some() => shared.renew(&client, &mut shown).await,
            request = incoming.recv() => match request {
                Some(request) => {
                    let result = shared.map(&client, shown.as_ref(), request.region).await;
                    // A reader that went away does not want to know.
                    let _ = request.answer.send(result);
                }
                None => return,
            },
        }
    }
    shared.lost.store(true, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use std::io;

    use kvferry_security::ticket::Refusal;

    use super::*;

    #[test]
    fn whom_an_owner_refuses_a_region_is_not_told_that_it_is_stale_or_that_the_link_is_lost() {
        let node = NodeId::new("owner").unwrap();
        let told = |error| not_opened(&node, error);
        let refusal = Refusal::OtherNamespace;
        assert!(matches!(
            told(DescriptorError::NotAllowed),
            ReadError::NoLink { error, .. } if error.is_denial()
        ));
        assert!(matches!(
            told(DescriptorError::TicketRefused { refusal }),
            ReadError::TicketRefused { .. }
        ));
        // Nor is an owner without a descriptor to spare one without the region.
        for outage in [
            DescriptorError::Failed,
            DescriptorError::Lost(io::ErrorKind::TimedOut.into()),
        ] {
            assert!(matches!(told(outage), ReadError::LinkLost { .. }));
        }
        assert!(!ends_link(&DescriptorError::NotAllowed));
        assert!(ends_link(&DescriptorError::TicketRefused { refusal }));
    }
}
