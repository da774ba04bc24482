//! Thousands of connections that say nothing: nobody else is kept waiting, and nothing stays behind.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use kvferry_proto::pb::OutcomeKind;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::footprint::Footprint;
use crate::{
    cluster::{Cluster, SOON},
    engine::{assert_all, block, namespace},
};

/// To each port. With those of the other ports more than a process may open by default. Fewer where this process may not open
/// so many, of which other tests need some.
const CROWD: u64 = 800;
/// Another address of this host's: what is bounded is bounded for each source, and others go on.
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));

/// A connection that is not there by then was not wanted.
const COMING: Duration = Duration::from_secs(1);

/// As many descriptors as this process may have: its children inherit that, as a service manager would set it. Says how many
/// of them each port's crowd may take.
fn raise_own_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).expect("up to the hard limit");
    CROWD.min(limit.maximum.unwrap_or(u64::MAX) / 10)
}

/// At once: a port that lets nobody in any more makes them all wait for the same moment.
async fn crowd(at: SocketAddr, count: u64) -> Vec<TcpStream> {
    let mut coming = tokio::task::JoinSet::new();
    for _ in 0..count {
        coming.spawn(async move {
            let socket = TcpSocket::new_v4().ok()?;
            socket.bind(SocketAddr::new(ELSEWHERE, 0)).ok()?;
            // Some may be refused: that is what bounds are for.
            timeout(COMING, socket.connect(at)).await.ok()?.ok()
        });
    }
    let come = coming.join_all().await;
    come.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_says_nothing_keeps_nobody_out() {
    let count = raise_own_limit();
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a", &[]).await;
    let b = cluster
        .agent("b", &["--transport", "tcp", "--replicate=false"])
        .await;
    let from = a.region(namespace("n"), 64).await;
    a.publish(&from, 0, 0..64).await;
    let to = b.region(namespace("n"), 64).await;
    let wanted: Vec<u64> = (0..64).collect();
    let outcomes = b.pull("n", &wanted, Some(&to), SOON).await.unwrap();
    assert_all(&outcomes, OutcomeKind::Pulled, "tcp");
    let before = [cluster.agent_process("a"), cluster.coordinator_process()]
        .map(|process| Footprint::of(process.pid()));

    let mut open = Vec::new();
    for port in [
        cluster.agent_data_address("a"),
        cluster.agent_peer_address("a"),
        cluster.agent_metrics("a"),
        cluster.coordinator_address,
        cluster.coordinator_metrics(),
    ] {
        open.extend(crowd(port, count).await);
    }
    // A third agent knows nobody yet: it must get through the crowd at every door.
    let c = cluster.agent("c", &["--transport", "tcp"]).await;
    let to = c.region(namespace("n"), 64).await;
    let outcomes = c.pull("n", &wanted, Some(&to), SOON).await.unwrap();
    assert_all(&outcomes, OutcomeKind::Pulled, "tcp");
    for n in 0..64 {
        assert!(to.read(n) == block(u64::from(n)));
    }
    drop(open);
    for footprint in before {
        footprint.is_back().await;
    }
}
