//! What a person at a shell sees: put, get, locate, nodes, namespaces, and the demo itself.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::cluster::{Cluster, SOON, eventually, run};

#[tokio::test]
async fn a_file_put_on_one_node_is_got_on_another() {
    let mut cluster = Cluster::start().await;
    cluster.agent("a", &[]).await;
    cluster.agent("b", &["--transport", "tcp"]).await;
    let dir = cluster.dir.path().to_owned();
    let coordinator = format!("http://{}", cluster.coordinator_address);
    let (a, b) = (cluster.socket("a"), cluster.socket("b"));
    let bytes: Vec<u8> = (0..3_000_000u32)
        .map(|n| n.wrapping_mul(2_654_435_761) as u8)
        .collect();
    std::fs::write(dir.join("file"), &bytes).unwrap();

    let socket = a.display().to_string();
    let (code, _, error) = run(
        &[
            "put",
            "file",
            "--namespace",
            "files",
            "--socket",
            &socket,
            "--coordinator",
            &coordinator,
            "--block-bytes",
            "64KiB",
            "--pool",
            "8MiB",
        ],
        &dir,
    )
    .await;
    assert_eq!(code, 0, "{error}");
    let socket = b.display().to_string();
    let (code, out, error) = run(
        &[
            "get",
            "file.kvf.json",
            "-o",
            "copy",
            "--socket",
            &socket,
            "--coordinator",
            &coordinator,
        ],
        &dir,
    )
    .await;
    assert_eq!(code, 0, "{out}{error}");
    assert!(std::fs::read(dir.join("copy")).unwrap() == bytes);

    eventually("both are listed", || async {
        let nodes = ["nodes", "--coordinator", &coordinator, "--json"];
        let (code, out, error) = run(&nodes, &dir).await;
        assert_eq!(code, 0, "{error}");
        let nodes: serde_json::Value = serde_json::from_str(&out).unwrap();
        nodes.as_array().map(Vec::len) == Some(2)
    })
    .await;
    let (code, out, _) = run(&["namespaces", "--coordinator", &coordinator], &dir).await;
    assert_eq!(code, 0);
    assert!(out.contains("files"), "{out}");
    let policy = [
        "namespaces",
        "policy",
        "files",
        "--coordinator",
        &coordinator,
        "--json",
    ];
    let (code, out, error) =
        run(&[&policy[..], &["--max-slot-bytes", "1MiB"]].concat(), &dir).await;
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("1048576"), "{out}");
    let (_, out, _) = run(&[&policy[..], &["--copies-wanted", "2"]].concat(), &dir).await;
    assert!(
        out.contains("1048576") && out.contains("\"copies_wanted\": 2"),
        "{out}"
    );
    let (_, out, _) = run(&[&policy[..], &["--max-slot-bytes", "0"]].concat(), &dir).await;
    assert!(
        !out.contains("1048576") && out.contains("\"copies_wanted\": 2"),
        "{out}"
    );
    let (code, out, error) = run(
        &[
            "locate",
            "--manifest",
            "file.kvf.json",
            "--coordinator",
            &coordinator,
        ],
        &dir,
    )
    .await;
    assert_eq!(code, 0, "{error}");
    assert!(out.contains('a'), "{out}");
}

#[tokio::test]
async fn the_demo_does_its_job_on_a_small_scale() {
    let dir = tempfile::tempdir().unwrap();
    // Three copies: more than /dev/shm has in many a container.
    let here = dir.path().display().to_string();
    let demo = ["demo", "--bytes", "64MiB", "--dir", &here];
    let (code, out, error) = run(&demo, dir.path()).await;
    assert_eq!(code, 0, "{out}\n{error}");
    assert!(out.contains("tcp") && out.contains("shm"), "{out}");
}

#[tokio::test]
async fn blocks_beyond_a_quota_are_said_to_be_found_by_nobody_until_it_is_raised() {
    let mut cluster = Cluster::start().await;
    cluster.agent("a", &[]).await;
    let dir = cluster.dir.path().to_owned();
    let coordinator = format!("http://{}", cluster.coordinator_address);
    let socket = cluster.socket("a").display().to_string();
    let tool = async |words: &str| {
        let reach = ["--coordinator", &coordinator, "--socket", &socket];
        let words: Vec<&str> = words.split(' ').chain(reach).collect();
        run(&words, &dir).await
    };
    std::fs::write(dir.join("file"), vec![7; 200_000]).unwrap();
    let (code, _, error) = tool("namespaces create tight --planes 1 --plane-bytes 64KiB").await;
    assert_eq!(code, 0, "{error}");
    let (code, _, error) = tool("namespaces policy tight --max-slots 3").await;
    assert_eq!(code, 0, "{error}");
    // Its manifest is written all the same: the blocks are there.
    let (code, _, error) = tool("put file -n tight --pool-bytes 1MiB --wait-ms 60000").await;
    assert!(code != 0 && error.contains("kvferry stats"), "{error}");
    let (_, out, _) = tool("stats").await;
    assert!(out.contains("quota"), "{out}");
    let (code, _, error) = tool("namespaces policy tight --max-slots 0").await;
    assert_eq!(code, 0, "{error}");
    // The agent is asked to declare it again.
    let deadline = Instant::now() + SOON;
    while tool("locate --manifest file.kvf.json").await.0 != 0 {
        assert!(Instant::now() < deadline, "nobody finds the blocks");
        sleep(Duration::from_millis(50)).await;
    }
    let (code, out, error) = tool("put file -n tight --wait-ms 60000").await;
    assert_eq!(code, 0, "{out}{error}");
}
