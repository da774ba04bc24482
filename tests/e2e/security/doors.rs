//! Doors of one host: the local socket is its users', and what is left open is said at every start.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Output, Stdio},
};

use tokio::{process::Command, time::timeout};

use super::{World, as_, keys};
use crate::cluster::{SOON, can_run_as, eventually, run};

/// The user that nobody is.
const NOBODY: u32 = 65_534;

/// `kvferry stats` of an agent, by that user.
async fn stats_as(uid: u32, socket: &Path) -> (bool, String) {
    let asked = Command::new(env!("CARGO_BIN_EXE_kvferry"))
        .args(["stats", "--socket"])
        .arg(socket)
        .uid(uid)
        .current_dir("/")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let Output { status, stderr, .. } = timeout(SOON, asked).await.unwrap().unwrap();
    (
        status.success(),
        String::from_utf8_lossy(&stderr).into_owned(),
    )
}

#[tokio::test]
async fn another_users_process_gets_no_word_at_the_local_socket() {
    if !can_run_as(NOBODY).await {
        return;
    }
    let mut world = World::new();
    fs::set_permissions(world.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let words = |flag: &str, user: u32| vec![flag.to_owned(), user.to_string()];
    let nowhere = "http://127.0.0.1:9";
    // The file keeps others away; where some are let in, whoever connects is asked who he is.
    world.agent("alone", nowhere, &[]).await;
    world
        .agent("other", nowhere, &words("--socket-users", NOBODY - 1))
        .await;
    world
        .agent("his", nowhere, &words("--socket-users", NOBODY))
        .await;
    let socket = |node: &str| world.path().join(format!("{node}.sock"));
    for node in ["alone", "other"] {
        let (answered, error) = stats_as(NOBODY, &socket(node)).await;
        assert!(!answered, "{node}: {error}");
        let (answered, error) = stats_as(0, &socket(node)).await;
        assert!(answered, "{node}: {error}");
    }
    eventually("it is logged", || async {
        let log = world.log("other");
        let mut audit = log.lines().filter(|line| line.contains("audit"));
        audit.any(|line| {
            line.contains("may not use the local API") && line.contains(&NOBODY.to_string())
        })
    })
    .await;
    let (answered, error) = stats_as(NOBODY, &socket("his")).await;
    assert!(answered, "{error}");
}

/// What a daemon logs at its start, in a network of its own, where all addresses are nobody's.
async fn log_of_start(args: &[&str], dir: &Path) -> String {
    let log = dir.join("log");
    let mut child = Command::new("unshare")
        .args(["--net", env!("CARGO_BIN_EXE_kvferry")])
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let read = || fs::read_to_string(&log).unwrap_or_default();
    // Said before it is ready, so that what is not there then never comes.
    eventually("it started", || async { read().contains("is ready") }).await;
    child.kill().await.unwrap();
    read()
}

#[tokio::test]
async fn what_is_left_open_is_said_at_every_start() {
    let unshared = Command::new("unshare")
        .args(["--net", "true"])
        .stderr(Stdio::null())
        .status();
    if !unshared.await.is_ok_and(|status| status.success()) {
        println!(
            "skipped: this user may not make a network to listen in (run as root, with util-linux)"
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("a.sock").display().to_string();
    let coordinator = [
        "coordinator",
        "--listen",
        "0.0.0.0:7400",
        "--insecure",
        "--insecure-metrics",
        "--listen-metrics",
        "0.0.0.0:7409",
    ];
    let agent = [
        "agent",
        "--socket",
        &socket,
        "--listen-peer",
        "0.0.0.0:7401",
        "--listen-data",
        "0.0.0.0:7402",
        "--advertise-host",
        "192.0.2.1",
        "--insecure",
        "--insecure-metrics",
        "--listen-metrics",
        "0.0.0.0:7403",
    ];
    for _ in 0..2 {
        let log = log_of_start(&coordinator, dir.path()).await;
        for warning in [
            "insecure: whoever reaches this port can read and change everything",
            "insecure: whoever reaches this port can read the metrics",
        ] {
            assert_eq!(log.matches(warning).count(), 1, "{warning}: {log}");
        }
        let log = log_of_start(&agent, dir.path()).await;
        for warning in [
            "insecure: listen_peer asks nobody who they are",
            "insecure: listen_data asks nobody who they are",
            "insecure: whoever reaches this port can read the metrics",
        ] {
            assert_eq!(log.matches(warning).count(), 1, "{warning}: {log}");
        }
    }
}

/// The coordinator may hang up before its words are read.
#[tokio::test]
async fn who_shows_no_certificate_is_always_told_so() {
    let mut world = World::new();
    keys(&world, "ca").await;
    keys(&world, "cert coordinator --ip 127.0.0.1").await;
    world.coordinator(&as_("coordinator")).await;
    let url = format!("https://{}", world.address());
    let args = [
        "nodes",
        "--coordinator",
        &url,
        "--tls-ca",
        "kvferry-keys/ca.pem",
    ];
    for _ in 0..20 {
        let asked = timeout(SOON, run(&args, world.path()));
        let (code, _, error) = asked.await.unwrap();
        assert_eq!(code, 1);
        assert!(
            error.contains("wants a client certificate") && error.contains("--tls-cert"),
            "{error}"
        );
    }
}
