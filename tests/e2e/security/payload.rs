//! Payload by TLS, between real agents: who wants it gets nothing else, and who does not speaks it to those that do.

use kvferry_observe::read_page;
use kvferry_proto::pb::OutcomeKind;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{World, as_, keys};
use crate::{
    cluster::{SOON, run},
    engine::{Engine, assert_all, block, namespace},
};

async fn sample(world: &World, node: &str, name: &str) -> u64 {
    let page = read_page(world.agent_metrics(node), "/metrics").await;
    let (_, page) = page.unwrap();
    let lines = page.lines();
    let found = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.map(|value| value.parse::<u64>().unwrap()).sum()
}

async fn pull(engine: &Engine, blocks: std::ops::Range<u64>) {
    let wanted: Vec<u64> = blocks.clone().collect();
    let to = engine.region(namespace("n"), 32).await;
    let pulled = engine.pull("n", &wanted, Some(&to), SOON).await.unwrap();
    assert_all(&pulled, OutcomeKind::Pulled, "tcp");
    for (slot, n) in (0..).zip(blocks) {
        assert!(to.read(slot) == block(n));
    }
}

#[tokio::test]
async fn payload_by_tls_is_read_by_tls_or_not_at_all() {
    let mut world = World::new();
    keys(&world, "ca").await;
    for name in ["coordinator --ip 127.0.0.1", "a", "b", "c"] {
        keys(&world, &format!("cert {name}")).await;
    }
    keys(&world, "ticket ticket.key").await;
    let words = |words: &[&str]| -> Vec<String> { words.iter().map(|&w| w.to_owned()).collect() };
    let mut flags = as_("coordinator");
    flags.extend(words(&[
        "--ticket-key",
        "ticket.key",
        "--ticket-ttl-ms",
        "60000",
    ]));
    world.coordinator(&flags).await;
    let url = format!("https://{}", world.address());
    let agent = |name: &str, more: &[&str]| {
        let mut flags = as_(name);
        flags.extend(words(&["--transport", "tcp"]));
        flags.extend(words(more));
        flags
    };
    let a = world.agent("a", &url, &agent("a", &["--data-tls"])).await;
    let b = world.agent("b", &url, &agent("b", &["--data-tls"])).await;
    let c = world.agent("c", &url, &agent("c", &[])).await;
    let from = a.region(namespace("n"), 32).await;
    a.publish(&from, 0, 0..32).await;
    pull(&b, 0..32).await;
    // It does not insist on TLS, and speaks it to who does.
    pull(&c, 0..32).await;
    let done = "kvferry_agent_data_handshakes_total{outcome=\"done\"}";
    let admitted = "kvferry_agent_readers_admitted_total";
    // By then B has copies too, and C may read those.
    for counted in [done, admitted] {
        let of_a = sample(&world, "a", counted).await;
        assert!(of_a + sample(&world, "b", counted).await >= 2, "{counted}");
    }

    // What only C has travels in clear, so that B goes without.
    let from = c.region(namespace("n"), 32).await;
    c.publish(&from, 0, 40..44).await;
    b.pool(namespace("n"), 16).await;
    let refused = b.pull("n", &[40, 41], None, SOON).await;
    for outcome in refused.unwrap() {
        assert_eq!(outcome.kind(), OutcomeKind::Unreachable, "{outcome:?}");
        assert!(outcome.detail.contains("by TLS only"), "{outcome:?}");
    }
    let clear = "kvferry_agent_payload_refused_total{reason=\"clear\"}";
    assert!(sample(&world, "b", clear).await >= 1);

    // Whoever speaks in clear to A is told so, and hears nothing else.
    let mut stream = TcpStream::connect(world.agent_data("a")).await.unwrap();
    let mut hello = b"KVFd".to_vec();
    hello.extend_from_slice(&[1, 0, 0, 0]);
    hello.extend_from_slice(&[7; 12]);
    stream.write_all(&hello).await.unwrap();
    let mut said = Vec::new();
    // It may be reset behind that.
    let _ = stream.read_to_end(&mut said).await;
    assert_eq!((said.len(), &said[6..8]), (28, &[2, 4][..]));

    // The doctor goes the way that an agent would, and has no ticket to show.
    let peer = world.agent_peer("a");
    let mut doctor = words(&["doctor", "--peer", &peer, "--peer-name", "a"]);
    doctor.extend(as_("b"));
    let doctor: Vec<&str> = doctor.iter().map(String::as_str).collect();
    let (_, found, error) = run(&doctor, world.path()).await;
    let said = found + &error;
    assert!(
        said.contains("lets readers in with a ticket only"),
        "{said}"
    );
}

#[tokio::test]
async fn payload_by_tls_takes_certificates_and_no_rdma() {
    let world = World::new();
    let bare = ["agent", "--data-tls"];
    let (code, _, error) = run(&bare, world.path()).await;
    assert_eq!(code, 2, "{error}");
    assert!(
        error.contains("tls_cert") && error.contains("--tls-ca"),
        "{error}"
    );
    keys(&world, "ca").await;
    keys(&world, "cert a").await;
    let flags = as_("a");
    let mut rdma = vec!["agent", "--data-tls", "--transport", "rdma"];
    rdma.extend(flags.iter().map(String::as_str));
    let (code, _, error) = run(&rdma, world.path()).await;
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("RDMA is not encrypted"), "{error}");
}
