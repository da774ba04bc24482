//! Owners that die or stop while they are read: every block still gets its outcome, in time.

use std::time::{Duration, Instant};

use kvferry_proto::pb::{NodeState, OutcomeKind};

use crate::{
    cluster::{Cluster, LATE, MISSES, SOON, eventually},
    engine::{assert_all, block, hashes, namespace},
};

const BLOCKS: u64 = 512;

#[tokio::test]
async fn a_killed_owner_is_replaced_by_a_replica() {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a", &[]).await;
    let b = cluster.agent("b", &["--transport", "tcp"]).await;
    let c = cluster.agent("c", &["--transport", "tcp"]).await;
    let from = a.region(namespace("n"), BLOCKS as u32).await;
    a.publish(&from, 0, 0..BLOCKS).await;
    // B holds half of it too.
    let half: Vec<u64> = (0..BLOCKS / 2).collect();
    let replica = b.region(namespace("n"), BLOCKS as u32).await;
    b.pull("n", &half, Some(&replica), SOON).await.unwrap();
    eventually("B is listed", || async {
        let owners = cluster.locate("n", &hashes(0..BLOCKS / 2)).await;
        owners.iter().all(|owners| owners.len() == 2)
    })
    .await;

    let to = c.region(namespace("n"), BLOCKS as u32).await;
    let wanted: Vec<u64> = (0..BLOCKS).collect();
    let process = cluster.take_agent("a");
    let kill = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(5)).await;
        process.kill().await;
    });
    let start = Instant::now();
    let outcomes = c.pull("n", &wanted, Some(&to), SOON).await.unwrap();
    assert!(start.elapsed() < SOON + LATE);
    kill.await.unwrap();
    for outcome in &outcomes {
        let n = u64::from(outcome.index);
        match outcome.kind() {
            OutcomeKind::Pulled => assert!(to.read(outcome.index) == block(n)),
            // Only A had these.
            OutcomeKind::Unreachable | OutcomeKind::TimedOut | OutcomeKind::Missing => {
                assert!(n >= BLOCKS / 2, "a replica was there: {outcome:?}");
                assert!(!outcome.detail.is_empty(), "{outcome:?}");
            }
            other => panic!("{other:?}: {outcome:?}"),
        }
    }
}

#[tokio::test]
async fn a_stopped_owner_costs_its_stall_bound_once() {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a", &[]).await;
    let flags = ["--transport", "tcp", "--stall-bound-ms", "500"];
    let b = cluster.agent("b", &flags).await;
    let from = a.region(namespace("n"), 8).await;
    a.publish(&from, 0, 0..8).await;
    let to = b.region(namespace("n"), 8).await;
    // A link is there already; then the owner stops.
    let timeout = SOON;
    b.pull("n", &[0], Some(&to), timeout).await.unwrap();
    cluster.agent_process("a").signal("STOP");
    let outcomes = b.pull("n", &[1, 2], Some(&to), timeout).await.unwrap();
    for outcome in &outcomes {
        // And not that its time was over.
        assert_eq!(outcome.kind(), OutcomeKind::Unreachable, "{outcome:?}");
    }
    // It goes on, and is used again.
    cluster.agent_process("a").signal("CONT");
    eventually("A serves again", || async {
        let outcomes = b.pull("n", &[3], Some(&to), timeout).await.unwrap();
        outcomes[0].kind() == OutcomeKind::Pulled
    })
    .await;
    assert!(to.read(0) == block(3));
}

#[tokio::test]
async fn a_node_that_says_goodbye_is_gone_at_once_and_one_that_dies_is_hidden_then_purged() {
    let mut cluster = Cluster::start_with(&MISSES).await;
    let a = cluster.agent("a", &[]).await;
    let b = cluster.agent("b", &[]).await;
    let ours = a.region(namespace("n"), 8).await;
    a.publish(&ours, 0, 0..8).await;
    let theirs = b.region(namespace("n"), 8).await;
    b.publish(&theirs, 0, 0..8).await;
    assert_eq!(cluster.take_agent("a").terminate().await, Some(0));
    eventually("A is gone", || async {
        cluster.state("a").await != Some(NodeState::Live)
    })
    .await;
    assert_eq!(cluster.state("a").await, None, "and was never hidden");
    assert!(!cluster.socket("a").exists(), "the socket is cleaned up");
    cluster.take_agent("b").kill().await;
    eventually("B is hidden", || async {
        let owners = cluster.locate("n", &hashes(0..8)).await;
        owners.iter().all(Vec::is_empty)
    })
    .await;
}

#[tokio::test]
async fn a_restarted_agent_voids_what_it_said_before() {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a", &[]).await;
    let b = cluster.agent("b", &["--transport", "tcp"]).await;
    let from = a.region(namespace("n"), 8).await;
    a.publish(&from, 0, 0..8).await;
    let to = b.region(namespace("n"), 8).await;
    let timeout = SOON;
    b.pull("n", &[0], Some(&to), timeout).await.unwrap();
    cluster.take_agent("a").kill().await;
    let a = cluster.agent("a", &[]).await;
    // The new lifetime holds other blocks under the same region and slot numbers.
    let again = a.region(namespace("n"), 8).await;
    a.publish(&again, 0, 20..28).await;
    let outcomes = b.pull("n", &[20, 1], Some(&to), timeout).await.unwrap();
    assert_eq!(outcomes[0].kind(), OutcomeKind::Pulled);
    assert!(to.read(0) == block(20));
    assert_eq!(outcomes[1].kind(), OutcomeKind::Missing, "{outcomes:?}");
    let outcomes = b.pull("n", &[0], Some(&to), timeout).await.unwrap();
    assert_all(&outcomes, OutcomeKind::Missing, "");
}
