//! One live link per peer, over the best transport that reaches it.
//!
//! A transport that fails a peer, or whose link is lost, is left alone for a while (`cooling.rs`): the next link is over
//! the next best, at once. While the peer is in use the better ways are tried again (`upkeep.rs`).
//!
//! Where a transport needs checksums, a peer may have two links: one for pulls whose blocks all have one, and one for
//! the others, which that transport is not used for.

mod cooling;
mod counters;
mod table;
mod upkeep;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kvferry_proto::{ChecksumPolicy, Incarnation, NodeId};
use parking_lot::Mutex;

pub use self::counters::{FallbackReason, LinkCounters};
use self::{
    counters::count,
    table::{Key, Peer, Peers},
};
use super::{
    ConnectError, Link, PeerTarget, Transport, TransportKind, health::PeerHealth,
    random::SplitMix64,
};
use crate::tickets::NoTicket;

/// Peers remembered for every link that may be kept: the others are failures not to be repeated soon.
const PEERS_PER_LINK: usize = 4;

/// How links are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinksConfig {
    /// Links kept for later. Further ones are given out and not kept.
    pub max_links: usize,
    /// Unused for this long, a link is dropped.
    pub idle: Duration,
    /// After a first failure to connect, no further try for about this long.
    pub backoff_first: Duration,
    /// Doubled with every further failure, up to this.
    pub backoff_max: Duration,
}

impl Default for LinksConfig {
    fn default() -> Self {
        Self {
            // A few thousand nodes, of which a pull uses a handful.
            max_links: 1024,
            idle: Duration::from_secs(300),
            backoff_first: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
        }
    }
}

/// The runtime's time, so that tests need not wait.
fn clock() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Links to peers: connects at most once at a time to each, keeps what works, backs off from what does
/// not. Clones share it.
#[derive(Clone)]
pub struct Links(Arc<Shared>);

struct Shared {
    /// In order of preference.
    transports: Vec<Arc<dyn Transport>>,
    config: LinksConfig,
    peers: Mutex<Peers>,
    health: Mutex<PeerHealth>,
    random: Mutex<SplitMix64>,
    counters: Arc<LinkCounters>,
    upkeep_runs: AtomicBool,
}

struct Failure {
    error: ConnectError,
    retry_at: Instant,
    pause: Duration,
}

impl Links {
    /// Over these transports, best first; `forced` leaves only the ones of that kind.
    #[must_use]
    pub fn new(
        transports: Vec<Arc<dyn Transport>>,
        forced: Option<TransportKind>,
        config: LinksConfig,
    ) -> Self {
        let transports = transports
            .into_iter()
            .filter(|transport| forced.is_none_or(|kind| transport.kind() == kind))
            .collect();
        Self(Arc::new(Shared {
            transports,
            config,
            peers: Mutex::default(),
            health: Mutex::default(),
            random: Mutex::new(SplitMix64::from_system()),
            counters: Arc::default(),
            upkeep_runs: AtomicBool::new(false),
        }))
    }

    /// A live link to that incarnation of the peer, which suits blocks of this policy. Ends within the transports'
    /// connect bounds, at once while the peer is backed off from. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// [`ConnectError`]: the most telling of those of all transports tried.
    pub async fn link(
        &self,
        peer: &PeerTarget,
        policy: ChecksumPolicy,
    ) -> Result<Arc<dyn Link>, ConnectError> {
        self.start_upkeep();
        let key = self.0.key(peer, policy == ChecksumPolicy::Always);
        let gate = match self.0.known(&key, peer) {
            Known::Link(link) => return Ok(link),
            Known::Failed(error) => return Err(error),
            Known::Nothing(gate) => gate,
        };
        let _connecting = gate.lock().await;
        // Somebody else may have connected, or failed to, meanwhile.
        match self.0.known(&key, peer) {
            Known::Link(link) => return Ok(link),
            Known::Failed(error) => return Err(error),
            Known::Nothing(_) => {}
        }
        let result = self.0.connect(&key, peer).await;
        self.0.remember(&key, &result);
        result
    }

    /// A live link that suits blocks of this policy, if there is one now.
    #[must_use]
    pub fn existing(&self, peer: &PeerTarget, policy: ChecksumPolicy) -> Option<Arc<dyn Link>> {
        let key = self.0.key(peer, policy == ChecksumPolicy::Always);
        let mut peers = self.0.peers.lock();
        let peer = peers.get_mut(&key)?;
        let link = peer.link.clone().filter(|link| !link.is_lost())?;
        peer.used = clock();
        Some(link)
    }

    /// Drops links to lifetimes of a node before this one: what they said is void.
    pub fn void_before(&self, node: &NodeId, incarnation: Incarnation) {
        self.0.void_before(node, incarnation);
    }

    /// Bytes that came over this link were not those that were sealed. It is given up, and its transport left alone for
    /// this peer for a while.
    pub fn distrust(&self, peer: &PeerTarget, link: &Arc<dyn Link>) {
        let now = clock();
        count(&self.0.counters.distrusted);
        tracing::error!(
            node = %peer.node,
            transport = link.kind().as_str(),
            "wrong bytes came over this transport: it is left alone for now; look after its device"
        );
        let mut peers = self.0.peers.lock();
        for checksummed in [false, true] {
            if let Some(entry) = peers.get_mut(&self.0.key(peer, checksummed)) {
                entry.cooling.brought_wrong_bytes(now, link.kind());
                entry.link.take_if(|known| Arc::ptr_eq(known, link));
            }
        }
        drop(peers);
        link.distrust();
    }

    /// The peer did not answer in time. It stays usable, as a last resort; it is probed until it answers.
    pub fn suspect(&self, peer: &PeerTarget) {
        self.0.health.lock().suspect(clock(), peer);
    }

    /// Did it stop answering, and has not answered a probe since?
    #[must_use]
    pub fn is_suspect(&self, node: &NodeId, incarnation: Incarnation) -> bool {
        self.0.health.lock().is_suspect(node, incarnation)
    }

    /// How many suspects there are.
    #[must_use]
    pub fn suspects(&self) -> usize {
        self.0.health.lock().len()
    }

    /// How many links are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        let peers = self.0.peers.lock();
        peers.values().filter(|peer| peer.link.is_some()).count()
    }

    /// True when no link is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&self) -> Arc<LinkCounters> {
        Arc::clone(&self.0.counters)
    }

    fn start_upkeep(&self) {
        if !self.0.upkeep_runs.swap(true, Ordering::AcqRel) {
            tokio::spawn(upkeep::run(Arc::downgrade(&self.0)));
        }
    }
}

/// Does it mend by itself, so that it is worth trying again soon?
fn passes(error: &ConnectError) -> bool {
    match error {
        ConnectError::Unreachable { .. } => true,
        ConnectError::NoTicket { why, .. } => matches!(why, NoTicket::Unavailable { .. }),
        ConnectError::WrongIncarnation { .. }
        | ConnectError::Refused { .. }
        | ConnectError::UserRefused { .. }
        | ConnectError::TicketRefused { .. }
        | ConnectError::Insecure { .. }
        | ConnectError::NoPath { .. } => false,
    }
}

/// What is known about a peer without asking it.
enum Known {
    Link(Arc<dyn Link>),
    /// Not to be tried again yet.
    Failed(ConnectError),
    /// To be connected by the one who holds the gate.
    Nothing(Arc<tokio::sync::Mutex<()>>),
}

impl Shared {
    /// Where a peer's link for such reads is kept. Without transports that need checksums there is one for all.
    fn key(&self, peer: &PeerTarget, checksummed: bool) -> Key {
        Key {
            node: peer.node.clone(),
            incarnation: peer.incarnation,
            bare: !checksummed && self.transports.iter().any(|t| t.needs_checksum()),
        }
    }

    /// The transports that may be used for such reads, best first.
    fn ways<'a>(
        &'a self,
        key: &Key,
        peer: &'a PeerTarget,
    ) -> impl Iterator<Item = &'a Arc<dyn Transport>> + use<'a> {
        let bare = key.bare;
        let reaching = self.transports.iter().filter(move |t| t.reaches(peer));
        reaching.filter(move |t| !(bare && t.needs_checksum()))
    }

    fn known(&self, key: &Key, peer: &PeerTarget) -> Known {
        let now = clock();
        let mut peers = self.peers.lock();
        table::make_room(&mut peers, self.config.max_links * PEERS_PER_LINK);
        let entry = peers
            .entry(key.clone())
            .or_insert_with(|| Peer::new(now, peer));
        entry.used = now;
        // Its addresses may be newer.
        entry.target.clone_from(peer);
        match entry.link.take() {
            Some(link) if !link.is_lost() => {
                entry.link = Some(Arc::clone(&link));
                return Known::Link(link);
            }
            Some(lost) => entry.cooling.failed(now, lost.kind()),
            None => {}
        }
        match &entry.failure {
            Some(failure) if now < failure.retry_at => {
                count(&self.counters.backed_off);
                Known::Failed(failure.error.clone())
            }
            _ => Known::Nothing(Arc::clone(&entry.gate)),
        }
    }

    /// The best transport first, then the next best. What failed this peer a moment ago comes last.
    async fn connect(&self, key: &Key, peer: &PeerTarget) -> Result<Arc<dyn Link>, ConnectError> {
        let now = clock();
        let mut ways: Vec<_> = self.ways(key, peer).collect();
        let best = ways.first().map(|way| way.kind());
        {
            let peers = self.peers.lock();
            let cools = |kind| {
                peers
                    .get(key)
                    .is_some_and(|entry| entry.cooling.is_cooling(now, kind))
            };
            ways.sort_by_key(|way| cools(way.kind()));
        }
        let (mut last, mut why) = (None, FallbackReason::FailedRecently);
        for transport in ways {
            match transport.connect(peer).await {
                Ok(link) => {
                    count(&self.counters.connects);
                    let from = best.filter(|best| *best != link.kind());
                    if let Some(from) = from {
                        self.counters.fell_back(from, link.kind(), why);
                    }
                    self.note_path(key, link.kind(), from.is_some(), last.as_ref());
                    return Ok(link);
                }
                Err(error) => {
                    count(&self.counters.failures);
                    // Another transport would find the same incarnation there.
                    if matches!(error, ConnectError::WrongIncarnation { .. }) {
                        return Err(error);
                    }
                    if let Some(entry) = self.peers.lock().get_mut(key) {
                        entry.cooling.failed(clock(), transport.kind());
                    }
                    if best == Some(transport.kind()) {
                        why = FallbackReason::from(&error);
                    }
                    last = Some(match last {
                        Some(before) => ConnectError::or_more_telling(before, error),
                        None => error,
                    });
                }
            }
        }
        Err(last.unwrap_or_else(|| self.no_way(key, peer)))
    }

    /// Why no transport was even tried.
    fn no_way(&self, key: &Key, peer: &PeerTarget) -> ConnectError {
        let unfit = key.bare && self.transports.iter().any(|t| t.reaches(peer));
        ConnectError::NoPath {
            node: peer.node.clone(),
            transport: self
                .transports
                .first()
                .map_or("known", |t| t.kind().as_str()),
            detail: match unfit {
                true => {
                    "its device is software, whose bytes are only taken with checksums: give \
                    the namespace the checksum policy `always`, or let sockets be used too \
                    (`transport = \"auto\"`)"
                }
                false => "none of its addresses can be used from here",
            }
            .to_owned(),
        }
    }

    /// Logs how a peer is reached, once per change.
    fn note_path(&self, key: &Key, kind: TransportKind, fallen: bool, why: Option<&ConnectError>) {
        let mut peers = self.peers.lock();
        let Some(entry) = peers.get_mut(key).filter(|p| p.kind != Some(kind)) else {
            return;
        };
        let before = entry.kind.replace(kind);
        let (node, transport) = (&key.node, kind.as_str());
        match (fallen, why, before) {
            (true, Some(why), _) => {
                tracing::warn!(%node, transport, "falling back to another transport: {why}");
            }
            (true, None, Some(before)) => {
                let before = before.as_str();
                tracing::warn!(%node, transport, "falling back to another transport: {before} failed a moment ago");
            }
            (true, None, None) => {
                tracing::warn!(%node, transport, "falling back to another transport");
            }
            (false, ..) => tracing::debug!(%node, transport, "linked"),
        }
    }

    fn remember(&self, key: &Key, result: &Result<Arc<dyn Link>, ConnectError>) {
        let now = clock();
        let jitter = self.random.lock().within(50, 100) as u32;
        let mut peers = self.peers.lock();
        let mut evicted = None;
        if result.is_ok() {
            evicted = table::evict_for_one_more(&mut peers, self.config.max_links);
        }
        let full = peers.values().filter(|p| p.link.is_some()).count() >= self.config.max_links;
        if let Some(entry) = peers.get_mut(key) {
            entry.used = now;
            match result {
                Ok(link) => {
                    entry.failure = None;
                    entry.link = (!full).then(|| Arc::clone(link));
                }
                Err(error) => {
                    let pause = self.next_pause(entry.failure.as_ref(), error);
                    entry.failure = Some(Failure {
                        error: error.clone(),
                        // Jitter, so that a thousand readers do not come back together.
                        retry_at: now + pause * jitter / 100,
                        pause,
                    });
                }
            }
        }
        drop(peers);
        if evicted.is_some() {
            count(&self.counters.evictions);
        }
    }

    fn next_pause(&self, before: Option<&Failure>, error: &ConnectError) -> Duration {
        match before {
            _ if !passes(error) => self.config.backoff_max,
            None => self.config.backoff_first,
            Some(failure) => (failure.pause * 2).min(self.config.backoff_max),
        }
    }

    fn void_before(&self, node: &NodeId, incarnation: Incarnation) {
        self.health.lock().clear_before(node, incarnation);
        let mut void = Vec::new();
        self.peers.lock().retain(|key, peer| {
            let keep = key.node != *node || key.incarnation >= incarnation;
            if !keep && let Some(link) = peer.link.take() {
                void.push(link);
            }
            keep
        });
        // Dropped outside the lock: a link settles its reads when it goes.
        for _ in void {
            count(&self.counters.evictions);
        }
    }
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;
