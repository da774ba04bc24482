//! Compression is the agent's choice, and means nothing but fewer bytes.

#[cfg(not(feature = "zstd"))]
#[tokio::test]
async fn a_build_without_zstd_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["agent", "--coordinator-compression", "zstd"];
    let (code, _, told) = crate::cluster::run(&args, dir.path()).await;
    assert_ne!(code, 0);
    assert!(
        told.contains("coordinator_compression") && told.contains("--features zstd"),
        "{told}"
    );
}

#[cfg(feature = "zstd")]
mod zstd {
    use std::{
        net::SocketAddr,
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
        time::{Duration, Instant},
    };

    use kvferry_proto::pb::{self, OutcomeKind, coordinator_client::CoordinatorClient};
    use tokio::net::{TcpListener, TcpStream};
    use tonic::{Code, codec::CompressionEncoding::Zstd, transport::Channel};

    use crate::{
        cluster::{Cluster, eventually, pack},
        engine::{assert_all, hashes, namespace},
    };

    const BLOCKS: u64 = 1_000;

    /// Counts what goes through it, in bytes.
    #[derive(Default)]
    struct Wire {
        up: AtomicU64,
        down: AtomicU64,
    }

    impl Wire {
        /// To a coordinator; where it listens comes with it.
        async fn to(address: SocketAddr) -> (SocketAddr, Arc<Self>) {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (here, wire) = (listener.local_addr().unwrap(), Arc::<Self>::default());
            let counted = Arc::clone(&wire);
            tokio::spawn(async move {
                while let Ok((near, _)) = listener.accept().await {
                    let far = TcpStream::connect(address).await.unwrap();
                    let (from_near, to_near) = near.into_split();
                    let (from_far, to_far) = far.into_split();
                    tokio::spawn(copy(from_near, to_far, Arc::clone(&counted), |w| &w.up));
                    tokio::spawn(copy(from_far, to_near, Arc::clone(&counted), |w| &w.down));
                }
            });
            (here, wire)
        }

        fn bytes(&self) -> (u64, u64) {
            let read = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed);
            (read(&self.up), read(&self.down))
        }
    }

    async fn copy(
        mut from: tokio::net::tcp::OwnedReadHalf,
        mut to: tokio::net::tcp::OwnedWriteHalf,
        wire: Arc<Wire>,
        count: fn(&Wire) -> &AtomicU64,
    ) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut buffer = vec![0; 64 << 10];
        while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
            count(&wire).fetch_add(bytes as u64, Ordering::Relaxed);
            if to.write_all(&buffer[..bytes]).await.is_err() {
                return;
            }
        }
    }

    async fn client(address: SocketAddr) -> CoordinatorClient<Channel> {
        let client = CoordinatorClient::connect(format!("http://{address}")).await;
        client.unwrap()
    }

    fn all() -> pb::LocateRequest {
        pb::LocateRequest {
            namespace: "n".into(),
            hashes: Some(pack(&hashes(0..BLOCKS))),
            mode: pb::LocateMode::Set.into(),
            ..pb::LocateRequest::default()
        }
    }

    /// The answer, and bytes of each way and time of one call.
    async fn ask(
        mut client: CoordinatorClient<Channel>,
        wire: &Wire,
    ) -> (pb::LocateResponse, (u64, u64), Duration) {
        const CALLS: u32 = 50;
        let answer = client.locate(all()).await.unwrap().into_inner();
        let (before, began) = (wire.bytes(), Instant::now());
        for _ in 0..CALLS {
            client.locate(all()).await.unwrap();
        }
        let (took, after) = (began.elapsed() / CALLS, wire.bytes());
        let each = |before: u64, after: u64| (after - before) / u64::from(CALLS);
        let bytes = (each(before.0, after.0), each(before.1, after.1));
        (answer, bytes, took)
    }

    #[tokio::test]
    async fn sessions_and_answers_are_the_same_in_fewer_bytes() {
        let mut cluster = Cluster::start().await;
        let direct = cluster.coordinator_address;
        let mut told = Vec::new();
        // Agents are told of the coordinator behind a wire of their own each.
        for (node, compression) in [("plain", "none"), ("small", "zstd")] {
            let (address, wire) = Wire::to(direct).await;
            cluster.coordinator_address = address;
            let agent = cluster
                .agent(node, &["--coordinator-compression", compression])
                .await;
            let memory = agent.region(namespace("n"), BLOCKS as u32).await;
            agent.publish(&memory, 0, 0..BLOCKS).await;
            cluster.coordinator_address = direct;
            eventually("the coordinator knows its blocks", || async {
                cluster.live_blocks(node).await == Some(BLOCKS)
            })
            .await;
            told.push((wire.bytes().0, agent, memory));
        }
        println!(
            "a session that tells of {BLOCKS} blocks: {} bytes plain, {} zstd",
            told[0].0, told[1].0
        );

        let (address, wire) = Wire::to(direct).await;
        let plain = ask(client(address).await, &wire).await;
        let asks = client(address).await.accept_compressed(Zstd);
        let small = ask(asks, &wire).await;
        let both = client(address).await.accept_compressed(Zstd);
        let smallest = ask(both.send_compressed(Zstd), &wire).await;
        for (what, (_, bytes, took)) in [
            ("plain", &plain),
            ("zstd for the answer", &small),
            ("zstd both ways", &smallest),
        ] {
            println!("Locate of {BLOCKS} blocks, {what}: {bytes:?} bytes up and down, {took:?}");
        }
        // Which of two owners comes first is drawn for every call: as many answers are alike.
        assert_eq!(plain.0.answered, small.0.answered);
        assert_eq!(plain.0.candidate_counts, smallest.0.candidate_counts);
        assert!(small.1.1 < plain.1.1, "{:?} {:?}", small.1, plain.1);

        // And the agent understands what it is answered.
        let asker = cluster
            .agent("asker", &["--coordinator-compression", "zstd"])
            .await;
        let into = asker.region(namespace("n"), 16).await;
        let wanted: Vec<u64> = (0..16).collect();
        let timeout = Duration::from_secs(60);
        let outcomes = asker.pull("n", &wanted, Some(&into), timeout).await;
        assert_all(&outcomes.unwrap(), OutcomeKind::Pulled, "shm");
    }

    #[tokio::test]
    async fn what_would_become_too_large_is_refused_before_it_does() {
        let cluster = Cluster::start().await;
        let mut client = cluster.client().await.send_compressed(Zstd);
        // A few kilobytes on the wire.
        let bomb = pb::LocateRequest {
            hashes: Some(pb::PackedHashes {
                hash_len: 32,
                hashes: vec![0; 128 << 20].into(),
            }),
            ..all()
        };
        let refused = client.locate(bomb).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        let fine = client.locate(all()).await.unwrap_err();
        assert_eq!(fine.code(), Code::NotFound, "the namespace: {fine}");
    }
}
