//! What real processes export is what is written about it: docs/metrics.md, and the dashboard.

use std::{collections::BTreeSet, fmt::Write, net::SocketAddr, path::PathBuf, time::Duration};

use kvferry_observe::{Family, families, read_page};
use kvferry_proto::pb::OutcomeKind;
use serde_json::Value;

use crate::{
    cluster::{Cluster, eventually},
    engine::{BLOCK_BYTES, Engine, assert_all, namespace},
};

/// Writes the tables of docs/metrics.md instead of comparing them.
const WRITE: &str = "KVFERRY_WRITE_DOCS";

pub(crate) async fn page(at: SocketAddr) -> String {
    let (status, page) = read_page(at, "/metrics").await.unwrap();
    assert_eq!(status, 200);
    assert!(page.ends_with("# EOF\n"));
    page
}

fn value(page: &str, sample: &str) -> u64 {
    let found = page
        .lines()
        .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    let text = found.unwrap_or_else(|| panic!("no {sample} in {page}"));
    text.parse().unwrap()
}

/// A coordinator and two agents that have done a little of everything, with their engines; and their
/// metrics ports.
async fn busy() -> ((Cluster, [Engine; 2]), [SocketAddr; 3]) {
    let mut cluster = Cluster::start().await;
    let a = cluster.agent("a", &[]).await;
    let b = cluster.agent("b", &["--transport", "tcp"]).await;
    let from = a.region(namespace("n"), 16).await;
    a.publish(&from, 0, 0..16).await;
    let to = b.region(namespace("n"), 32).await;
    let wanted: Vec<u64> = (0..16).collect();
    let timeout = Duration::from_secs(60);
    let outcomes = b.pull("n", &wanted, Some(&to), timeout).await.unwrap();
    assert_all(&outcomes, OutcomeKind::Pulled, "tcp");
    let ports = [
        cluster.coordinator_metrics(),
        cluster.agent_metrics("a"),
        cluster.agent_metrics("b"),
    ];
    ((cluster, [a, b]), ports)
}

#[tokio::test]
async fn an_agent_is_ready_with_a_session_and_memory() {
    let mut cluster = Cluster::start().await;
    let engine = cluster.agent("a", &[]).await;
    let at = cluster.agent_metrics("a");
    assert_eq!(read_page(at, "/healthz").await.unwrap().0, 200);
    eventually("it says that there is no memory", || async {
        let (status, why) = read_page(at, "/readyz").await.unwrap();
        status == 503 && why.contains("no memory is registered")
    })
    .await;
    let _memory = engine.region(namespace("n"), 4).await;
    eventually("it is ready", || async {
        read_page(at, "/readyz").await.unwrap().0 == 200
    })
    .await;

    cluster.take_coordinator().kill().await;
    eventually("it says that nobody knows it", || async {
        let (status, why) = read_page(at, "/readyz").await.unwrap();
        status == 503 && why.contains("session")
    })
    .await;
    assert_eq!(read_page(at, "/healthz").await.unwrap().0, 200);
    cluster.restart_coordinator().await;
    eventually("it is ready again", || async {
        read_page(at, "/readyz").await.unwrap().0 == 200
    })
    .await;
}

#[tokio::test]
async fn a_pull_is_seen_on_all_three() {
    let (running, [coordinator, a, b]) = busy().await;
    let told = page(b).await;
    let bytes = 16 * BLOCK_BYTES;
    for (sample, expected) in [
        ("pulls_total", 1),
        ("pulls_in_flight", 0),
        ("blocks_total{outcome=\"pulled\"}", 16),
        ("blocks_total{outcome=\"stale\"}", 0),
        ("pulled_bytes_total{transport=\"tcp\"}", bytes),
        ("pulled_bytes_total{transport=\"shm\"}", 0),
        ("pull_phase_duration_seconds_count{phase=\"locate\"}", 1),
        ("pull_phase_duration_seconds_count{phase=\"connect\"}", 1),
        ("pull_deadlines_total", 0),
        ("slots{kind=\"engine\",state=\"sealed\"}", 16),
        ("slots{kind=\"engine\",state=\"free\"}", 16),
        ("slots_bytes{kind=\"engine\",state=\"sealed\"}", bytes),
        ("regions", 1),
    ] {
        assert_eq!(
            value(&told, &format!("kvferry_agent_{sample}")),
            expected,
            "{sample}"
        );
    }
    let phase =
        |phase| format!("kvferry_agent_pull_phase_duration_seconds_count{{phase=\"{phase}\"}}");
    assert!(value(&told, &phase("wire")) > 0, "{told}");
    // Words came with the data.
    assert_eq!(value(&told, &phase("validate")), 0, "{told}");
    eventually("the owner has counted what it sent", || async {
        value(&page(a).await, "kvferry_agent_served_bytes_total") > bytes
    })
    .await;
    eventually("the coordinator knows of the replicas", || async {
        value(
            &page(coordinator).await,
            "kvferry_coordinator_blocks{replicas=\"2\"}",
        ) == 16
    })
    .await;
    let told = page(coordinator).await;
    assert_eq!(value(&told, "kvferry_coordinator_locate_found_total"), 16);
    assert_eq!(value(&told, "kvferry_coordinator_copies_bytes"), 2 * bytes);
    drop(running);
}

fn file(path: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), path].iter().collect()
}

fn table(all: &[Family]) -> String {
    let mut text = String::from("| metric | kind | labels | |\n| --- | --- | --- | --- |\n");
    for family in all
        .iter()
        .filter(|family| family.name.starts_with("kvferry_"))
    {
        let labels = family.labels.iter().map(|label| format!("`{label}`"));
        let labels = labels.collect::<Vec<_>>().join(", ");
        let (name, kind, help) = (
            &family.name,
            &family.kind,
            family.help.trim_end_matches('.'),
        );
        writeln!(text, "| `{name}` | {kind} | {labels} | {help} |").unwrap();
    }
    text
}

#[tokio::test]
async fn the_page_about_metrics_lists_those_there_are() {
    let (running, [coordinator, a, _]) = busy().await;
    let path = file("docs/metrics.md");
    let written = std::fs::read_to_string(&path).unwrap();
    let mut expected = String::new();
    let mut rest = written.as_str();
    for (role, at) in [("coordinator", coordinator), ("agent", a)] {
        let (begin, end) = (
            format!("<!-- {role}: begin -->\n"),
            format!("<!-- {role}: end -->"),
        );
        let (before, behind) = rest.split_once(&begin).expect("the mark where it begins");
        let (_, behind) = behind.split_once(&end).expect("the mark where it ends");
        let told = table(&families(&page(at).await));
        write!(expected, "{before}{begin}{told}{end}").unwrap();
        rest = behind;
    }
    expected.push_str(rest);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, &expected).unwrap();
    } else {
        assert!(
            written == expected,
            "docs/metrics.md is not what processes export; write it anew: {WRITE}=1 cargo test --test e2e metrics"
        );
    }
    drop(running);
}

/// Every text of these fields, wherever they are.
fn texts<'a>(value: &'a Value, fields: &[&str], found: &mut Vec<&'a str>) {
    match value {
        Value::Array(values) => values.iter().for_each(|one| texts(one, fields, found)),
        Value::Object(all) => {
            for (key, one) in all {
                match one {
                    Value::String(text) if fields.contains(&key.as_str()) => found.push(text),
                    one => texts(one, fields, found),
                }
            }
        }
        _ => {}
    }
}

/// Names of metrics in an expression of PromQL.
fn metrics(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("kvferry_") || word.starts_with("process_"))
}

#[tokio::test]
async fn the_dashboard_asks_only_for_what_there_is() {
    let (running, ports) = busy().await;
    let mut known = BTreeSet::new();
    for at in ports {
        for family in families(&page(at).await) {
            match family.kind.as_str() {
                "histogram" => known.extend(
                    ["_bucket", "_sum", "_count"].map(|suffix| format!("{}{suffix}", family.name)),
                ),
                _ => drop(known.insert(family.name)),
            }
        }
    }
    let dashboard = std::fs::read(file("ops/grafana/kvferry.json")).unwrap();
    let dashboard: Value = serde_json::from_slice(&dashboard).unwrap();
    let mut expressions = Vec::new();
    texts(
        &dashboard,
        &["expr", "query", "definition"],
        &mut expressions,
    );
    let asked: BTreeSet<&str> = expressions.iter().flat_map(|one| metrics(one)).collect();
    assert!(asked.len() > 30, "{asked:?}");
    let unknown: Vec<_> = asked
        .iter()
        .filter(|name| !known.contains(**name))
        .collect();
    assert!(unknown.is_empty(), "nobody exports {unknown:?}");
    drop(running);
}
