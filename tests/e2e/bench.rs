//! The benchmarks run, from the command line to their reports, and their figures are there. Nothing here
//! asks how fast anything is.

use std::{fmt::Write, path::Path};

use serde_json::Value;

use crate::cluster::run;

/// A small trace: conversations of three turns that share their first block.
fn trace(path: &Path) {
    let mut text = String::new();
    for n in 0..30u64 {
        let (turn, conversation) = (n / 10, n % 10);
        let own: Vec<_> = (0..=turn)
            .map(|block| 10 + 10 * conversation + block)
            .collect();
        let ids: Vec<_> = std::iter::once(0)
            .chain(own)
            .map(|id| id.to_string())
            .collect();
        let (at, tokens) = (40 * n, 512 * ids.len() as u64 - 100);
        let _ = writeln!(
            text,
            "{{\"timestamp\": {at}, \"input_length\": {tokens}, \"output_length\": 7, \"hash_ids\": [{}]}}",
            ids.join(", ")
        );
    }
    std::fs::write(path, text).unwrap();
}

fn lines(out: &str) -> Vec<Value> {
    let line = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    out.lines().map(line).collect()
}

fn number(value: &Value, path: &str) -> f64 {
    let found = value.pointer(path).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("no number at {path} in {value}"))
}

fn is_a_page(path: &Path) {
    let page = std::fs::read_to_string(path).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    assert!(page.contains("<svg") && !page.contains("NaN") && !page.contains("http"));
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
}

#[tokio::test]
async fn a_trace_is_replayed_through_real_agents() {
    let dir = tempfile::tempdir().unwrap();
    trace(&dir.path().join("trace"));
    let words = "bench replay trace --nodes 2 --block-bytes 4KiB --pool 1MiB --prefill-tokens-per-s 1000000 --json --report page.html";
    let (code, out, error) = run(&words.split(' ').collect::<Vec<_>>(), dir.path()).await;
    assert_eq!(code, 0, "{out}\n{error}");
    let results = lines(&out);
    let [result] = results.as_slice() else {
        panic!("one replay, one line: {out}");
    };
    assert_eq!(result["means"], "processes");
    assert_eq!(number(result, "/requests"), 30.0);
    let blocks = ["local", "remote", "miss"].map(|part| number(result, &format!("/blocks/{part}")));
    assert_eq!(blocks.iter().sum::<f64>(), 10.0 * (2.0 + 3.0 + 4.0));
    // A conversation's turns take turns between the nodes, so some of it must be pulled.
    assert!(blocks[0] > 0.0 && blocks[1] > 0.0, "{result}");
    assert!(number(result, "/hit") <= number(result, "/best_hit"));
    assert_eq!(number(result, "/bytes_pulled") % 4096.0, 0.0);
    let found = 4096.0 * (blocks[0] + blocks[1]);
    assert!(number(result, "/verified_bytes") >= found, "{result}");
    assert!(number(result, "/pull_us/p50") > 0.0);
    is_a_page(&dir.path().join("page.html"));
}

#[tokio::test]
async fn a_trace_is_replayed_on_paper() {
    let dir = tempfile::tempdir().unwrap();
    trace(&dir.path().join("trace"));
    let words = "bench replay trace --simulate --nodes 2,300 --copies 20 --pool 1GiB,64GiB --route prefix,round-robin --json --report page.html";
    let (code, out, error) = run(&words.split(' ').collect::<Vec<_>>(), dir.path()).await;
    assert_eq!(code, 0, "{out}\n{error}");
    let results = lines(&out);
    assert_eq!(results.len(), 8, "{out}");
    for result in &results {
        assert_eq!(result["means"], "simulator");
        assert!(
            result["verified_bytes"].is_null(),
            "there are no bytes: {result}"
        );
        assert_eq!(number(result, "/requests"), 600.0);
        assert_eq!(number(result, "/block_bytes"), f64::from(64 << 20));
        assert!(number(result, "/network/coordinator/locates") > 0.0);
        assert!(number(result, "/hit") <= number(result, "/best_hit"));
    }
    is_a_page(&dir.path().join("page.html"));

    let (code, out, error) = run(
        &["bench", "replay", "trace", "--simulate", "--pool", "1MiB"],
        dir.path(),
    )
    .await;
    assert_eq!(code, 1, "{out}");
    assert!(error.contains("no room for a block"), "{error}");
}

#[tokio::test]
async fn a_coordinator_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let words = "bench coordinator --quick --json --nodes 3 --parts publish,locate,open,claims,watch,churn,vanish";
    let (code, out, error) = run(&words.split(' ').collect::<Vec<_>>(), dir.path()).await;
    assert_eq!(code, 0, "{out}\n{error}");
    let figures = lines(&out);
    for name in [
        "publish through sessions",
        "locate of 1000, full reader",
        "locate of 64, light reader",
        "open loop, locate of 64",
        "open loop, locate of 64: p99.9",
        "open loop, locate of 1: p50",
        "claims of 64",
        "claims of 64: p99",
        "watch: what is there at the start",
        "watch: changes",
        "watch: p99",
        "churn",
        "churn, locate of 64: p99 meanwhile",
        "vanished node invisible",
    ] {
        let figure = figures.iter().find(|figure| figure["name"] == name);
        let figure = figure.unwrap_or_else(|| panic!("no {name} in {out}"));
        assert!(number(figure, "/median") > 0.0, "{figure}");
    }
    for wrong in [
        "--blocks 1.5M",
        "--rate 0",
        "--parts nothing",
        "--seconds 0",
    ] {
        let words = ["bench", "coordinator"].into_iter().chain(wrong.split(' '));
        let (code, ..) = run(&words.collect::<Vec<_>>(), dir.path()).await;
        assert_eq!(code, 2, "{wrong}");
    }
}

#[tokio::test]
async fn transfers_are_measured() {
    let dir = tempfile::tempdir().unwrap();
    let words = "bench transfer --quick --publish --block-bytes 1MiB --batch 8 --slice-ms 20 --transport tcp,tcp-tls,shm --json --report page.html";
    let (code, out, error) = run(&words.split(' ').collect::<Vec<_>>(), dir.path()).await;
    assert_eq!(code, 0, "{out}\n{error}");
    let points = lines(&out);
    let transports: Vec<_> = points
        .iter()
        .map(|p| p["point"]["transport"].as_str())
        .collect();
    assert_eq!(transports, [Some("tcp"), Some("tcp-tls"), Some("shm")]);
    let yardsticks: Vec<_> = points.iter().map(|p| &p["yardsticks"][0]["name"]).collect();
    assert_eq!(yardsticks[0], yardsticks[1], "the same beside both");
    for point in &points {
        assert!(number(point, "/gb_per_s/median") > 0.0);
        assert!(number(point, "/batches") >= 1.0);
        // Every call's blocks are compared, those of the last round at least.
        assert!(
            number(point, "/verified_bytes") >= f64::from(8 << 20),
            "{point}"
        );
        assert!(number(point, "/yardsticks/0/ratio/median") > 0.0);
    }
    is_a_page(&dir.path().join("page.html"));
    std::fs::write(dir.path().join("run.jsonl"), &out).unwrap();
    let same = ["bench", "compare", "run.jsonl", "run.jsonl"];
    let (code, out, error) = run(&same, dir.path()).await;
    assert_eq!(code, 0, "{out}\n{error}");
}

#[tokio::test]
async fn rdma_is_refused_where_there_is_none() {
    // Where there is a device, tests/rdma measures over it.
    let devices = std::fs::read_dir("/sys/class/infiniband");
    if devices.is_ok_and(|mut devices| devices.next().is_some()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (code, out, error) = run(
        &["bench", "transfer", "--transport", "rdma", "--quick"],
        dir.path(),
    )
    .await;
    assert_eq!(code, 1, "{out}");
    assert!(error.contains("rdma cannot be measured here"), "{error}");
}
