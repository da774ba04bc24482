//! One live link per peer, over the best transport that reaches it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kvferry_observe::{ByLabel, ByLabels, Counter, Label, label};
use kvferry_proto::{Incarnation, NodeId};
use parking_lot::Mutex;

use super::{
    ConnectError, Link, PeerTarget, Transport, TransportKind, health::PeerHealth,
    random::SplitMix64,
};

/// How often idle links are dropped and suspects probed.
const UPKEEP: Duration = Duration::from_millis(500);
/// Most probes begun at once: a rack that went away must not become a storm.
const MAX_PROBES: usize = 16;
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

/// What has happened so far, for metrics.
#[derive(Debug, Default)]
pub struct LinkCounters {
    connects: AtomicU64,
    failures: AtomicU64,
    backed_off: AtomicU64,
    /// By the best transport that should have reached the peer, the one that did, and why.
    fallbacks: ByLabel<TransportKind, ByLabels<TransportKind, FallbackReason, Counter>>,
    evictions: AtomicU64,
    probes: AtomicU64,
}

label! {
    /// Why the best transport did not lead to a peer.
    pub enum FallbackReason("reason") {
        /// Nobody answered.
        Unreachable = "unreachable",
        /// The peer refused.
        Refused = "refused",
        /// It has no way to that peer after all.
        NoPath = "no_path",
        /// Another lifetime of the peer answered.
        Restarted = "restarted",
    }
}

impl From<&ConnectError> for FallbackReason {
    fn from(error: &ConnectError) -> Self {
        match error {
            ConnectError::Unreachable { .. } => Self::Unreachable,
            ConnectError::Refused { .. } => Self::Refused,
            ConnectError::NoPath { .. } => Self::NoPath,
            ConnectError::WrongIncarnation { .. } => Self::Restarted,
        }
    }
}

impl LinkCounters {
    /// Links opened over another transport than the best that should reach the peer.
    #[must_use]
    pub fn fallbacks(&self) -> u64 {
        let rows = self.fallbacks.iter();
        let counts = rows.flat_map(|(_, row)| row.iter().map(|(.., count)| count.get()));
        counts.sum()
    }

    /// The same by best transport, taken transport and reason; without those that cannot be or, off
    /// the usual order, never were.
    pub fn fallbacks_by_way(
        &self,
    ) -> impl Iterator<Item = (&'static str, &'static str, &'static str, u64)> {
        let rows = self.fallbacks.iter();
        rows.flat_map(|(from, row)| {
            row.iter().filter_map(move |(to, reason, count)| {
                let usual =
                    from < to && to != TransportKind::Sim && reason != FallbackReason::Restarted;
                let count = count.get();
                (usual || count > 0)
                    .then(|| (from.as_str(), to.as_str(), Label::as_str(reason), count))
            })
        })
    }

    fn fell_back(&self, from: TransportKind, to: TransportKind, reason: FallbackReason) {
        self.fallbacks.of(from).of(to, reason).inc();
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        impl LinkCounters {
            $($(#[$doc])*
            #[must_use]
            pub fn $name(&self) -> u64 {
                self.$name.load(Ordering::Relaxed)
            })*
        }
    };
}
counters! {
    /// Links opened.
    connects,
    /// Tries that opened none, over any transport.
    failures,
    /// Requests answered with the last error, without a try.
    backed_off,
    /// Links dropped for being idle, void or too many.
    evictions,
    /// Probes of suspects.
    probes,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Links to peers: connects at most once at a time to each, keeps what works, backs off from what does
/// not. Clones share it.
#[derive(Clone)]
pub struct Links(Arc<Shared>);

struct Shared {
    /// In order of preference.
    transports: Vec<Arc<dyn Transport>>,
    config: LinksConfig,
    peers: Mutex<HashMap<(NodeId, Incarnation), Peer>>,
    health: Mutex<PeerHealth>,
    random: Mutex<SplitMix64>,
    counters: Arc<LinkCounters>,
    upkeep_runs: AtomicBool,
}

struct Peer {
    link: Option<Arc<dyn Link>>,
    used: Instant,
    /// Held by the one who connects.
    gate: Arc<tokio::sync::Mutex<()>>,
    failure: Option<Failure>,
    /// What it was last reached by, so that a change is logged once.
    kind: Option<TransportKind>,
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

    /// A live link to that incarnation of the peer. Ends within the transports' connect bounds, at once
    /// while the peer is backed off from. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// [`ConnectError`] of the last transport tried.
    pub async fn link(&self, peer: &PeerTarget) -> Result<Arc<dyn Link>, ConnectError> {
        self.start_upkeep();
        let gate = match self.0.known(peer) {
            Known::Link(link) => return Ok(link),
            Known::Failed(error) => return Err(error),
            Known::Nothing(gate) => gate,
        };
        let _connecting = gate.lock().await;
        // Somebody else may have connected, or failed to, meanwhile.
        match self.0.known(peer) {
            Known::Link(link) => return Ok(link),
            Known::Failed(error) => return Err(error),
            Known::Nothing(_) => {}
        }
        let result = self.0.connect(peer).await;
        self.0.remember(peer, &result);
        result
    }

    /// A live link, if there is one now.
    #[must_use]
    pub fn existing(&self, node: &NodeId, incarnation: Incarnation) -> Option<Arc<dyn Link>> {
        let mut peers = self.0.peers.lock();
        let peer = peers.get_mut(&(node.clone(), incarnation))?;
        let link = peer.link.clone().filter(|link| !link.is_lost())?;
        peer.used = Instant::now();
        Some(link)
    }

    /// Drops links to lifetimes of a node before this one: what they said is void.
    pub fn void_before(&self, node: &NodeId, incarnation: Incarnation) {
        self.0.void_before(node, incarnation);
    }

    /// The peer did not answer in time. It stays usable, as a last resort; it is probed until it answers.
    pub fn suspect(&self, peer: &PeerTarget) {
        self.0.health.lock().suspect(Instant::now(), peer);
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
            tokio::spawn(upkeep(Arc::downgrade(&self.0)));
        }
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
    fn known(&self, peer: &PeerTarget) -> Known {
        let now = Instant::now();
        let mut peers = self.peers.lock();
        make_room(&mut peers, self.config.max_links * PEERS_PER_LINK);
        let entry = peers
            .entry((peer.node.clone(), peer.incarnation))
            .or_insert_with(|| Peer {
                link: None,
                used: now,
                gate: Arc::default(),
                failure: None,
                kind: None,
            });
        entry.used = now;
        match &entry.link {
            Some(link) if !link.is_lost() => return Known::Link(Arc::clone(link)),
            _ => entry.link = None,
        }
        match &entry.failure {
            Some(failure) if now < failure.retry_at => {
                count(&self.counters.backed_off);
                Known::Failed(failure.error.clone())
            }
            _ => Known::Nothing(Arc::clone(&entry.gate)),
        }
    }

    /// The best transport first, then the next best.
    async fn connect(&self, peer: &PeerTarget) -> Result<Arc<dyn Link>, ConnectError> {
        let mut last = None;
        let mut best = None;
        for transport in self.transports.iter().filter(|t| t.reaches(peer)) {
            match transport.connect(peer).await {
                Ok(link) => {
                    count(&self.counters.connects);
                    if let Some((from, reason)) = best {
                        self.counters.fell_back(from, link.kind(), reason);
                    }
                    self.note_path(peer, link.kind(), last.as_ref());
                    return Ok(link);
                }
                Err(error) => {
                    count(&self.counters.failures);
                    // Another transport would find the same incarnation there.
                    if matches!(error, ConnectError::WrongIncarnation { .. }) {
                        return Err(error);
                    }
                    best.get_or_insert((transport.kind(), FallbackReason::from(&error)));
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| ConnectError::NoPath {
            node: peer.node.clone(),
            transport: self
                .transports
                .first()
                .map_or("known", |t| t.kind().as_str()),
            detail: "none of its addresses can be used from here".to_owned(),
        }))
    }

    /// Logs how a peer is reached, once per change.
    fn note_path(&self, peer: &PeerTarget, kind: TransportKind, fallback: Option<&ConnectError>) {
        let mut peers = self.peers.lock();
        let key = (peer.node.clone(), peer.incarnation);
        let Some(entry) = peers.get_mut(&key).filter(|p| p.kind != Some(kind)) else {
            return;
        };
        entry.kind = Some(kind);
        let (node, transport) = (&peer.node, kind.as_str());
        match fallback {
            Some(why) => {
                tracing::warn!(%node, transport, "falling back to another transport: {why}");
            }
            None => tracing::debug!(%node, transport, "linked"),
        }
    }

    fn remember(&self, peer: &PeerTarget, result: &Result<Arc<dyn Link>, ConnectError>) {
        let now = Instant::now();
        let jitter = self.random.lock().within(50, 100) as u32;
        let mut peers = self.peers.lock();
        let mut evicted = None;
        if result.is_ok() {
            evicted = evict_for_one_more(&mut peers, self.config.max_links);
        }
        let full = peers.values().filter(|p| p.link.is_some()).count() >= self.config.max_links;
        if let Some(entry) = peers.get_mut(&(peer.node.clone(), peer.incarnation)) {
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
        match (error, before) {
            (ConnectError::Unreachable { .. }, None) => self.config.backoff_first,
            (ConnectError::Unreachable { .. }, Some(failure)) => {
                (failure.pause * 2).min(self.config.backoff_max)
            }
            // These do not mend by themselves soon.
            _ => self.config.backoff_max,
        }
    }

    fn void_before(&self, node: &NodeId, incarnation: Incarnation) {
        self.health.lock().clear_before(node, incarnation);
        let mut void = Vec::new();
        self.peers.lock().retain(|(n, i), peer| {
            let keep = n != node || *i >= incarnation;
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

    /// Drops links that nobody used for long, and forgets peers likewise.
    fn drop_idle(&self) {
        let (now, idle) = (Instant::now(), self.config.idle);
        let mut dropped = Vec::new();
        self.peers.lock().retain(|_, peer| {
            let in_use = peer.link.as_ref().is_some_and(|l| Arc::strong_count(l) > 1);
            let keep = in_use
                || Arc::strong_count(&peer.gate) > 1
                || now.saturating_duration_since(peer.used) < idle;
            if !keep && let Some(link) = peer.link.take() {
                dropped.push(link);
            }
            keep
        });
        for _ in dropped {
            count(&self.counters.evictions);
        }
    }

    /// A hello over the transport, at no cost to the peer; it clears a suspect when it is answered.
    async fn probe(&self, peer: &PeerTarget) {
        count(&self.counters.probes);
        match self.connect(peer).await {
            Ok(link) => {
                if self.health.lock().clear(&peer.node, peer.incarnation) {
                    tracing::info!(node = %peer.node, "a suspect answers again");
                }
                let mut peers = self.peers.lock();
                if let Some(entry) = peers.get_mut(&(peer.node.clone(), peer.incarnation)) {
                    entry.failure = None;
                    // A link that was kept replaces nothing; a lost one makes room for the probe's.
                    if entry.link.as_ref().is_some_and(|l| l.is_lost()) {
                        entry.link = Some(link);
                    }
                }
            }
            Err(ConnectError::WrongIncarnation { found, .. }) if found > peer.incarnation => {
                self.void_before(&peer.node, found);
            }
            Err(error) => tracing::debug!(node = %peer.node, %error, "a suspect is still silent"),
        }
    }
}

/// Forgets the peer that was not asked for longest and has no link, where there are too many.
fn make_room(peers: &mut HashMap<(NodeId, Incarnation), Peer>, most: usize) {
    if peers.len() < most {
        return;
    }
    let idle = |peer: &Peer| peer.link.is_none() && Arc::strong_count(&peer.gate) == 1;
    let oldest = peers
        .iter()
        .filter(|(_, peer)| idle(peer))
        .min_by_key(|(_, peer)| peer.used)
        .map(|(key, _)| key.clone());
    if let Some(key) = oldest {
        peers.remove(&key);
    }
}

/// Gives up the least recently used link that nobody uses, where there is no room for one more.
fn evict_for_one_more(
    peers: &mut HashMap<(NodeId, Incarnation), Peer>,
    most: usize,
) -> Option<Arc<dyn Link>> {
    if peers.values().filter(|p| p.link.is_some()).count() < most {
        return None;
    }
    peers
        .values_mut()
        .filter(|peer| {
            peer.link
                .as_ref()
                .is_some_and(|l| Arc::strong_count(l) == 1)
        })
        .min_by_key(|peer| peer.used)
        .and_then(|peer| peer.link.take())
}

/// Until the links are gone.
async fn upkeep(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        shared.drop_idle();
        let due = shared.health.lock().due(Instant::now(), MAX_PROBES);
        for peer in due {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move { shared.probe(&peer).await });
        }
    }
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;
