//! Bad input gets a typed error that says what to do, and loses nothing.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use kvferry_proto::{
    Reason,
    pb::{self, OutcomeKind},
    reason_of,
};

use crate::{
    cluster::{Cluster, pack, run},
    engine::{assert_all, hashes, namespace, planar},
};

#[tokio::test]
async fn calls_that_make_no_sense_are_refused_with_a_reason() {
    let mut cluster = Cluster::start().await;
    let mut a = cluster.agent("a", &[]).await;
    let memory = a.region(namespace("n"), 8).await;

    let lookup = |name: &str, packed| pb::LookupRequest {
        namespace: name.into(),
        hashes: Some(packed),
        prefix: false,
        timeout_ms: 60_000,
    };
    let error = a.api.lookup(lookup("none", pack(&hashes(0..1)))).await;
    let error = error.unwrap_err();
    assert_eq!(
        reason_of(&error),
        Some(Reason::NamespaceUnknown),
        "{error:?}"
    );
    assert!(error.message().contains("none"));

    let error = a.api.lookup(lookup("n", pack(&[vec![1; 16]]))).await;
    assert_eq!(reason_of(&error.unwrap_err()), Some(Reason::HashLength));

    // Another layout under the same name, told by both fingerprints.
    let mut other = namespace("n");
    other.layout.as_mut().unwrap().plane_bytes *= 2;
    let request = |spec, path: &str, geometry| pb::RegisterRegionRequest {
        namespace: Some(spec),
        source: Some(pb::register_region_request::Source::Path(pb::PathSource {
            path: path.into(),
        })),
        geometry: Some(geometry),
        keep_on_disconnect: false,
    };
    let path = memory.path.display().to_string();
    let error = a
        .api
        .register_region(request(other, &path, planar(4)))
        .await
        .unwrap_err();
    assert_eq!(reason_of(&error), Some(Reason::NamespaceMismatch));
    let fingerprints = error
        .message()
        .split(|c: char| !c.is_ascii_hexdigit())
        .filter(|word| word.len() == 64)
        .count();
    assert_eq!(fingerprints, 2, "{}", error.message());

    // The same bytes under a second generation table.
    let error = a
        .api
        .register_region(request(namespace("n"), &path, planar(8)))
        .await
        .unwrap_err();
    assert_eq!(reason_of(&error), Some(Reason::MemoryInUse));

    // More slots than the file has room for.
    let error = a
        .api
        .register_region(request(namespace("n"), &path, planar(9)))
        .await
        .unwrap_err();
    assert_eq!(reason_of(&error), Some(Reason::SpanOutOfRegion));
    let error = a
        .api
        .register_region(request(namespace("n"), "/dev/shm/not-there", planar(8)))
        .await
        .unwrap_err();
    assert_eq!(reason_of(&error), Some(Reason::Memory));

    let error = a
        .api
        .reserve(pb::ReserveRequest {
            region: memory.region,
            count: 0,
            slots: vec![8],
        })
        .await
        .unwrap_err();
    assert_eq!(reason_of(&error), Some(Reason::SlotOutOfRegion));
    let error = a
        .api
        .reserve(pb::ReserveRequest {
            region: 999,
            count: 0,
            slots: vec![0],
        })
        .await
        .unwrap_err();
    assert_eq!(reason_of(&error), Some(Reason::RegionUnknown));

    // More hashes than one request may carry.
    let many = pb::PackedHashes {
        hash_len: 32,
        hashes: vec![0; 32 * 65_537].into(),
    };
    let error = a.api.lookup(lookup("n", many)).await.unwrap_err();
    assert_eq!(reason_of(&error), Some(Reason::BoundReached), "{error:?}");

    // A message beyond what is ever taken.
    let huge = pb::PackedHashes {
        hash_len: 32,
        hashes: vec![0; 9 << 20].into(),
    };
    let error = a.api.lookup(lookup("n", huge)).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::OutOfRange, "{error:?}");
    assert!(error.message().contains("limit"), "{error:?}");

    // All of that lost nothing.
    a.publish(&memory, 0, 0..8).await;
}

#[tokio::test]
async fn garbage_on_the_data_port_harms_nobody_else() {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a", &[]).await;
    let b = cluster.agent("b", &["--transport", "tcp"]).await;
    let from = a.region(namespace("n"), 8).await;
    a.publish(&from, 0, 0..8).await;
    let address = cluster.agent_data_address("a");
    let garbage: [&[u8]; 4] = [b"GET / HTTP/1.1\r\n\r\n", &[0; 4096], &[0xff; 4096], b"K"];
    let mut open = Vec::new();
    for bytes in garbage {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        // The agent may close before all is written.
        let _ = stream.write_all(bytes);
        let _ = stream.read(&mut [0; 64]);
        open.push(stream);
    }
    let to = b.region(namespace("n"), 8).await;
    let wanted: Vec<u64> = (0..8).collect();
    let timeout = Duration::from_secs(60);
    let outcomes = b.pull("n", &wanted, Some(&to), timeout).await.unwrap();
    assert_all(&outcomes, OutcomeKind::Pulled, "tcp");
}

#[tokio::test]
async fn what_cannot_start_says_why_and_binds_nothing() {
    let mut cluster = Cluster::start().await;
    cluster.agent("a", &[]).await;
    let dir = cluster.dir.path().to_owned();
    let coordinator = cluster.coordinator_address.to_string();
    let socket = cluster.socket("a").display().to_string();

    let (code, _, error) = run(&["coordinator", "--listen", &coordinator], &dir).await;
    assert_ne!(code, 0);
    assert!(error.contains(&coordinator), "{error}");

    let agent = |more: &[&str]| {
        let base = [
            "agent",
            "--node",
            "x",
            "--listen-peer",
            "127.0.0.1:0",
            "--listen-data",
            "127.0.0.1:0",
            "--listen-metrics",
            "off",
        ];
        base.iter()
            .chain(more)
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let run_owned = async |args: Vec<String>| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        run(&args, &dir).await
    };
    // A socket on which somebody answers is not taken away from him.
    let (code, _, error) = run_owned(agent(&["--socket", &socket])).await;
    assert_ne!(code, 0);
    assert!(error.contains(&socket), "{error}");

    std::fs::write(dir.join("bad.toml"), "nod = \"x\"\n").unwrap();
    let (code, _, error) = run_owned(agent(&["--config", "bad.toml"])).await;
    assert_eq!(code, 2, "{error}");
    assert!(
        error.contains("nod") && error.contains("bad.toml"),
        "{error}"
    );

    // Beyond loopback only when told so in so many words.
    let (code, _, error) = run(&["coordinator", "--listen", "0.0.0.0:0"], &dir).await;
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("--insecure"), "{error}");
}
