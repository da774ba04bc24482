//! Shared memory: an owner on this host, and what only descriptors can get wrong.

use std::{
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    path::PathBuf,
    sync::Arc,
};

use kvferry_agent::{
    region::RegionCatalog,
    transport::{
        Link, PeerTarget, ReadError, ReadRequest, Transport,
        shm::{
            DepositBox, DescriptorClient, DescriptorError, ShmOptions, ShmServer, ShmTransport,
            host_id,
        },
    },
};
use kvferry_memory::{GenerationView, HostMemory};
use kvferry_proto::{NodeAddresses, RegionId, RemoteSpan};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
};

use crate::world::{
    PATIENCE, REGION, REGION_BYTES, SLOTS, World, catalog, check_alive, contents, data, eventually,
    incarnation, insert, local, pattern, peer, read, settled, whole, words,
};

pub struct ShmWorld {
    catalog: Arc<RegionCatalog>,
    deposits: Arc<DepositBox>,
    directory: tempfile::TempDir,
    stop: Arc<Notify>,
}

impl ShmWorld {
    fn path(&self) -> PathBuf {
        self.directory.path().join("agent/shm.sock")
    }

    async fn client(&self) -> DescriptorClient {
        DescriptorClient::connect(&self.path(), Some(incarnation()))
            .await
            .unwrap()
    }
}

impl World for ShmWorld {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent/shm.sock");
        let catalog = catalog();
        let server = ShmServer::bind(&path, Arc::clone(&catalog), ShmOptions::default()).unwrap();
        let deposits = server.deposits();
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        tokio::spawn(async move { server.serve(stopped.notified()).await });
        Self {
            catalog,
            deposits,
            directory,
            stop,
        }
    }
    fn catalog(&self) -> Arc<RegionCatalog> {
        Arc::clone(&self.catalog)
    }
    fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(ShmTransport::default())
    }
    fn peer(&self) -> PeerTarget {
        peer(NodeAddresses {
            shm: Some(self.path().to_str().unwrap().to_owned()),
            host_id: host_id(),
            ..NodeAddresses::default()
        })
    }
    fn kill(&self) {
        self.stop.notify_one();
    }
}

fn bind(path: &std::path::Path) -> Result<ShmServer, kvferry_agent::SocketError> {
    ShmServer::bind(path, catalog(), ShmOptions::default())
}

#[tokio::test]
async fn the_socket_is_private_and_never_taken_from_a_live_agent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/shm.sock");
    let server = bind(&path).unwrap();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert!(matches!(
        bind(&path),
        Err(kvferry_agent::SocketError::InUse { .. })
    ));
    drop(server);
    assert!(!path.exists());
    // What a dead process left: a socket that nobody answers on.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.symlink_metadata().unwrap().file_type().is_socket());
    drop(bind(&path).unwrap());
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(
        bind(&path),
        Err(kvferry_agent::SocketError::NotASocket { .. })
    ));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let long = directory.path().join("x".repeat(120));
    assert!(matches!(
        bind(&long),
        Err(kvferry_agent::SocketError::TooLong { .. })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_leave_and_fetch_descriptors() {
    let world = ShmWorld::start().await;
    let client = world.client().await;
    let own = HostMemory::pool("engine", 4096, kvferry_memory::HugePages::Off).unwrap();
    let token = client
        .deposit(own.descriptor().unwrap().as_fd())
        .await
        .unwrap();
    own.write_at(5, b"hello").unwrap();
    let seen = HostMemory::import(world.deposits.take(token).unwrap()).unwrap();
    assert_eq!(contents(&seen, 5..10), b"hello");
    assert!(world.deposits.take(token).is_none());

    let writable = client
        .open_region(REGION, incarnation(), true)
        .await
        .unwrap();
    assert_eq!((writable.data_bytes, writable.slots), (REGION_BYTES, SLOTS));
    let memory = HostMemory::import(writable.data).unwrap();
    memory.write_at(0, b"written by its engine").unwrap();
    let region = world.catalog.get(REGION).unwrap();
    let own = region.memory.host().unwrap();
    assert_eq!(contents(own, 0..21), b"written by its engine");
    // The generations are the agent's alone.
    assert!(HostMemory::import(writable.generations.try_clone().unwrap()).is_err());
    assert_eq!(
        GenerationView::new(writable.generations)
            .unwrap()
            .load(0)
            .unwrap(),
        1
    );

    let readable = client
        .open_region(REGION, incarnation(), false)
        .await
        .unwrap();
    assert!(HostMemory::import(readable.data).is_err());
    assert!(matches!(
        client.open_region(RegionId(1), incarnation(), false).await,
        Err(DescriptorError::RegionGone { .. })
    ));
    let old = kvferry_proto::Incarnation::new(1).unwrap();
    assert!(matches!(
        client.open_region(REGION, old, false).await,
        Err(DescriptorError::WrongIncarnation { .. })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deposits_are_bounded_and_expire_with_their_engine() {
    let world = ShmWorld::start().await;
    let client = world.client().await;
    let descriptor = local(4096).descriptor().unwrap();
    let mut tokens = Vec::new();
    let full = loop {
        match client.deposit(descriptor.as_fd()).await {
            Ok(token) => tokens.push(token),
            Err(error) => break error,
        }
    };
    assert!(matches!(full, DescriptorError::TooManyDeposits));
    assert!(world.deposits.take(tokens.pop().unwrap()).is_some());
    drop(client);
    // Expiry is seen from outside by taking: what is taken before it happens does not count.
    let mut left = tokens.into_iter();
    let mut last = left.next();
    eventually("expired", || match last {
        Some(token) if world.deposits.take(token).is_some() => {
            last = left.next();
            last.is_none()
        }
        _ => true,
    })
    .await;
    assert!(left.all(|token| world.deposits.take(token).is_none()));
}

/// The bytes outlive the owner: reads of mapped regions may go on, validation decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_region_is_refused_and_the_link_lives() {
    let world = ShmWorld::start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let id = RegionId(30);
    insert(
        &world.catalog,
        id,
        HostMemory::import_path(file.path()).unwrap(),
        16,
    );
    let link = world.link().await;
    let span = RemoteSpan {
        region: id,
        ..data(0..1 << 20)
    };
    read(&link, vec![span], whole(&local(1 << 20)))
        .await
        .unwrap();
    file.as_file().set_len(4096).unwrap();
    let result = read(&link, vec![span], whole(&local(1 << 20))).await;
    assert!(
        matches!(result, Err(ReadError::SpanRefused { .. })),
        "{result:?}"
    );
    check_alive(&link).await;
}

/// Another host, or another container of it, is not reached this way.
#[tokio::test]
async fn other_hosts_are_out_of_reach() {
    let world = ShmWorld::start().await;
    let mut peer = world.peer();
    assert!(world.transport().reaches(&peer));
    peer.addresses.host_id = "elsewhere".to_owned();
    assert!(!world.transport().reaches(&peer));
    assert!(!ShmTransport::new("").reaches(&peer));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_socket_hurts_nobody() {
    let world = ShmWorld::start().await;
    let link = world.link().await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xFF; 4096], b"KVFs"] {
        let mut stream = tokio::net::UnixStream::connect(world.path()).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        if garbage.len() >= 16 {
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(answer.is_empty());
        }
    }
    check_alive(&link).await;
    check_alive(&world.link().await).await;
}

/// An agent that says hello and then stops: a read that needs a region mapped can be given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_is_cancelled_though_the_owner_does_not_map() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stopped.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hello = [0; 16];
        stream.read_exact(&mut hello).await.unwrap();
        // A welcome looks like a hello for the right incarnation.
        stream.write_all(&hello).await.unwrap();
        std::future::pending::<()>().await;
    });
    let target = peer(NodeAddresses {
        shm: Some(path.to_str().unwrap().to_owned()),
        host_id: host_id(),
        ..NodeAddresses::default()
    });
    let link = ShmTransport::default().connect(&target).await.unwrap();
    let start = |link: &Arc<dyn Link>| {
        link.read(ReadRequest {
            remote: vec![data(0..100)],
            local: whole(&local(100)),
        })
    };
    let pending = start(&link);
    pending.cancel();
    assert!(matches!(settled(pending).await, Err(ReadError::Cancelled)));
    // One that is not given up ends by itself.
    let result = settled(start(&link)).await;
    assert!(
        matches!(result, Err(ReadError::LinkLost { .. })),
        "{result:?}"
    );
    eventually("lost", || link.is_lost()).await;
}

/// An agent that lets this user not in says so, and that is no outage; one that is only busy is another matter.
#[tokio::test]
async fn a_user_who_is_turned_away_is_kept_out() {
    let directory = tempfile::tempdir().unwrap();
    // As answers to a hello have it.
    for (status, denies) in [(2, true), (3, false)] {
        let path = directory.path().join(format!("{status}.sock"));
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = [0; 16];
            stream.read_exact(&mut hello).await.unwrap();
            hello[6] = status;
            stream.write_all(&hello).await.unwrap();
        });
        let target = peer(NodeAddresses {
            shm: Some(path.to_str().unwrap().to_owned()),
            host_id: host_id(),
            ..NodeAddresses::default()
        });
        let refused = ShmTransport::default().connect(&target).await;
        let error = refused.map(drop).unwrap_err();
        assert_eq!(error.is_denial(), denies, "{error}");
    }
}

/// Mapped memory outlives its owner's sockets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_under_way_survives_its_owner() {
    let world = ShmWorld::start().await;
    let link = world.link().await;
    check_alive(&link).await;
    let memory = local(REGION_BYTES);
    let pending = link.read(ReadRequest {
        remote: vec![data(0..REGION_BYTES)],
        local: whole(&memory),
    });
    world.kill();
    settled(pending).await.unwrap();
    assert!(contents(&memory, 0..REGION_BYTES) == pattern(0..REGION_BYTES));
}

/// An owner that is killed leaves its words even, and its engine then writes as it likes. No task has noticed the end yet:
/// this one holds the only thread from the death to the read.
#[tokio::test]
async fn words_of_an_owner_that_is_gone_validate_nothing() {
    let owner = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let world = owner.spawn(ShmWorld::start()).await.unwrap();
    let link = world.link().await;
    let request = |spans: Vec<RemoteSpan>| {
        let memory = local(spans.iter().map(|span| span.len).sum());
        let local = whole(&memory);
        (
            memory,
            ReadRequest {
                remote: spans,
                local,
            },
        )
    };
    let (data_spans, word_spans) = (vec![data(0..4096)], vec![words(0..8)]);
    let (memory, bytes) = request(data_spans.clone());
    link.read_with_words(bytes, request(word_spans.clone()).1)
        .await
        .unwrap();
    assert_eq!(contents(&memory, 0..4096), pattern(0..4096));

    let end = std::thread::spawn(move || owner.shutdown_timeout(PATIENCE));
    end.join().unwrap();
    let region = world.catalog.get(REGION).unwrap();
    region.memory.host().unwrap().write_at(7, b"!").unwrap();
    assert!(!link.is_lost(), "nobody has noticed");
    let together = link.read_with_words(request(data_spans).1, request(word_spans.clone()).1);
    let alone = link.read(request(word_spans).1);
    for read in [together, alone] {
        let read = read.await;
        assert!(matches!(read, Err(ReadError::LinkLost { .. })), "{read:?}");
    }
}
