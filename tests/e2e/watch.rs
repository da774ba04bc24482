//! Who watches a namespace hears of every copy that comes and goes, and of a restart.

use kvferry_proto::pb;
use serde_json::Value;

use crate::{
    cluster::{Cluster, eventually, pack, run},
    engine::{hashes, namespace},
};

/// What `kvferry watch` prints: exit code, lines, and stderr.
async fn watch(cluster: &Cluster, more: &[&str]) -> (i32, Vec<Value>, String) {
    let coordinator = format!("http://{}", cluster.coordinator_address);
    let mut args = vec!["watch", "n", "--json", "--coordinator", &coordinator];
    args.extend(more);
    let (code, out, err) = run(&args, cluster.dir.path()).await;
    let lines = out.lines().map(|line| serde_json::from_str(line).unwrap());
    (code, lines.collect(), err)
}

fn events(lines: &[Value], event: &str) -> usize {
    lines.iter().filter(|line| line["event"] == event).count()
}

#[tokio::test]
async fn a_watcher_is_told_what_is_there_and_of_a_restart() {
    let mut cluster = Cluster::start().await;
    let mut a = cluster.agent("a", &[]).await;
    let b = cluster.agent("b", &[]).await;
    let ours = a.region(namespace("n"), 64).await;
    a.publish(&ours, 0, 0..40).await;
    let theirs = b.region(namespace("n"), 64).await;
    b.publish(&theirs, 0, 30..50).await;
    a.api
        .evict(pb::EvictRequest {
            namespace: "n".into(),
            hashes: Some(pack(&hashes(0..10))),
        })
        .await
        .unwrap();
    eventually("what went is known", || async {
        cluster.live_blocks("a").await == Some(30) && cluster.live_blocks("b").await == Some(20)
    })
    .await;

    let (code, lines, err) = watch(&cluster, &["--once"]).await;
    assert_eq!(code, 0, "{err}");
    let counts = ["node", "region", "added", "removed"].map(|event| events(&lines, event));
    assert_eq!(counts, [2, 2, 50, 0]);
    let last = lines.last().unwrap();
    assert_eq!(last["event"], "synced");
    let from = last["from"].as_str().unwrap().to_owned();

    cluster.take_coordinator().kill().await;
    cluster.restart_coordinator().await;
    eventually("the agents are back", || async {
        cluster.live_blocks("a").await == Some(30)
    })
    .await;
    let (code, _, err) = watch(&cluster, &["--from", &from]).await;
    assert_eq!(code, 1);
    assert!(err.contains("restarted") && err.contains("--from"), "{err}");
}
