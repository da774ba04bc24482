//! A cluster whose coordinator signs tickets: its agents read from each other as ever, and nobody else does.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::PathBuf,
    time::Duration,
};

use kvferry_observe::read_page;
use kvferry_proto::pb::{self, OutcomeKind};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

use crate::{
    cluster::{Cluster, can_run_as, eventually, run},
    engine::{Engine, assert_all, block, namespace},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// The user that nobody is.
const NOBODY: u32 = 65_534;

/// A cluster with a key, in a file of its own.
struct Signed {
    cluster: Cluster,
    key: PathBuf,
    _dir: tempfile::TempDir,
}

async fn signed(more: &[&str]) -> Signed {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("ticket.key");
    make_key(&key, false).await;
    let flags = [&["--ticket-key", key.to_str().unwrap()], more].concat();
    let cluster = Cluster::start_with(&flags).await;
    Signed {
        cluster,
        key,
        _dir: dir,
    }
}

async fn make_key(key: &std::path::Path, rotate: bool) {
    let mut args = vec!["keys", "ticket", key.to_str().unwrap()];
    args.extend(rotate.then_some("--rotate"));
    let (code, _, said) = run(&args, key.parent().unwrap()).await;
    assert_eq!(code, 0, "{said}");
}

async fn sample(cluster: &Cluster, node: &str, name: &str) -> u64 {
    let (_, page) = read_page(cluster.agent_metrics(node), "/metrics")
        .await
        .unwrap();
    let lines = page.lines();
    let found = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.map(|value| value.parse::<u64>().unwrap()).sum()
}

/// Pulls these blocks into the agent's pool; all must come.
async fn pull(engine: &Engine, blocks: std::ops::Range<u64>, transport: &str) {
    let wanted: Vec<u64> = blocks.collect();
    let outcomes = engine.pull("n", &wanted, None, PATIENCE).await.unwrap();
    assert_all(&outcomes, OutcomeKind::Pulled, transport);
}

#[tokio::test]
async fn agents_of_the_cluster_read_and_strangers_do_not() {
    let Signed { mut cluster, .. } = signed(&["--ticket-ttl-ms", "12000"]).await;
    let a = cluster.agent("a", &[]).await;
    let b = cluster.agent("b", &["--transport", "tcp"]).await;
    let from = a.region(namespace("n"), 64).await;
    a.publish(&from, 0, 0..64).await;
    let to = b.region(namespace("n"), 64).await;
    let wanted: Vec<u64> = (0..32).collect();
    let outcomes = b.pull("n", &wanted, Some(&to), PATIENCE).await.unwrap();
    assert_all(&outcomes, OutcomeKind::Pulled, "tcp");
    for n in 0..32 {
        assert!(to.read(n as u32) == block(n));
    }
    assert!(sample(&cluster, "a", "kvferry_agent_readers_admitted_total").await >= 1);
    assert!(sample(&cluster, "b", "kvferry_agent_tickets_obtained_total").await >= 1);

    // Who is not one of them knows where the port is, and even which lifetime answers.
    let node = pb::DescribeNodeRequest {
        node: "a".to_owned(),
    };
    let info = cluster.client().await.describe_node(node).await.unwrap();
    let mut hello = b"KVFd".to_vec();
    hello.extend_from_slice(&[1, 0, 0, 0]);
    hello.extend_from_slice(&info.into_inner().incarnation.to_le_bytes());
    hello.extend_from_slice(&[0; 4]);
    let mut stream = TcpStream::connect(cluster.agent_data_address("a"))
        .await
        .unwrap();
    stream.write_all(&hello).await.unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.unwrap();
    assert_eq!(said.len(), 28);
    assert_eq!(said[6..8], [2, 0x11], "refused: no ticket");
    let absent = "kvferry_agent_readers_refused_total{reason=\"absent\"}";
    assert_eq!(sample(&cluster, "a", absent).await, 1);

    // On connections that stay: half of a ticket's life is left when it is renewed, which takes nobody as long.
    eventually("renewed", || async {
        sample(&cluster, "a", "kvferry_agent_readers_renewed_total").await >= 2
    })
    .await;
    let wanted: Vec<u64> = (32..64).collect();
    let outcomes = b.pull("n", &wanted, Some(&to), PATIENCE).await.unwrap();
    assert_all(&outcomes, OutcomeKind::Pulled, "tcp");
    assert_eq!(
        sample(&cluster, "a", "kvferry_agent_readers_expired_total").await,
        0
    );
}

#[tokio::test]
async fn a_new_key_takes_over_while_agents_read() {
    let Signed {
        mut cluster,
        key,
        _dir,
    } = signed(&["--ticket-ttl-ms", "6000"]).await;
    let a = cluster.agent("a", &[]).await;
    let b = cluster.agent("b", &["--transport", "tcp"]).await;
    let from = a.region(namespace("n"), 64).await;
    a.publish(&from, 0, 0..64).await;
    b.pool(namespace("n"), 64).await;
    pull(&b, 0..16, "tcp").await;

    make_key(&key, true).await;
    cluster.take_coordinator().terminate().await;
    // The connection is there, and its ticket good.
    cluster.restart_coordinator().await;
    listed_again(&cluster).await;
    pull(&b, 16..32, "tcp").await;

    // Another key altogether, as after a theft: what the old one signed is worth nothing, also where it has not
    // expired.
    fs::remove_file(&key).unwrap();
    make_key(&key, false).await;
    cluster.take_coordinator().terminate().await;
    cluster.restart_coordinator().await;
    listed_again(&cluster).await;
    let stranger = cluster.agent("c", &["--transport", "tcp"]).await;
    stranger.pool(namespace("n"), 64).await;
    pull(&stranger, 32..48, "tcp").await;
    // Whoever read before goes on with a new ticket, which is asked for by then.
    sleep(Duration::from_secs(4)).await;
    pull(&b, 48..64, "tcp").await;
}

async fn listed_again(cluster: &Cluster) {
    eventually("both are back", || async {
        cluster.live_blocks("a").await == Some(64) && cluster.live_blocks("b").await.is_some()
    })
    .await;
}

#[tokio::test]
async fn who_wants_tickets_where_nobody_signs_them_is_not_read_from() {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a", &["--require-tickets", "always"]).await;
    let b = cluster.agent("b", &["--transport", "tcp"]).await;
    let from = a.region(namespace("n"), 4).await;
    a.publish(&from, 0, 0..4).await;
    b.pool(namespace("n"), 4).await;
    let outcomes = b.pull("n", &[0, 1], None, PATIENCE).await.unwrap();
    for outcome in outcomes {
        // Neither a miss nor an outage: the block is there, and we may not have it.
        assert_eq!(outcome.kind(), OutcomeKind::Denied, "{outcome:?}");
        // Whom, and why.
        assert!(outcome.detail.contains("no ticket for a"), "{outcome:?}");
    }
    let denied = "kvferry_agent_blocks_total{outcome=\"denied\"}";
    assert_eq!(sample(&cluster, "b", denied).await, 2);
}

#[tokio::test]
async fn memory_is_mapped_by_allowed_users_with_a_ticket_only() {
    if !can_run_as(NOBODY).await {
        return;
    }
    let Signed { mut cluster, .. } = signed(&[]).await;
    let own = |node: &str| {
        let directory = cluster.dir.path().join(node);
        fs::create_dir(&directory).unwrap();
        chown(&directory, Some(NOBODY), None).unwrap();
        directory.join("agent.sock")
    };
    fs::set_permissions(cluster.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (socket_b, socket_c) = (own("b"), own("c"));
    // One that lets nobody in, one that lets this user in.
    let closed = cluster.agent("closed", &[]).await;
    let from = closed.region(namespace("n"), 4).await;
    closed.publish(&from, 0, 0..4).await;
    let shm = ["--transport", "shm"];
    let b = cluster
        .agent_as(Some(NOBODY), "b", &socket_b, &shm, &[])
        .await;
    b.pool(namespace("n"), 16).await;
    let outcomes = b.pull("n", &[0, 1], None, PATIENCE).await.unwrap();
    for outcome in outcomes {
        assert_eq!(outcome.kind(), OutcomeKind::Denied, "{outcome:?}");
        assert!(
            outcome
                .detail
                .contains("closed lets this user not in by shm"),
            "{outcome:?}"
        );
    }
    // Where sockets may be used they are.
    let c = cluster
        .agent_as(Some(NOBODY), "c", &socket_c, &[], &[])
        .await;
    c.pool(namespace("n"), 16).await;
    pull(&c, 0..2, "tcp").await;
    let uid = NOBODY.to_string();
    let open = cluster.agent("open", &["--allow-uid", &uid]).await;
    let from = open.region(namespace("n"), 4).await;
    open.publish(&from, 0, 4..8).await;
    pull(&b, 4..8, "shm").await;
    assert_eq!(
        sample(&cluster, "open", "kvferry_agent_readers_admitted_total").await,
        1
    );
    assert!(sample(&cluster, "b", "kvferry_agent_tickets_obtained_total").await >= 1);
    // Of the agent's own user nothing more is asked than who it is.
    let same = cluster.agent("same", &shm).await;
    same.pool(namespace("n"), 16).await;
    pull(&same, 4..8, "shm").await;
    assert_eq!(
        sample(&cluster, "open", "kvferry_agent_readers_admitted_total").await,
        1
    );
}
