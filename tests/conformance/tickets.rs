//! An owner that lets nobody in without a ticket: the whole suite with one, and those who try without.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering},
    time::{Duration, Instant},
};

use kvferry_agent::{
    region::RegionCatalog,
    tickets::{Gate, Issued, NoTicket, RequireTickets, TicketOffice, TicketRequest, Wallet},
    transport::{
        BoxFuture, ConnectError, Link, PeerTarget, ReadError, Transport,
        tcp::{TcpLimits, TcpTransport},
    },
};
use kvferry_proto::{Incarnation, NodeId, Part, RegionId, RemoteSpan};
use kvferry_security::ticket::{
    CLOCK_DRIFT, Issuer, NONCE_BYTES, Nonce, PROOF_BYTES, PublicKey, Purpose, ReaderKey, Refusal,
    Scope, SigningKey, Ticket, UnixMillis,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::{
    keys::Keys,
    tcp::TcpWorld,
    world::{
        BEYOND_BUFFERS, PATIENCE, REGION, REGION_BYTES, Stalls, World, check_alive, contents, data,
        eventually, host_memory, incarnation, insert_in, local, pattern, peer, read, whole,
    },
};

const SEED: [u8; 32] = [1; 32];
/// A region that the readers' tickets do not name.
pub const SECRET: RegionId = RegionId(66);

/// What tickets say.
#[derive(Clone)]
pub struct Terms {
    owner: String,
    incarnation: u64,
    pub scopes: Vec<&'static str>,
    /// How long owners honour them, the drift of clocks included; past ones are negative.
    pub honoured_ms: i64,
    /// How many are given out.
    pub left: usize,
}

/// A coordinator, as far as tickets go.
struct Office {
    issuer: Issuer,
    terms: Mutex<Terms>,
    asked: AtomicUsize,
}

impl Office {
    fn issue(&self, reader: &str, key: PublicKey, terms: &Terms) -> Vec<u8> {
        let end = UnixMillis::now().0.cast_signed() + terms.honoured_ms;
        let expires = end.cast_unsigned() - CLOCK_DRIFT.as_millis() as u64;
        let scopes = terms.scopes.iter().map(|scope| Scope::new(scope).unwrap());
        let ticket = Ticket {
            reader: NodeId::new(reader).unwrap(),
            reader_key: key,
            owner: NodeId::new(&terms.owner).unwrap(),
            incarnation: Incarnation::new(terms.incarnation).unwrap(),
            scopes: scopes.collect(),
            expires: UnixMillis(expires),
        };
        let settled = Duration::from_secs(3600);
        self.issuer.issue(settled, &ticket).unwrap()
    }
}

impl TicketOffice for Office {
    fn issue(&self, request: TicketRequest) -> BoxFuture<'_, Result<Issued, NoTicket>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut terms = self.terms.lock();
        let answer = match terms.left {
            0 => Err(NoTicket::Unavailable {
                detail: "shut".to_owned(),
            }),
            left => {
                terms.left = left - 1;
                let reader = request.reader.as_str();
                Ok(Issued {
                    bytes: Self::issue(self, reader, request.reader_key, &terms),
                    ttl: Duration::from_millis(terms.honoured_ms.unsigned_abs()),
                })
            }
        };
        Box::pin(async move { answer })
    }
}

/// A coordinator, an owner's gate and a reader's wallet.
pub struct Parties {
    pub gate: Arc<Gate>,
    office: Arc<Office>,
    pub wallet: Arc<Wallet>,
}

impl Parties {
    pub fn new() -> Self {
        let parties = Self::strangers();
        parties.meet();
        parties
    }

    /// The owner has not heard from the coordinator yet.
    fn strangers() -> Self {
        let owner = peer(Default::default()).node;
        let gate = Gate::new(owner.clone(), incarnation(), RequireTickets::Auto);
        let office = Arc::new(Office {
            issuer: Issuer::new(SigningKey::from_seed(&SEED).unwrap()),
            terms: Mutex::new(Terms {
                owner: owner.to_string(),
                incarnation: incarnation().get(),
                scopes: vec!["test"],
                honoured_ms: 300_000,
                left: usize::MAX,
            }),
            asked: AtomicUsize::new(0),
        });
        let reader = NodeId::new("reader").unwrap();
        let wallet = Arc::new(Wallet::new(reader, office.clone()).unwrap());
        wallet.use_tickets(true);
        Self {
            gate: Arc::new(gate),
            office,
            wallet,
        }
    }

    /// The owner hears what tickets are signed with.
    fn meet(&self) {
        self.gate.heard(0, self.office.issuer.public());
    }

    pub fn change(&self, change: impl FnOnce(&mut Terms)) {
        change(&mut self.office.terms.lock());
    }

    /// For that reader, as the terms are now.
    pub fn ticket(&self, reader: &str, key: PublicKey) -> Vec<u8> {
        let terms = self.office.terms.lock().clone();
        self.office.issue(reader, key, &terms)
    }

    pub fn refused(&self, refusal: Refusal) -> u64 {
        self.gate.counters().refused.of(refusal).get()
    }
}

/// A region in another namespace than the others.
pub fn add_secret(catalog: &RegionCatalog) {
    let secret = insert_in("secret", catalog, SECRET, host_memory(1 << 20), 16);
    secret.memory.write_at(0, &[0x5e; 4096]).unwrap();
}

/// An owner that lets nobody in without a ticket; with `TLS` its data port speaks that only.
pub struct Guarded<const TLS: bool> {
    pub owner: TcpWorld,
    parties: Parties,
}

pub type TicketWorld = Guarded<false>;

impl<const TLS: bool> std::ops::Deref for Guarded<TLS> {
    type Target = Parties;
    fn deref(&self) -> &Parties {
        &self.parties
    }
}

impl<const TLS: bool> Guarded<TLS> {
    pub async fn with(limits: TcpLimits) -> Self {
        Self::of(Parties::new(), limits).await
    }

    async fn of(parties: Parties, limits: TcpLimits) -> Self {
        let keys = TLS.then(Keys::new);
        let owner = TcpWorld::of(Arc::clone(&parties.gate), keys, limits).await;
        add_secret(&owner.catalog);
        Self { owner, parties }
    }

    fn terms(&self) -> Terms {
        self.office.terms.lock().clone()
    }

    pub fn address(&self) -> SocketAddr {
        self.owner.direct.addresses.data.unwrap()
    }

    /// Why it is not let in.
    async fn refusal(&self) -> Refusal {
        match self.connect(&self.owner.direct).await.map(drop) {
            Err(error) if error.is_denial() => match error {
                ConnectError::TicketRefused { node, refusal } => {
                    assert_eq!(node.as_str(), "owner");
                    refusal
                }
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
}

impl<const TLS: bool> World for Guarded<TLS> {
    async fn start() -> Self {
        Self::with(TcpLimits::default()).await
    }
    fn catalog(&self) -> Arc<RegionCatalog> {
        self.owner.catalog()
    }
    fn transport(&self) -> Arc<dyn Transport> {
        let reader = self.owner.reader.clone();
        Arc::new(reader.with_tickets(Arc::clone(&self.wallet)))
    }
    fn peer(&self) -> PeerTarget {
        self.owner.peer()
    }
    fn kill(&self) {
        self.owner.kill();
    }
}

impl<const TLS: bool> Stalls for Guarded<TLS> {
    fn stall_after(&self, bytes: u64) {
        self.owner.stall_after(bytes);
    }
    fn resume(&self) {
        self.owner.resume();
    }
}

// ---- a stranger who speaks the protocol by hand ----------------------------------------------------

pub fn hello(ticket: &[u8]) -> Vec<u8> {
    let mut bytes = b"KVFd".to_vec();
    bytes.extend_from_slice(&1u16.to_le_bytes());
    bytes.extend_from_slice(&0u16.to_le_bytes());
    bytes.extend_from_slice(&incarnation().get().to_le_bytes());
    bytes.extend_from_slice(&(ticket.len() as u32).to_le_bytes());
    bytes.extend_from_slice(ticket);
    bytes
}

/// The status and the reason of the owner's next hello.
async fn answer(stream: &mut TcpStream) -> (u8, u8) {
    let mut hello = [0; 28];
    let read = timeout(PATIENCE, stream.read_exact(&mut hello)).await;
    read.unwrap().unwrap();
    (hello[6], hello[7])
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut byte = [0; 1];
    let read = timeout(PATIENCE, stream.read(&mut byte)).await.unwrap();
    !matches!(read, Ok(1))
}

pub const ACCEPTED: (u8, u8) = (0, 0);
pub const PROVE: (u8, u8) = (3, 0);

pub fn turned_away(refusal: Refusal) -> (u8, u8) {
    (2, 0x10 | refusal.code())
}

/// Shows a ticket; gives the nonce that the owner wants signed.
async fn shown(world: &TicketWorld, ticket: &[u8]) -> (TcpStream, Nonce) {
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    stream.write_all(&hello(ticket)).await.unwrap();
    assert_eq!(answer(&mut stream).await, PROVE);
    let mut nonce = [0; NONCE_BYTES];
    stream.read_exact(&mut nonce).await.unwrap();
    (stream, Nonce(nonce))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_in_without_a_ticket() {
    let world = TicketWorld::start().await;
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    // A request that comes with it is not even looked at.
    let mut bytes = hello(&[]);
    bytes.extend_from_slice(&[0; 64]);
    stream.write_all(&bytes).await.unwrap();
    assert_eq!(answer(&mut stream).await, turned_away(Refusal::Absent));
    assert!(is_closed(&mut stream).await);
    // A reader that knows of no tickets is told, too.
    let plain = TcpTransport::default();
    let refused = plain.connect(&world.owner.direct).await.map(drop);
    assert!(
        matches!(
            refused,
            Err(ConnectError::TicketRefused {
                refusal: Refusal::Absent,
                ..
            })
        ),
        "{refused:?}"
    );
    assert_eq!(world.gate.counters().admitted.get(), 0);
    check_alive(&world.link().await).await;
    assert_eq!(world.gate.counters().admitted.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_that_is_not_good_is_tried_once_more_and_named() {
    let world = TicketWorld::start().await;
    type Change = fn(&mut Terms);
    let cases: [(Refusal, Change); 4] = [
        (Refusal::Expired, |terms| terms.honoured_ms = -1),
        (Refusal::TooLong, |terms| terms.honoured_ms = 86_400_000),
        (Refusal::OtherOwner, |terms| terms.owner = "else".into()),
        (Refusal::OtherOwner, |terms| terms.incarnation = 41),
    ];
    let good = world.terms();
    for (why, change) in cases {
        world.change(|terms| {
            *terms = good.clone();
            change(terms);
        });
        let asked = world.office.asked.load(Ordering::Relaxed);
        assert_eq!(world.refusal().await, why);
        // The first one, and another.
        assert_eq!(world.office.asked.load(Ordering::Relaxed), asked + 2);
    }
    // Nothing of it is kept.
    world.change(|terms| *terms = good);
    check_alive(&world.link().await).await;
    // Signed by somebody else.
    let other = Issuer::new(SigningKey::from_seed(&[2; 32]).unwrap());
    world.gate.heard(0, other.public());
    assert_eq!(world.refusal().await, Refusal::UnknownKey);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_ticket_to_show_is_said_and_is_no_miss() {
    let world = TicketWorld::start().await;
    world.change(|terms| terms.left = 0);
    let error = world.connect(&world.owner.direct).await.map(drop);
    assert!(
        matches!(
            &error,
            Err(error @ ConnectError::NoTicket {
                why: NoTicket::Unavailable { .. },
                ..
            }) if !error.is_denial()
        ),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_ticket_opens_nothing() {
    let world = TicketWorld::start().await;
    let victim = ReaderKey::random().unwrap();
    let stolen = world
        .office
        .issue("victim", victim.public(), &world.terms());
    let thief = ReaderKey::random().unwrap();
    let (mut stream, nonce) = shown(&world, &stolen).await;
    let proof = thief.prove(Purpose::Data, &nonce, &stolen);
    stream.write_all(&proof).await.unwrap();
    assert_eq!(answer(&mut stream).await, turned_away(Refusal::BadProof));
    assert!(is_closed(&mut stream).await);

    // Played again: what the victim proved a moment ago.
    let (mut stream, nonce) = shown(&world, &stolen).await;
    let overheard = victim.prove(Purpose::Data, &nonce, &stolen);
    stream.write_all(&overheard).await.unwrap();
    assert_eq!(answer(&mut stream).await, ACCEPTED);
    let (mut stream, other) = shown(&world, &stolen).await;
    assert_ne!(nonce, other);
    stream.write_all(&overheard).await.unwrap();
    assert_eq!(answer(&mut stream).await, turned_away(Refusal::BadProof));
    // A proof for another door; zeros.
    for proof in [
        victim.prove(Purpose::Rdma, &other, &stolen),
        [0; PROOF_BYTES],
    ] {
        let (mut stream, _) = shown(&world, &stolen).await;
        stream.write_all(&proof).await.unwrap();
        assert_eq!(answer(&mut stream).await, turned_away(Refusal::BadProof));
    }
    assert_eq!(world.refused(Refusal::BadProof), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turned_bit_lets_nobody_in() {
    let world = TicketWorld::start().await;
    let key = ReaderKey::random().unwrap();
    let ticket = world.office.issue("reader", key.public(), &world.terms());
    for at in (0..ticket.len()).step_by(5) {
        let mut turned = ticket.clone();
        turned[at] ^= 1 << (at % 8);
        let mut stream = TcpStream::connect(world.address()).await.unwrap();
        stream.write_all(&hello(&turned)).await.unwrap();
        let (status, reason) = answer(&mut stream).await;
        assert_eq!((status, reason & 0xf0), (2, 0x10), "byte {at}");
        assert!(is_closed(&mut stream).await);
    }
    assert_eq!(world.gate.counters().admitted.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_opens_its_own_namespaces_only() {
    let world = TicketWorld::start().await;
    let own = world.link().await;
    let secret = |part, offset, len| RemoteSpan {
        region: SECRET,
        part,
        offset,
        len,
    };
    let far = 1 << 40;
    for spans in [
        vec![secret(Part::Data, 0, 1000)],
        vec![secret(Part::Generations, 0, 8)],
        // Not even how large it is.
        vec![secret(Part::Data, far, 1000)],
        vec![secret(Part::Generations, 3, 1)],
        // Behind what is allowed.
        vec![data(0..1000), secret(Part::Data, 0, 1000)],
    ] {
        let link = world.link().await;
        let bytes = spans.iter().map(|span| span.len).sum();
        let memory = local(bytes);
        let result = read(&link, spans, whole(&memory)).await;
        assert!(
            matches!(
                result,
                Err(ReadError::TicketRefused {
                    refusal: Refusal::OtherNamespace,
                    ..
                })
            ),
            "{result:?}"
        );
        assert!(contents(&memory, 0..bytes).iter().all(|byte| *byte == 0));
        assert!(link.is_lost(), "the next one begins with another ticket");
    }
    check_alive(&own).await;
    // The next ticket names more.
    world.change(|terms| terms.scopes = vec!["te*", "secret"]);
    let asked = world.office.asked.load(Ordering::Relaxed);
    let link = world.link().await;
    assert_eq!(world.office.asked.load(Ordering::Relaxed), asked + 1);
    let memory = local(1000);
    let span = secret(Part::Data, 0, 1000);
    read(&link, vec![span], whole(&memory)).await.unwrap();
    assert_eq!(contents(&memory, 0..1000), [0x5e; 1000]);
    check_alive(&link).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_ends_with_its_ticket() {
    let world = TicketWorld::start().await;
    // As long as the two handshakes may take wherever this runs.
    let honoured = Duration::from_secs(5);
    world.change(|terms| {
        terms.honoured_ms = honoured.as_millis() as i64;
        terms.left = 1;
    });
    let begun = Instant::now();
    let link = world.link().await;
    check_alive(&link).await;
    // Idle, or in the middle of an answer: both end.
    let busy = ReaderKey::random().unwrap();
    let ticket = world.office.issue("busy", busy.public(), &world.terms());
    let (mut stream, nonce) = shown(&world, &ticket).await;
    let proof = busy.prove(Purpose::Data, &nonce, &ticket);
    stream.write_all(&proof).await.unwrap();
    assert_eq!(answer(&mut stream).await, ACCEPTED);
    let mut request = 7u32.to_le_bytes().to_vec();
    request.extend_from_slice(&1u32.to_le_bytes());
    request.extend_from_slice(&REGION.0.to_le_bytes());
    request.extend_from_slice(&[0; 4]);
    request.extend_from_slice(&0u64.to_le_bytes());
    request.extend_from_slice(&REGION_BYTES.to_le_bytes());
    // None of it is taken.
    let requests = request.repeat(BEYOND_BUFFERS);
    stream.write_all(&requests).await.unwrap();
    eventually("ended", || world.owner.counters.open() == 0).await;
    assert!(begun.elapsed() > honoured / 2, "too early");
    // By their tickets, and by nothing else.
    assert_eq!(world.gate.counters().expired.get(), 2);
    eventually("noticed", || link.is_lost()).await;
    let lost = read(&link, vec![data(0..10)], whole(&local(10))).await;
    assert!(matches!(lost, Err(ReadError::LinkLost { .. })), "{lost:?}");
}

/// Reads over one link for longer than the ticket lasts that it began with.
pub async fn read_beyond_a_ticket<const TLS: bool>(world: &Guarded<TLS>) -> Arc<dyn Link> {
    // Renewed by the tick after half of it: the other half is for a machine that makes everybody wait.
    let honoured = Duration::from_secs(10);
    world.change(|terms| terms.honoured_ms = honoured.as_millis() as i64);
    let link = world.link().await;
    let begun = Instant::now();
    let mut at = 0;
    while begun.elapsed() < honoured + Duration::from_millis(500) {
        let memory = local(100_000);
        let range = at..at + 100_000;
        let spans = vec![data(range.clone())];
        read(&link, spans, whole(&memory)).await.unwrap();
        assert!(contents(&memory, 0..100_000) == pattern(range));
        at = (at + 99_991) % (4 << 20);
        // Others run beside this.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    link
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_is_renewed_under_a_long_pull_and_nothing_is_lost() {
    let world = TicketWorld::start().await;
    let link = read_beyond_a_ticket(&world).await;
    assert!(world.gate.counters().renewed.get() >= 1);
    assert_eq!(world.gate.counters().expired.get(), 0);
    assert_eq!(
        world.owner.counters.open(),
        world.owner.counters.accepted() as usize
    );
    check_alive(&link).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_came_before_tickets_were_needed_is_asked_for_one() {
    let parties = Parties::strangers();
    parties.gate.heard(0, []);
    let world = TicketWorld::of(parties, TcpLimits::default()).await;
    let plain = TcpTransport::default();
    let old = plain.connect(&world.owner.direct).await.unwrap();
    check_alive(&old).await;
    world.meet();
    let refused = read(&old, vec![data(0..10)], whole(&local(10))).await;
    assert!(
        matches!(refused, Err(ReadError::LinkLost { .. })),
        "{refused:?}"
    );
    check_alive(&world.link().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_has_not_heard_is_not_open() {
    let world = TicketWorld::of(Parties::strangers(), TcpLimits::default()).await;
    let refused = world.connect(&world.owner.direct).await.map(drop);
    // Worth trying again soon, unlike a refusal.
    assert!(
        matches!(refused, Err(ConnectError::Unreachable { .. })),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_of_one_source_keep_nobody_else_out() {
    let world = TicketWorld::with(TcpLimits {
        max_handshakes: 32,
        max_handshakes_per_source: 8,
        handshake_timeout: Duration::from_secs(20),
        ..TcpLimits::default()
    })
    .await;
    let key = ReaderKey::random().unwrap();
    let ticket = world.office.issue("reader", key.public(), &world.terms());
    // Some say nothing, some show a ticket and prove nothing.
    let mut silent = Vec::new();
    for n in 0..60 {
        let mut stream = TcpStream::connect(world.address()).await.unwrap();
        if n % 2 == 0 {
            let _ = stream.write_all(&hello(&ticket)).await;
        }
        silent.push(stream);
    }
    eventually("turned away", || world.owner.counters.refused() >= 52).await;
    assert!(world.owner.counters.open() <= 8);
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut stream = socket.connect(world.address()).await.unwrap();
    stream.write_all(&hello(&ticket)).await.unwrap();
    assert_eq!(answer(&mut stream).await, PROVE);
    let mut nonce = [0; NONCE_BYTES];
    stream.read_exact(&mut nonce).await.unwrap();
    let proof = key.prove(Purpose::Data, &Nonce(nonce), &ticket);
    stream.write_all(&proof).await.unwrap();
    assert_eq!(answer(&mut stream).await, ACCEPTED);
    // And when they have gone, that source is let in again.
    drop(silent);
    eventually("let go", || world.owner.counters.open() == 1).await;
    let direct: Arc<dyn Link> = world.connect(&world.owner.direct).await.unwrap();
    check_alive(&direct).await;
}
