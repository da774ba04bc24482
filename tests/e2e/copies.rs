//! Copies are made where they are wanted, and a node that goes leaves nothing behind that only it held.

use kvferry_proto::pb::OutcomeKind;
use serde_json::Value;

use crate::{
    cluster::{Cluster, MISSES, SOON, eventually, run},
    engine::{block, hashes, namespace},
};

async fn kvferry(cluster: &Cluster, args: &[&str]) -> (i32, Value) {
    let coordinator = format!("http://{}", cluster.coordinator_address);
    let mut all = args.to_vec();
    all.extend(["--json", "--coordinator", &coordinator]);
    let (code, out, err) = run(&all, cluster.dir.path()).await;
    let told = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{args:?}: {out}{err}"));
    (code, told)
}

/// Of how many of the first 40 blocks there are so many copies.
async fn with_copies(cluster: &Cluster, copies: usize) -> usize {
    let owners = cluster.locate("n", &hashes(0..40)).await;
    owners
        .iter()
        .filter(|owners| owners.len() == copies)
        .count()
}

#[tokio::test]
async fn a_namespace_gets_the_copies_it_asks_for_and_hot_blocks_more() {
    let mut cluster = Cluster::start_with(&MISSES).await;
    let a = cluster.agent("a", &[]).await;
    let own = a.region(namespace("n"), 64).await;
    a.publish(&own, 0, 0..40).await;
    let mut others = Vec::new();
    for node in ["b", "c"] {
        let engine = cluster.agent(node, &[]).await;
        engine.pool(namespace("n"), 64).await;
        others.push(engine);
    }
    let (code, told) = kvferry(&cluster, &["copies", "n", "--min", "2"]).await;
    assert_eq!((code, &told["min_copies"]), (0, &2.into()));
    eventually("all blocks have two copies", || async {
        with_copies(&cluster, 2).await == 40
    })
    .await;
    let hot: Vec<String> = hashes(0..3)
        .iter()
        .map(|hash| hash.iter().map(|byte| format!("{byte:02x}")).collect())
        .collect();
    let mut args = vec!["copies", "n", "--copies", "3", "--hot"];
    args.extend(hot.iter().map(String::as_str));
    let (_, told) = kvferry(&cluster, &args).await;
    assert_eq!(told["hot"], 3);
    eventually("the hot ones have three, and it stops", || async {
        let (_, told) = kvferry(&cluster, &["copies", "n"]).await;
        told["lacking"] == 0 && told["in_flight"] == 0 && told["rounds"].as_u64() > Some(1)
    })
    .await;
    assert_eq!(with_copies(&cluster, 3).await, 3);
    assert_eq!(with_copies(&cluster, 2).await, 37);
    let (_, told) = kvferry(&cluster, &["copies", "n"]).await;
    assert_eq!(told["copied"], 43);
    drop(a);
    cluster.take_agent("a").kill().await;
    eventually("the copies are what is left", || async {
        with_copies(&cluster, 0).await == 0 && cluster.live_blocks("a").await.is_none()
    })
    .await;
    // And a copy is the block.
    let reader = &others[0];
    let memory = reader.region(namespace("n"), 40).await;
    let blocks: Vec<u64> = (0..40).collect();
    let pulled = reader
        .pull("n", &blocks, Some(&memory), SOON)
        .await
        .unwrap();
    for (slot, outcome) in (0..40).zip(&pulled) {
        let here = [OutcomeKind::Pulled, OutcomeKind::Local].contains(&outcome.kind());
        assert!(here, "{outcome:?}");
        assert_eq!(memory.read(slot), block(slot.into()));
    }
}

#[tokio::test]
async fn nothing_is_evicted_for_a_copy() {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a", &[]).await;
    let own = a.region(namespace("n"), 64).await;
    a.publish(&own, 0, 0..40).await;
    let b = cluster.agent("b", &[]).await;
    b.pool(namespace("n"), 16).await;
    let theirs = b.pull("n", &[0, 1], None, SOON).await.unwrap();
    assert!(
        theirs
            .iter()
            .all(|outcome| outcome.kind() == OutcomeKind::Pulled)
    );
    kvferry(&cluster, &["copies", "n", "--min", "2"]).await;
    eventually("the pool is full, and it stops", || async {
        let (_, told) = kvferry(&cluster, &["copies", "n"]).await;
        told["lacking"] == 24 && told["in_flight"] == 0
    })
    .await;
    assert_eq!(with_copies(&cluster, 2).await, 16);
    let stats = b.stats().await;
    let pool = stats.regions.iter().find(|region| region.sealed == 16);
    assert_eq!(pool.map(|region| region.evictions), Some(0));
    let owners = cluster.locate("n", &hashes(0..2)).await;
    assert!(owners.iter().all(|owners| owners.len() == 2), "they stayed");
}

#[tokio::test]
async fn a_drained_node_goes_when_others_hold_what_it_held() {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a", &[]).await;
    let own = a.region(namespace("n"), 64).await;
    a.publish(&own, 0, 0..40).await;
    // It has nothing of the namespace yet.
    let _b = cluster.agent("b", &["--pool-bytes", "1MiB"]).await;
    let drain = ["nodes", "drain", "a", "--wait", "--deadline-ms", "60000"];
    let (code, told) = kvferry(&cluster, &drain).await;
    assert_eq!(told["state"], "draining");
    assert_eq!((code, &told["drain"]["state"]), (0, &"moved".into()));
    assert_eq!(
        (&told["drain"]["left"], &told["drain"]["copied"]),
        (&0.into(), &40.into())
    );
    drop(a);
    assert_eq!(cluster.take_agent("a").terminate().await, Some(0));
    eventually("all of it is the other's", || async {
        let owners = cluster.locate("n", &hashes(0..40)).await;
        owners.iter().all(|owners| owners == &["b"])
    })
    .await;
}

#[tokio::test]
async fn a_drain_that_cannot_be_ends_at_its_deadline_and_says_what_is_left() {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a", &[]).await;
    let own = a.region(namespace("n"), 64).await;
    a.publish(&own, 0, 0..4).await;
    // It takes no copies.
    let _b = cluster.agent("b", &["--replicate=false"]).await;
    let drain = ["nodes", "drain", "a", "--wait", "--deadline-ms", "1000"];
    let (code, told) = kvferry(&cluster, &drain).await;
    assert_eq!((code, &told["drain"]["state"]), (3, &"expired".into()));
    assert_eq!(told["drain"]["left"], 4);
    let (code, told) = kvferry(&cluster, &["nodes", "drain", "a", "--undo"]).await;
    assert_eq!(
        (code, &told["state"], &told["drain"]),
        (0, &"live".into(), &Value::Null)
    );
}
