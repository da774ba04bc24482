//! Never open: who should not get in, or may not do what he asks, tries to, and fails; real processes throughout.
//! Handshakes by themselves (expired, of another CA, never ending, ...) are tried in `security/tests/door.rs`.

mod doors;
mod payload;
mod rights;
mod world;

use std::fs;

use kvferry_proto::{
    Reason,
    pb::{self, watch_message::Message},
    reason_of,
};
use tokio::time::timeout;
use tonic::Code;

use self::world::{World, reason};
use crate::{
    cluster::{SOON, eventually, run},
    metrics::page,
};

/// `kvferry keys` with these words, in the world's folder.
async fn keys(world: &World, words: &str) {
    let args: Vec<&str> = ["keys"].into_iter().chain(words.split(' ')).collect();
    let (code, _, error) = run(&args, world.path()).await;
    assert_eq!(code, 0, "{words}: {error}");
}

/// The flags of somebody with a certificate of that name.
fn as_(name: &str) -> Vec<String> {
    let file = |extension| format!("kvferry-keys/{name}.{extension}");
    let ca = "kvferry-keys/ca.pem".to_owned();
    let (cert, key) = (file("pem"), file("key"));
    ["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key]
        .map(str::to_owned)
        .to_vec()
}

#[tokio::test]
async fn a_cluster_is_secured_by_a_few_commands() {
    let mut world = World::new();
    keys(&world, "ca").await;
    for name in ["coordinator --ip 127.0.0.1", "a", "b", "admin"] {
        keys(&world, &format!("cert {name}")).await;
    }
    let mut flags = as_("coordinator");
    flags.extend(["--policy", "kvferry-keys/policy.toml"].map(str::to_owned));
    world.coordinator(&flags).await;
    let url = format!("https://{}", world.address());
    world.agent("a", &url, &as_("a")).await;
    world.agent("b", &url, &as_("b")).await;
    // The right certificate, and another node's name.
    world.agent("c", &url, &as_("a")).await;
    let socket = |node: &str| {
        world
            .path()
            .join(format!("{node}.sock"))
            .display()
            .to_string()
    };
    let (socket_a, socket_b) = (socket("a"), socket("b"));

    let tool = async |words: &[&str], who: Option<&str>| {
        let mut args: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        args.extend(["--coordinator".to_owned(), url.clone()]);
        args.extend(who.map(as_).unwrap_or_default());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        run(&args, world.path()).await
    };
    let bytes: Vec<u8> = (0..200_000u32).map(|n| (n * 7) as u8).collect();
    fs::write(world.path().join("file"), &bytes).unwrap();
    let put = [
        "put",
        "file",
        "-n",
        "n",
        "--block-bytes",
        "64KiB",
        "--pool",
        "8MiB",
        "--socket",
        &socket_a,
    ];
    let (code, _, error) = tool(&put, Some("a")).await;
    assert_eq!(code, 0, "{error}");
    let get = ["get", "file.kvf.json", "-o", "copy", "--socket", &socket_b];
    let (code, _, error) = tool(&get, Some("b")).await;
    assert_eq!(code, 0, "{error}");
    assert!(fs::read(world.path().join("copy")).unwrap() == bytes);

    world.logged("may not open a session for node c").await;
    eventually("those two are listed, and nobody else", || async {
        let (code, nodes, error) = tool(&["nodes", "--json"], Some("admin")).await;
        assert_eq!(code, 0, "{error}");
        let nodes: serde_json::Value = serde_json::from_str(&nodes).unwrap();
        let names = nodes.as_array().unwrap().iter();
        names.map(|n| n["node"].as_str()).eq([Some("a"), Some("b")])
    })
    .await;
    let (code, _, error) = tool(&["namespaces", "delete", "n", "--force"], Some("a")).await;
    assert_eq!(code, 1);
    assert!(
        error.contains("a may not delete the namespace in namespace n"),
        "{error}"
    );
    world.logged("a may not delete the namespace").await;

    // Each says what happened, to whom, and what to do.
    let (code, _, error) = tool(&["nodes"], None).await;
    assert_eq!(code, 1);
    assert!(error.contains("--tls-ca"), "{error}");
    let clear = format!("http://{}", world.address());
    let (code, _, error) = run(&["nodes", "--coordinator", &clear], world.path()).await;
    assert_eq!(code, 1);
    assert!(error.contains("speaks TLS only: use https://"), "{error}");
    let no_certificate = [
        "nodes",
        "--coordinator",
        &url,
        "--tls-ca",
        "kvferry-keys/ca.pem",
    ];
    let (code, _, error) = run(&no_certificate, world.path()).await;
    assert_eq!(code, 1);
    assert!(
        error.contains("wants a client certificate") && error.contains("--tls-cert"),
        "{error}"
    );
    let (_, port) = url.rsplit_once(':').unwrap();
    let other_name = format!("https://localhost:{port}");
    let mut args = vec!["nodes", "--coordinator", &other_name];
    let admin = as_("admin");
    args.extend(admin.iter().map(String::as_str));
    let (code, _, error) = run(&args, world.path()).await;
    assert_eq!(code, 1);
    assert!(
        error.contains("is for coordinator") && error.contains("not for localhost"),
        "{error}"
    );
}

#[tokio::test]
async fn a_changed_policy_counts_at_once_and_a_broken_one_does_not() {
    let mut world = World::new();
    let reader = world.token("reader");
    let policy = |rights: &str| world::identity("reader", "", rights);
    let may_read = "{ namespace = \"n\", allow = [\"read\", \"write\"] }";
    world.policy(&policy(may_read));
    world
        .coordinator(&["--policy".to_owned(), "policy.toml".to_owned()])
        .await;
    let mut reads = world.as_token(&reader).await;
    let create = pb::CreateNamespaceRequest {
        spec: Some(crate::engine::namespace("n")),
    };
    reads.coordinator.create_namespace(create).await.unwrap();
    let request = pb::WatchRequest {
        namespace: "n".to_owned(),
        ..pb::WatchRequest::default()
    };
    let mut watching = reads
        .watch
        .watch(request.clone())
        .await
        .unwrap()
        .into_inner();
    let first = watching.message().await.unwrap().unwrap();
    assert!(matches!(first.message, Some(Message::Started(_))));

    // Broken: the old rules hold, and it is told in the log and by a metric.
    let metrics = world.metrics();
    assert!(
        page(metrics)
            .await
            .contains("kvferry_coordinator_policy_bad 0")
    );
    world.policy("[[identity]]\nname = \"reader\"\n");
    eventually("a bad policy is told of", || async {
        page(metrics)
            .await
            .contains("kvferry_coordinator_policy_bad 1")
    })
    .await;
    world.logged("the policy changed and is of no use").await;
    reads.watch.watch(request.clone()).await.unwrap();

    world.policy(&policy("{ namespace = \"other\", allow = [\"read\"] }"));
    let ended = timeout(SOON, async {
        loop {
            match watching.message().await {
                Ok(Some(_)) => {}
                other => return other.unwrap_err(),
            }
        }
    });
    let ended = ended.await.expect("a stream that is open is ended, too");
    assert_eq!(
        reason(&ended),
        (Code::PermissionDenied, Some(Reason::PermissionDenied))
    );
    let refused = reads.watch.watch(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(
        page(metrics)
            .await
            .contains("kvferry_coordinator_policy_bad 0")
    );

    world.policy("");
    eventually("who is in the policy no more is a stranger", || async {
        let mut coordinator = reads.coordinator.clone();
        let listed = coordinator
            .list_namespaces(pb::ListNamespacesRequest {})
            .await;
        listed.is_err_and(|status| reason_of(&status) == Some(Reason::Unauthenticated))
    })
    .await;
}

#[tokio::test]
async fn an_agent_starts_anew_when_its_rights_change() {
    let mut world = World::new();
    let token = world.token("agent");
    let rights = |allow: &str| {
        let rights = format!("{{ namespace = \"n\", allow = [{allow}] }}");
        world::identity("agent", "node = \"a\"", &rights)
    };
    world.policy(&rights("\"read\", \"write\""));
    world
        .coordinator(&["--policy".to_owned(), "policy.toml".to_owned()])
        .await;
    let url = format!("http://{}", world.address());
    let flags = ["--token-file".to_owned(), token.clone()];
    let engine = world.agent("a", &url, &flags).await;
    let memory = engine.region(crate::engine::namespace("n"), 4).await;
    engine.publish(&memory, 0, 0..3).await;
    let reads = world.as_token(&token).await;
    let found = || async {
        let locate = pb::LocateRequest {
            namespace: "n".to_owned(),
            hashes: Some(crate::cluster::pack(&crate::engine::hashes(0..3))),
            ..pb::LocateRequest::default()
        };
        let answer = reads.coordinator.clone().locate(locate).await.unwrap();
        answer.into_inner().owner_index.len()
    };
    eventually("its blocks are found", || async { found().await == 3 }).await;
    world.policy(&rights("\"read\""));
    eventually("what it may not publish any more is gone", || async {
        found().await == 0
    })
    .await;
    world
        .logged("agent may not publish blocks in namespace n")
        .await;
    world.policy(&rights("\"read\", \"write\""));
    eventually("it is there again", || async { found().await == 3 }).await;
}

#[tokio::test]
async fn secrets_are_in_no_log_and_no_metric() {
    let mut world = World::new();
    keys(&world, "ca").await;
    keys(&world, "cert coordinator --ip 127.0.0.1").await;
    let token = world.token("agent");
    let rights = "{ namespace = \"*\", allow = [\"read\", \"write\"] }";
    world.policy(&world::identity("agent", "node = \"a\"", rights));
    let file = |name: &str| format!("kvferry-keys/{name}");
    let flags = [
        "--log".to_owned(),
        "trace".to_owned(),
        "--policy".to_owned(),
        "policy.toml".to_owned(),
        "--tls-cert".to_owned(),
        file("coordinator.pem"),
        "--tls-key".to_owned(),
        file("coordinator.key"),
    ];
    world.coordinator(&flags).await;
    let url = format!("https://{}", world.address());
    let flags = [
        "--log",
        "trace",
        "--tls-ca",
        "kvferry-keys/ca.pem",
        "--token-file",
        &token,
    ];
    let engine = world.agent("a", &url, &flags.map(str::to_owned)).await;
    let memory = engine.region(crate::engine::namespace("n"), 4).await;
    engine.publish(&memory, 0, 0..3).await;
    let status = || async { engine.api.clone().stats(pb::StatsRequest::default()).await };
    eventually("it has a session", || async {
        let stats = status().await.unwrap().into_inner();
        stats.coordinators.iter().any(|one| one.connected)
    })
    .await;
    let mut told = page(world.metrics()).await;
    told += &page(world.agent_metrics("a")).await;
    told += &world.logs();
    assert!(told.len() > 10_000, "there is something to look through");
    let read = |path: String| fs::read_to_string(world.path().join(path)).unwrap();
    let token = read(token);
    let key = read(file("coordinator.key"));
    let key = key.lines().nth(1).expect("a line of the key");
    for secret in [token.trim(), key] {
        assert!(!told.contains(secret), "a secret was told");
    }
}

#[tokio::test]
async fn nothing_listens_beyond_loopback_in_clear_unless_told_so() {
    let dir = tempfile::tempdir().unwrap();
    for command in [
        &["coordinator", "--listen", "192.0.2.1:0"][..],
        &["agent", "--listen-peer", "192.0.2.1:0"],
        &["agent", "--listen-data", "192.0.2.1:0"],
    ] {
        let (code, _, error) = run(command, dir.path()).await;
        assert_eq!(code, 2, "{error}");
        assert!(
            error.contains("--insecure") && error.contains("--tls-cert"),
            "{error}"
        );
    }
    let metrics = [
        "coordinator",
        "--listen",
        "127.0.0.1:0",
        "--listen-metrics",
        "192.0.2.1:0",
    ];
    let (code, _, error) = run(&metrics, dir.path()).await;
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("--insecure-metrics"), "{error}");
    // A policy that makes no sense is no start.
    fs::write(dir.path().join("policy.toml"), "[[identity]]\n").unwrap();
    let policy = [
        "coordinator",
        "--listen",
        "127.0.0.1:0",
        "--policy",
        "policy.toml",
    ];
    let (code, _, error) = timeout(SOON, run(&policy, dir.path())).await.unwrap();
    assert_eq!(code, 1, "{error}");
    assert!(
        error.contains("policy.toml") && error.contains("identity 1"),
        "{error}"
    );
}
