//! An owner whose data port speaks TLS only: the whole suite with it, and those who try without, or in between.

use std::{
    io::{self, Write},
    net::SocketAddr,
    time::Duration,
};

use kvferry_agent::{
    tickets::Gate,
    transport::{
        ConnectError, NotSecure, PeerTarget, ReadError, ReadRequest, Transport,
        tcp::{PayloadRefusal, PayloadTls, TcpLimits, TcpTransport},
    },
};
use kvferry_security::{
    ticket::{Binding, NONCE_BYTES, Nonce, Purpose, ReaderKey, Refusal},
    tls::{DataSession, Dialer, Handshake, TlsRefusal},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{
    keys::Keys,
    tcp::TcpWorld,
    tickets::{ACCEPTED, Guarded, PROVE, hello, read_beyond_a_ticket, turned_away},
    world::{
        BEYOND_BUFFERS, PATIENCE, REGION_BYTES, Stalls, World, check_alive, contents, data,
        eventually, incarnation, local, pattern, settled, whole,
    },
};

/// With tickets, too.
pub type TlsWorld = Guarded<true>;

impl TlsWorld {
    fn keys(&self) -> &Keys {
        self.owner.keys.as_ref().unwrap()
    }

    fn handshakes(&self, outcome: Handshake) -> u64 {
        self.owner.counters.handshakes().of(outcome).get()
    }
}

/// Why there is no link, and how often that was counted.
async fn refused(tls: PayloadTls, peer: &PeerTarget, counted: PayloadRefusal) -> NotSecure {
    let counts = tls.refused();
    let transport = TcpTransport::default().with_tls(tls);
    let why = match transport.connect(peer).await.map(drop) {
        Err(ConnectError::Insecure { node, why }) => {
            assert_eq!(node.as_str(), "owner");
            why
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(counts.of(counted).get(), 1, "{why}");
    why
}

// ---- a reader who speaks the protocol by hand -------------------------------------------------------

struct Hand {
    socket: TcpStream,
    session: DataSession,
}

/// A socket, without waiting.
struct To<'a>(&'a TcpStream);

impl Write for To<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Hand {
    async fn begin(dialer: &Dialer, address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        let begun = dialer.begin_data("owner", "owner", socket).await;
        let (socket, session) = begun.unwrap();
        Self { socket, session }
    }

    async fn say(&mut self, mut bytes: &[u8]) {
        let sealed = self.session.seal(|room| {
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            bytes = later;
            Ok(now.len())
        });
        sealed.unwrap();
        while let Err(error) = self.session.flush(&mut To(&self.socket)) {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            self.socket.writable().await.unwrap();
        }
    }

    async fn hear<const N: usize>(&mut self) -> [u8; N] {
        let (mut heard, mut at) = ([0; N], 0);
        while at < N {
            let room = &mut heard[at..];
            let opened = self.session.open(
                |room| self.socket.try_read(room),
                |bytes| {
                    let len = bytes.len().min(room.len());
                    room[..len].copy_from_slice(&bytes[..len]);
                    len
                },
            );
            match opened {
                Ok(0) => panic!("the owner said goodbye"),
                Ok(len) => at += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let readable = timeout(PATIENCE, self.socket.readable()).await;
                    readable.unwrap().unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        }
        heard
    }

    /// The status and the reason of the owner's next hello.
    async fn answer(&mut self) -> (u8, u8) {
        let hello: [u8; 28] = self.hear().await;
        (hello[6], hello[7])
    }

    /// Shows a ticket; gives the nonce that the owner wants signed.
    async fn show(&mut self, ticket: &[u8]) -> Nonce {
        self.say(&hello(ticket)).await;
        assert_eq!(self.answer().await, PROVE);
        Nonce(self.hear::<NONCE_BYTES>().await)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_speaks_in_clear_is_told_and_hears_nothing_else() {
    let world = TlsWorld::start().await;
    let mut stream = TcpStream::connect(world.address()).await.unwrap();
    let mut bytes = hello(&[]);
    bytes.extend_from_slice(&[0; 64]);
    stream.write_all(&bytes).await.unwrap();
    let mut said = Vec::new();
    let heard = timeout(PATIENCE, stream.read_to_end(&mut said)).await;
    // Reset behind the words, as its request lies there unread.
    let _ = heard.unwrap();
    assert_eq!(said.len(), 28);
    assert_eq!(said[6..8], [2, 4]);
    // A reader that was not told, by a coordinator of an older release say.
    let mut peer = world.owner.direct.clone();
    peer.addresses.data_tls = false;
    let untold = TcpTransport::default().connect(&peer).await.map(drop);
    assert!(
        matches!(&untold, Err(ConnectError::Refused { detail, .. }) if detail.contains("TLS only")),
        "{untold:?}"
    );
    eventually("counted", || world.handshakes(Handshake::Clear) == 2).await;
    assert_eq!(world.gate.counters().admitted.get(), 0);
    check_alive(&world.link().await).await;
    assert_eq!(world.handshakes(Handshake::Done), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_read_in_clear_where_tls_is_wanted() {
    let clear = TcpWorld::start().await;
    let keys = Keys::new();
    let wanted = || PayloadTls::new(keys.dialer(Some("reader")), true);
    // It says that it speaks in clear: nobody even connects.
    let why = refused(wanted(), &clear.direct, PayloadRefusal::Clear).await;
    assert_eq!(why, NotSecure::Clear);
    assert_eq!(clear.counters.accepted(), 0);
    // It says that it speaks TLS, and does not: it takes our greeting for garbage.
    let mut peer = clear.direct.clone();
    peer.addresses.data_tls = true;
    let hung_up = TcpTransport::default().with_tls(wanted());
    let hung_up = hung_up.connect(&peer).await.map(drop);
    assert!(
        matches!(hung_up, Err(ConnectError::Unreachable { .. })),
        "{hung_up:?}"
    );
    assert_eq!(clear.counters.requests(), 0);
    // Somebody in between who would welcome us in clear, whatever we say.
    let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
    peer.addresses.data = Some(between.local_addr().unwrap());
    let welcome = tokio::spawn(async move {
        let mut heard = Vec::new();
        for _ in 0..2 {
            let (mut stream, _) = between.accept().await.unwrap();
            let mut hello = b"KVFd\x01\0\0\0".to_vec();
            hello.extend_from_slice(&incarnation().get().to_le_bytes());
            hello.extend_from_slice(&[1; 12]);
            stream.write_all(&hello).await.unwrap();
            // Until the reader has gone.
            let _ = stream.read_to_end(&mut heard).await;
        }
        heard
    });
    for required in [true, false] {
        let tls = PayloadTls::new(keys.dialer(Some("reader")), required);
        let why = refused(tls, &peer, PayloadRefusal::Downgraded).await;
        assert!(matches!(why, NotSecure::Downgraded { .. }), "{why:?}");
    }
    let heard = timeout(PATIENCE, welcome).await.unwrap().unwrap();
    let hello = heard.windows(4).any(|bytes| bytes == b"KVFd");
    assert!(!heard.is_empty() && !hello, "it was asked in clear");
    // Where it is not wanted, one reads as ever.
    let either = PayloadTls::new(keys.dialer(Some("reader")), false);
    let either = TcpTransport::default().with_tls(either);
    check_alive(&either.connect(&clear.direct).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_certificate_is_another_node() {
    let (ours, theirs) = (Keys::new(), Keys::new());
    ours.issue("other", "other");
    let reader = || PayloadTls::new(ours.dialer(Some("reader")), true);
    let limits = TcpLimits::default;
    // Of another node of the same CA; of another CA, for the right name.
    let other = TcpWorld::speaking(Some(ours.server("other")), Gate::open(), limits()).await;
    let why = refused(reader(), &other.direct, PayloadRefusal::Certificate).await;
    assert!(
        matches!(&why, NotSecure::Tls(TlsRefusal::WrongName { presented, .. }) if presented == "other"),
        "{why:?}"
    );
    let foreign = TcpWorld::speaking(Some(theirs.server("owner")), Gate::open(), limits()).await;
    let why = refused(reader(), &foreign.direct, PayloadRefusal::Certificate).await;
    assert!(
        matches!(why, NotSecure::Tls(TlsRefusal::UnknownIssuer { .. })),
        "{why:?}"
    );
    // Nobody is told anything before that: no hello, no ticket.
    for world in [&other, &foreign] {
        let done = world.counters.handshakes().of(Handshake::Done).get();
        assert_eq!((done, world.counters.requests()), (0, 0));
    }
    // And who has no CA knows nobody.
    let nobody = PayloadTls::default();
    let why = refused(nobody, &other.direct, PayloadRefusal::NoCa).await;
    assert!(
        matches!(why, NotSecure::Tls(TlsRefusal::NoCa { .. })),
        "{why:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_without_a_certificate_of_the_ca_is_turned_away() {
    let world = TcpWorld::by_tls(TcpLimits::default()).await;
    let (keys, theirs) = (world.keys.as_ref().unwrap(), Keys::new());
    let nobody = PayloadTls::new(keys.dialer(None), true);
    let why = refused(nobody, &world.direct, PayloadRefusal::OurCertificate).await;
    assert!(
        matches!(why, NotSecure::Tls(TlsRefusal::CertificateWanted { .. })),
        "{why:?}"
    );
    // A stranger who trusts our CA: what he shows is of his.
    let mut files = theirs.files(Some("reader"));
    files.ca = keys.files(None).ca;
    let stranger = Dialer::open(&kvferry_security::tls::Secured {
        files,
        ..Default::default()
    });
    let stranger = PayloadTls::new(stranger.unwrap(), true);
    let why = refused(stranger, &world.direct, PayloadRefusal::OurCertificate).await;
    assert!(
        matches!(why, NotSecure::Tls(TlsRefusal::CertificateRefused { .. })),
        "{why:?}"
    );
    let handshakes = world.counters.handshakes();
    eventually("counted", || handshakes.of(Handshake::Refused).get() == 2).await;
    assert_eq!(handshakes.of(Handshake::Done).get(), 0);
    check_alive(&world.direct_link().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_never_ends_is_cut_off() {
    let world = TlsWorld::with(TcpLimits {
        // Long enough for those that do end, wherever this runs.
        handshake_timeout: Duration::from_secs(6),
        max_handshakes_per_source: 8,
        ..TcpLimits::default()
    })
    .await;
    let link = world.link().await;
    // A record of a handshake that announces more than comes, and nothing at all.
    let begun = [22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let mut slow = Vec::new();
    for n in 0..20 {
        let mut stream = TcpStream::connect(world.address()).await.unwrap();
        if n % 2 == 0 {
            let _ = stream.write_all(&begun).await;
        }
        slow.push(stream);
    }
    eventually("turned away", || world.owner.counters.refused() >= 12).await;
    check_alive(&link).await;
    eventually("cut off", || world.handshakes(Handshake::Late) == 8).await;
    // One who does all but the last step: a session, and no hello.
    let mut silent = Hand::begin(&world.keys().dialer(Some("reader")), world.address()).await;
    let over = timeout(PATIENCE, async {
        loop {
            let opened = silent
                .session
                .open(|room| silent.socket.try_read(room), |_| 0);
            match opened {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    silent.socket.readable().await.unwrap();
                }
                _ => return,
            }
        }
    });
    over.await.expect("a session without a hello stays");
    check_alive(&link).await;
    check_alive(&world.link().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_a_session_ends_it_and_nothing_else() {
    let world = TlsWorld::start().await;
    let link = world.link().await;
    let dialer = world.keys().dialer(Some("reader"));
    let record = |len: u16| [&[23u8, 3, 3][..], &len.to_be_bytes()].concat();
    for garbage in [
        vec![0; 100],
        // A record of noise, one too long, an alert in clear, half a record.
        [record(64), vec![0x5a; 64]].concat(),
        record(u16::MAX),
        vec![21, 3, 3, 0, 2, 1, 0],
        [record(64), vec![0x5a; 30]].concat(),
    ] {
        let mut hand = Hand::begin(&dialer, world.address()).await;
        hand.socket.write_all(&garbage).await.unwrap();
        // It may be reset by then.
        let _ = hand.socket.shutdown().await;
        let mut rest = Vec::new();
        let closed = timeout(PATIENCE, hand.socket.read_to_end(&mut rest)).await;
        let _ = closed.expect("the owner keeps a session that sent garbage");
    }
    eventually("closed", || world.owner.counters.open() == 1).await;
    check_alive(&link).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proof_of_another_session_opens_none() {
    let world = TlsWorld::start().await;
    let dialer = world.keys().dialer(Some("reader"));
    let key = ReaderKey::random().unwrap();
    let ticket = world.ticket("reader", key.public());
    // Who speaks TLS to both sides, an owner that hands on what its reader proves say, has another session with each.
    let elsewhere = Hand::begin(&dialer, world.address()).await;
    let elsewhere: Binding = elsewhere.session.binding();
    type Proof<'a> = &'a dyn Fn(Nonce, Binding) -> [u8; 64];
    let by_tls = Purpose::DataByTls;
    let wrong: [Proof<'_>; 4] = [
        &|nonce, _| key.prove(by_tls, &nonce.within(&elsewhere), &ticket),
        &|nonce, _| key.prove(by_tls, &nonce, &ticket),
        // As it would be in clear.
        &|nonce, _| key.prove(Purpose::Data, &nonce, &ticket),
        &|nonce, own| key.prove(Purpose::Data, &nonce.within(&own), &ticket),
    ];
    for proof in wrong {
        let mut hand = Hand::begin(&dialer, world.address()).await;
        assert_ne!(hand.session.binding(), elsewhere);
        let nonce = hand.show(&ticket).await;
        let proof = proof(nonce, hand.session.binding());
        hand.say(&proof).await;
        assert_eq!(hand.answer().await, turned_away(Refusal::BadProof));
    }
    assert_eq!(world.refused(Refusal::BadProof), 4);
    assert_eq!(world.gate.counters().admitted.get(), 0);
    // Made in this one, it does; and what was overheard there opens no other.
    let mut hand = Hand::begin(&dialer, world.address()).await;
    let nonce = hand.show(&ticket).await;
    let proof = key.prove(by_tls, &nonce.within(&hand.session.binding()), &ticket);
    hand.say(&proof).await;
    assert_eq!(hand.answer().await, ACCEPTED);
    let mut again = Hand::begin(&dialer, world.address()).await;
    again.show(&ticket).await;
    again.say(&proof).await;
    assert_eq!(again.answer().await, turned_away(Refusal::BadProof));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_with_its_ticket_and_goes_on_with_another() {
    let world = TlsWorld::start().await;
    let link = read_beyond_a_ticket(&world).await;
    let gate = world.gate.counters();
    assert!(gate.renewed.get() >= 1);
    assert_eq!(gate.expired.get(), 0);
    // No more of them: the one that is there ends, in the middle of answers that nobody takes, and that no buffer holds.
    world.change(|terms| terms.left = 0);
    world.stall_after(1 << 20);
    let range = 0..REGION_BYTES;
    let reads: Vec<_> = (0..BEYOND_BUFFERS)
        .map(|_| {
            let memory = local(range.end);
            let pending = link.read(ReadRequest {
                remote: vec![data(range.clone())],
                local: whole(&memory),
            });
            (memory, pending)
        })
        .collect();
    // All of them: what still stands goes on when it can.
    eventually("ended", || world.owner.counters.open() == 0).await;
    assert!(gate.expired.get() >= 1);
    world.resume();
    let (expected, mut lost) = (pattern(range.clone()), 0);
    for (memory, pending) in reads {
        match settled(pending).await {
            // The owner was done with it: all of it lay in the kernel, which takes up to some tens of megabytes.
            Ok(()) => assert!(contents(&memory, range.clone()) == expected),
            Err(ReadError::LinkLost { .. }) => lost += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(lost > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_shown_to_who_comes_next() {
    let world = TcpWorld::by_tls(TcpLimits::default()).await;
    let keys = world.keys.as_ref().unwrap();
    let link = world.direct_link().await;
    // Renewed for another name, which is seen; then for the right one.
    keys.issue("owner", "other");
    connects(&world, false).await;
    check_alive(&link).await;
    keys.issue("owner", "owner");
    connects(&world, true).await;
    check_alive(&link).await;
}

/// Files are looked at once a second.
async fn connects(world: &TcpWorld, expected: bool) {
    let begun = std::time::Instant::now();
    while world.connect(&world.direct).await.is_ok() != expected {
        assert!(begun.elapsed() < PATIENCE, "never {expected}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
