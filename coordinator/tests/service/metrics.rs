//! The metrics port, beside a session and some calls.

use kvferry_coordinator::{Coordinator, CoordinatorConfig, MetricsListen, StartError};
use kvferry_observe::{families, read_page};
use kvferry_proto::pb::{self, agent_message::Message as Said};

use crate::{
    Running,
    agent::{Agent, hello, sealed},
    config, locate, start,
};

async fn page(running: &Running) -> String {
    let (status, page) = read_page(running.metrics, "/metrics").await.unwrap();
    assert_eq!(status, 200);
    page
}

/// The sample of this name and these labels.
fn value(page: &str, sample: &str) -> u64 {
    let found = page
        .lines()
        .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    let text = found.unwrap_or_else(|| panic!("no {sample} in {page}"));
    text.parse().unwrap()
}

#[tokio::test]
async fn what_happens_is_counted_once() {
    let mut running = start().await;
    assert_eq!(read_page(running.metrics, "/readyz").await.unwrap().0, 200);
    assert_eq!(read_page(running.metrics, "/healthz").await.unwrap().0, 200);

    let mut one = Agent::join(&mut running, "a", &[1, 2, 3]).await;
    let mut two = Agent::join(&mut running, "b", &[1, 2]).await;
    one.say(Said::Heartbeat(pb::Heartbeat {
        number: 1,
        stale_blocks: 7,
        ..pb::Heartbeat::default()
    }))
    .await;
    one.hear().await;
    // A gap.
    two.delta(5, sealed(&[9])).await;
    two.hear().await;

    let prefix = pb::LocateRequest {
        mode: pb::LocateMode::Prefix.into(),
        ..locate(&[1, 2, 9, 3])
    };
    running.client.locate(prefix).await.unwrap();
    running.client.locate(locate(&[3, 9])).await.unwrap();
    let missing = pb::DescribeNodeRequest { node: "c".into() };
    running.client.describe_node(missing).await.unwrap_err();

    let told = page(&running).await;
    for (sample, expected) in [
        ("requests_total{method=\"Locate\",outcome=\"ok\"}", 2),
        ("requests_total{method=\"Locate\",outcome=\"exhausted\"}", 0),
        (
            "requests_total{method=\"DescribeNode\",outcome=\"refused\"}",
            1,
        ),
        ("requests_total{method=\"Session\",outcome=\"ok\"}", 2),
        (
            "request_duration_seconds_count{method=\"Locate\",outcome=\"ok\"}",
            2,
        ),
        ("locate_hashes_total", 6),
        ("locate_found_total", 3),
        ("stale_reports_total", 7),
        ("blocks{replicas=\"1\"}", 1),
        ("blocks{replicas=\"2\"}", 2),
        ("copies", 5),
        ("copies_bytes", 5 * 64),
        ("copies_added_total", 5),
        ("sessions", 2),
        ("nodes", 2),
        ("nodes_hidden", 0),
        ("namespaces", 1),
        ("slots", 32),
        ("session_messages_total{kind=\"hello\"}", 2),
        ("session_messages_total{kind=\"heartbeat\"}", 1),
        ("resyncs_total{reason=\"hello\"}", 2),
        ("resyncs_total{reason=\"gap\"}", 1),
        ("limit{of=\"sessions\"}", 8_192),
    ] {
        let sample = format!("kvferry_coordinator_{sample}");
        assert_eq!(value(&told, &sample), expected, "{sample}");
    }

    // An end of each kind.
    one.say(Said::Goodbye(pb::Goodbye {})).await;
    one.end().await.unwrap();
    let mut newer = Agent::open(&mut running, hello("b", 2)).await;
    newer.welcome().await;
    two.end().await.unwrap_err();
    let told = page(&running).await;
    for (sample, expected) in [
        ("session_ends_total{cause=\"goodbye\"}", 1),
        ("session_ends_total{cause=\"fenced\"}", 1),
        ("session_ends_total{cause=\"lost\"}", 0),
        ("node_removals_total{cause=\"goodbye\"}", 1),
        ("node_removals_total{cause=\"fenced\"}", 1),
        ("sessions", 1),
    ] {
        let sample = format!("kvferry_coordinator_{sample}");
        assert_eq!(value(&told, &sample), expected, "{sample}");
    }
    running.stop().await;
}

/// What never was in a deployment with a million namespaces is a label for each.
#[tokio::test]
async fn no_label_names_what_there_may_be_many_of() {
    let mut running = start().await;
    let _agent = Agent::join(&mut running, "a", &[1]).await;
    for family in families(&page(&running).await) {
        for label in family.labels {
            let known = [
                "method", "outcome", "replicas", "kind", "cause", "reason", "of", "state",
            ];
            assert!(known.contains(&label.as_str()), "{}: {label}", family.name);
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn a_metrics_port_in_use_leaves_nothing_bound() {
    let running = start().await;
    let config = CoordinatorConfig {
        listen_metrics: MetricsListen::At(running.metrics),
        ..config()
    };
    let error = Coordinator::bind(&config).unwrap_err();
    assert!(matches!(error, StartError::Metrics(_)), "{error}");
    let off = CoordinatorConfig {
        listen_metrics: MetricsListen::Off,
        ..config
    };
    assert_eq!(Coordinator::bind(&off).unwrap().metrics_addr(), None);
    running.stop().await;
}
