//! What a person at a shell sees: put, get, locate, nodes, namespaces, and the demo itself.

use crate::cluster::{Cluster, run};

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

    let (code, out, error) = run(&["nodes", "--coordinator", &coordinator, "--json"], &dir).await;
    assert_eq!(code, 0, "{error}");
    let nodes: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(nodes.as_array().map(Vec::len), Some(2), "{out}");
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
    let (code, out, error) = run(&["demo", "--bytes", "64MiB"], dir.path()).await;
    assert_eq!(code, 0, "{out}\n{error}");
    assert!(out.contains("tcp") && out.contains("shm"), "{out}");
}
