//! The reader's end: tickets, got before they are needed.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use kvferry_observe::{ByLabel, Counter};
use kvferry_proto::{Incarnation, NodeId};
use kvferry_security::ticket::{
    MAX_TICKET_BYTES, NoRandomness, Nonce, PROOF_BYTES, PublicKey, Purpose, ReaderKey, Refusal,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::transport::{BoxFuture, PeerTarget};

/// Owners whose tickets are kept: those of every link there may be, and as many that were left.
const MAX_OWNERS: usize = 2048;
/// A ticket with less than this share of its life left is not begun with: the owner could find it over.
const BEGIN_SHARE: u32 = 10;
/// A ticket is renewed when less than this share of its life is left, so that coordinators may be away for as long.
const RENEW_SHARE: u32 = 2;
/// After a renewal that failed: several tries in the life of the shortest ticket, and no storm.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// What a coordinator is asked for.
#[derive(Debug, Clone)]
pub struct TicketRequest {
    /// Who reads.
    pub reader: NodeId,
    /// The reader's key.
    pub reader_key: PublicKey,
    /// Whom from.
    pub owner: NodeId,
    /// Which lifetime.
    pub incarnation: Incarnation,
}

/// What it answers.
#[derive(Debug, Clone)]
pub struct Issued {
    /// As it goes to the owner.
    pub bytes: Vec<u8>,
    /// Good for so long.
    pub ttl: Duration,
}

/// Why there is no ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoTicket {
    /// The coordinator refuses. No use in asking again soon.
    #[error("the coordinator gives none: {message}")]
    Denied {
        /// As it put it.
        message: String,
    },
    /// No coordinator answers. Ask again later.
    #[error("none is to be had: {detail}")]
    Unavailable {
        /// What happened.
        detail: String,
    },
    /// What came is none.
    #[error("the coordinator gave {len} bytes for one")]
    Nonsense {
        /// How many.
        len: usize,
    },
}

/// Where tickets come from.
pub trait TicketOffice: Send + Sync {
    /// One for all that may be read at this owner. Ends by itself within seconds.
    fn issue(&self, request: TicketRequest) -> BoxFuture<'_, Result<Issued, NoTicket>>;
}

/// A ticket, as its reader has it.
#[derive(Debug, Clone)]
pub struct Held {
    /// As it goes to the owner.
    pub bytes: Arc<[u8]>,
    /// Later ones have greater numbers.
    pub number: u64,
    got: Instant,
    ttl: Duration,
}

impl Held {
    /// Is more than `1/share` of its life left?
    fn has_more_left_than(&self, share: u32) -> bool {
        self.got.elapsed() + self.ttl / share < self.ttl
    }
}

/// What happened so far.
#[derive(Debug, Default)]
pub struct WalletCounters {
    /// Tickets that coordinators gave.
    pub obtained: Counter,
    /// Requests for one that brought none.
    pub failed: Counter,
    /// Tickets that owners refused.
    pub refused: ByLabel<Refusal, Counter>,
}

type Owner = (NodeId, Incarnation);

struct Entry {
    held: Option<Held>,
    used: Instant,
    /// Not asked for before.
    retry_at: Instant,
    /// Held by the one who asks for it.
    asking: Arc<tokio::sync::Mutex<()>>,
}

/// A reader's tickets, one per owner, and the key they are made out to.
pub struct Wallet {
    reader: NodeId,
    key: ReaderKey,
    office: Arc<dyn TicketOffice>,
    /// A coordinator said that it signs tickets: then owners want them.
    in_use: AtomicBool,
    next_number: AtomicU64,
    owners: Mutex<HashMap<Owner, Entry>>,
    counters: WalletCounters,
}

impl Wallet {
    /// Empty, with a key of its own that dies with it. No tickets are asked for before [`Wallet::use_tickets`].
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn new(reader: NodeId, office: Arc<dyn TicketOffice>) -> Result<Self, NoRandomness> {
        Ok(Self {
            reader,
            key: ReaderKey::random()?,
            office,
            in_use: AtomicBool::new(false),
            next_number: AtomicU64::new(1),
            owners: Mutex::default(),
            counters: WalletCounters::default(),
        })
    }

    /// From now on owners are shown tickets, or no more.
    pub fn use_tickets(&self, yes: bool) {
        self.in_use.store(yes, Ordering::Relaxed);
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> &WalletCounters {
        &self.counters
    }

    /// That a ticket is ours.
    #[must_use]
    pub fn prove(&self, purpose: Purpose, nonce: &Nonce, ticket: &[u8]) -> [u8; PROOF_BYTES] {
        self.key.prove(purpose, nonce, ticket)
    }

    /// A ticket to begin with; None where none are in use.
    ///
    /// # Errors
    /// [`NoTicket`].
    pub async fn ticket(&self, peer: &PeerTarget) -> Result<Option<Held>, NoTicket> {
        if !self.in_use.load(Ordering::Relaxed) {
            return Ok(None);
        }
        self.at_least(peer, BEGIN_SHARE).await.map(Some)
    }

    /// Another one: the owner refused `refused`, or asked for one where we thought that none are in use.
    ///
    /// # Errors
    /// [`NoTicket`].
    pub async fn after_refusal(
        &self,
        peer: &PeerTarget,
        refused: Option<&Held>,
        why: Refusal,
    ) -> Result<Held, NoTicket> {
        self.refused(peer, refused.map_or(0, |held| held.number), why);
        self.at_least(peer, BEGIN_SHARE).await
    }

    /// One that lasts for a while, while there is a connection to the owner; None where none are in use, or where it
    /// was asked for a moment ago and there was none.
    pub async fn renewed(&self, peer: &PeerTarget) -> Option<Held> {
        if !self.in_use.load(Ordering::Relaxed) {
            return None;
        }
        let now = Instant::now();
        {
            let owners = self.owners.lock();
            let entry = owners.get(&owner(peer));
            if let Some(entry) = entry.filter(|entry| now < entry.retry_at) {
                return entry.held.clone();
            }
        }
        match self.at_least(peer, RENEW_SHARE).await {
            Ok(held) => Some(held),
            Err(why) => {
                tracing::debug!(node = %peer.node, "a ticket is not renewed: {why}");
                let mut owners = self.owners.lock();
                let entry = owners.get_mut(&owner(peer))?;
                entry.retry_at = now + RETRY_PAUSE;
                entry.held.clone()
            }
        }
    }

    /// An owner refused the ticket of that number: it is not shown again.
    pub(crate) fn refused(&self, peer: &PeerTarget, number: u64, why: Refusal) {
        self.counters.refused.of(why).inc();
        let mut owners = self.owners.lock();
        if let Some(entry) = owners.get_mut(&owner(peer)) {
            // A later one may be here already.
            entry.held.take_if(|held| held.number <= number);
        }
    }

    /// What is here, or what a coordinator gives; one call at a time for an owner.
    async fn at_least(&self, peer: &PeerTarget, share: u32) -> Result<Held, NoTicket> {
        let asking = match self.known(peer, share) {
            Ok(held) => return Ok(held),
            Err(asking) => asking,
        };
        let _one = asking.lock().await;
        // Somebody else may have got it meanwhile.
        if let Ok(held) = self.known(peer, share) {
            return Ok(held);
        }
        let request = TicketRequest {
            reader: self.reader.clone(),
            reader_key: self.key.public(),
            owner: peer.node.clone(),
            incarnation: peer.incarnation,
        };
        let issued = self
            .office
            .issue(request)
            .await
            .and_then(|issued| match issued.bytes.len() {
                1..=MAX_TICKET_BYTES => Ok(issued),
                len => Err(NoTicket::Nonsense { len }),
            });
        let issued = issued.inspect_err(|_| self.counters.failed.inc())?;
        self.counters.obtained.inc();
        let held = Held {
            bytes: issued.bytes.into(),
            number: self.next_number.fetch_add(1, Ordering::Relaxed),
            got: Instant::now(),
            ttl: issued.ttl,
        };
        if let Some(entry) = self.owners.lock().get_mut(&owner(peer)) {
            entry.held = Some(held.clone());
        }
        Ok(held)
    }

    /// What is here and has that much of its life left, or the right to ask for it.
    fn known(&self, peer: &PeerTarget, share: u32) -> Result<Held, Arc<tokio::sync::Mutex<()>>> {
        let now = Instant::now();
        let mut owners = self.owners.lock();
        if owners.len() >= MAX_OWNERS && !owners.contains_key(&owner(peer)) {
            make_room(&mut owners);
        }
        let entry = owners.entry(owner(peer)).or_insert_with(|| Entry {
            held: None,
            used: now,
            retry_at: now,
            asking: Arc::default(),
        });
        entry.used = now;
        match &entry.held {
            Some(held) if held.has_more_left_than(share) => Ok(held.clone()),
            _ => Err(Arc::clone(&entry.asking)),
        }
    }
}

fn owner(peer: &PeerTarget) -> Owner {
    (peer.node.clone(), peer.incarnation)
}

/// The one that was not used for longest goes.
fn make_room(owners: &mut HashMap<Owner, Entry>) {
    let oldest = owners.iter().min_by_key(|(_, entry)| entry.used);
    if let Some(oldest) = oldest.map(|(owner, _)| owner.clone()) {
        owners.remove(&oldest);
    }
}

impl fmt::Debug for Wallet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Wallet");
        debug.field("reader", &self.reader).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use kvferry_proto::NodeAddresses;

    use super::*;

    struct Office {
        asked: AtomicUsize,
        shut: AtomicBool,
    }

    impl TicketOffice for Office {
        fn issue(&self, request: TicketRequest) -> BoxFuture<'_, Result<Issued, NoTicket>> {
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let nth = self.asked.fetch_add(1, Ordering::Relaxed);
                if self.shut.load(Ordering::Relaxed) {
                    let detail = "shut".to_owned();
                    return Err(NoTicket::Unavailable { detail });
                }
                Ok(Issued {
                    bytes: format!("{} {nth}", request.owner).into_bytes(),
                    ttl: Duration::from_secs(100),
                })
            })
        }
    }

    fn wallet() -> (Wallet, Arc<Office>) {
        let office = Arc::new(Office {
            asked: AtomicUsize::new(0),
            shut: AtomicBool::new(false),
        });
        let wallet = Wallet::new(NodeId::new("reader").unwrap(), office.clone()).unwrap();
        wallet.use_tickets(true);
        (wallet, office)
    }

    fn peer(name: &str) -> PeerTarget {
        PeerTarget {
            node: NodeId::new(name).unwrap(),
            incarnation: Incarnation::new(42).unwrap(),
            addresses: NodeAddresses::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_is_asked_for_once_and_kept() {
        let (wallet, office) = wallet();
        let a = peer("a");
        let (one, two) = tokio::join!(wallet.ticket(&a), wallet.ticket(&a));
        assert_eq!(one.unwrap().unwrap().number, two.unwrap().unwrap().number);
        assert_eq!(office.asked.load(Ordering::Relaxed), 1);
        wallet.ticket(&peer("b")).await.unwrap();
        assert_eq!(office.asked.load(Ordering::Relaxed), 2);
        // What it does not last for, it is not begun with.
        tokio::time::advance(Duration::from_secs(91)).await;
        wallet.ticket(&a).await.unwrap();
        assert_eq!(office.asked.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_renewed_ahead_and_kept_while_nobody_answers() {
        let (wallet, office) = wallet();
        let a = peer("a");
        let first = wallet.ticket(&a).await.unwrap().unwrap();
        assert_eq!(wallet.renewed(&a).await.unwrap().number, first.number);
        tokio::time::advance(Duration::from_secs(51)).await;
        office.shut.store(true, Ordering::Relaxed);
        assert_eq!(wallet.renewed(&a).await.unwrap().number, first.number);
        let asked = office.asked.load(Ordering::Relaxed);
        wallet.renewed(&a).await;
        assert_eq!(
            office.asked.load(Ordering::Relaxed),
            asked,
            "not at once again"
        );
        office.shut.store(false, Ordering::Relaxed);
        tokio::time::advance(RETRY_PAUSE).await;
        assert!(wallet.renewed(&a).await.unwrap().number > first.number);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_one_is_not_shown_again() {
        let (wallet, _) = wallet();
        let a = peer("a");
        let first = wallet.ticket(&a).await.unwrap();
        let why = Refusal::UnknownKey;
        let second = wallet.after_refusal(&a, first.as_ref(), why).await.unwrap();
        assert!(second.number > first.as_ref().unwrap().number);
        // A refusal of the first that comes late does not take the second away.
        wallet.refused(&a, first.unwrap().number, why);
        let third = wallet.ticket(&a).await.unwrap().unwrap();
        assert_eq!(third.number, second.number);
    }

    #[tokio::test(start_paused = true)]
    async fn none_is_asked_for_where_none_is_in_use() {
        let (wallet, office) = wallet();
        wallet.use_tickets(false);
        assert!(wallet.ticket(&peer("a")).await.unwrap().is_none());
        assert!(wallet.renewed(&peer("a")).await.is_none());
        assert_eq!(office.asked.load(Ordering::Relaxed), 0);
        // But an owner that wants one gets one.
        let held = wallet
            .after_refusal(&peer("a"), None, Refusal::Absent)
            .await;
        assert!(held.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_bounded() {
        let (wallet, _) = wallet();
        for n in 0..MAX_OWNERS + 10 {
            let _ = wallet.known(&peer(&format!("n{n}")), BEGIN_SHARE);
        }
        assert_eq!(wallet.owners.lock().len(), MAX_OWNERS);
    }
}
