//! What cannot be mapped: memory of a GPU has no descriptor, so it is read over another transport, within the same
//! link.

use std::{collections::HashSet, sync::Arc};

use kvferry_proto::{RegionId, RemoteSpan};
use parking_lot::RwLock;
use tokio::{runtime::Handle, sync::OnceCell};

use crate::transport::{
    ConnectError, Link, PeerTarget, PendingRead, ReadError, ReadRequest, Transport, TransportKind,
    chained::chained,
};

/// One read: data, and the words that are fetched after it, where they come with it.
pub(super) struct Wanted {
    pub(super) data: ReadRequest,
    pub(super) words: Option<ReadRequest>,
}

impl Wanted {
    /// Sockets, the only way there is behind, read in order.
    fn of(self, link: &dyn Link) -> PendingRead {
        match self.words {
            Some(words) => link.read_with_words(self.data, words),
            None => link.read(self.data),
        }
    }
}

/// The way behind a link over mapped memory.
pub(super) struct Behind {
    peer: PeerTarget,
    transport: Option<Arc<dyn Transport>>,
    link: OnceCell<Arc<dyn Link>>,
    /// Regions that the owner does not hand out; as few as it has.
    regions: RwLock<HashSet<RegionId>>,
}

impl Behind {
    pub(super) fn new(peer: &PeerTarget, transport: Option<Arc<dyn Transport>>) -> Arc<Self> {
        Arc::new(Self {
            peer: peer.clone(),
            transport,
            link: OnceCell::new(),
            regions: RwLock::default(),
        })
    }

    /// The owner does not hand this one out.
    pub(super) fn learn(&self, region: RegionId) {
        self.regions.write().insert(region);
    }

    /// Must some of it be read this way? Then all of it is.
    pub(super) fn takes(&self, remote: &[RemoteSpan]) -> bool {
        let regions = self.regions.read();
        !regions.is_empty() && remote.iter().any(|span| regions.contains(&span.region))
    }

    /// It does not come back by itself; the next link gets a new one.
    pub(super) fn is_lost(&self) -> bool {
        self.link.get().is_some_and(|link| link.is_lost())
    }

    pub(super) fn received_bytes(&self) -> u64 {
        self.link.get().map_or(0, |link| link.received_bytes())
    }

    pub(super) fn read(self: &Arc<Self>, wanted: Wanted, runtime: &Handle) -> PendingRead {
        if let Some(link) = self.link.get() {
            return wanted.of(&**link);
        }
        let behind = Arc::clone(self);
        let read = async move { Ok(wanted.of(&*behind.connect().await?)) };
        chained(runtime, read)
    }

    async fn connect(&self) -> Result<Arc<dyn Link>, ReadError> {
        let none = |error| ReadError::NoLink {
            why: "GPU memory cannot be mapped".to_owned(),
            error,
        };
        let Some(transport) = &self.transport else {
            return Err(none(ConnectError::NoPath {
                node: self.peer.node.clone(),
                transport: TransportKind::Shm.as_str(),
                detail: "nothing but shared memory may be used".to_owned(),
            }));
        };
        let open = || async {
            let link = transport.connect(&self.peer).await?;
            let kind = link.kind().as_str();
            tracing::info!(node = %self.peer.node, transport = kind, "GPU memory of a peer on this host is read over sockets");
            Ok::<_, ConnectError>(link)
        };
        let link = self.link.get_or_try_init(open).await;
        link.cloned().map_err(none)
    }
}
