//! The HTTP port, as callers see it: polite ones and others.

// clippy.toml lets tests unwrap; it does not see that helpers beside them are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kvferry_observe::{
    BindError, ByLabel, ByLabels, Counter, Histogram, MetricsServer, NotReady, Observed, Page,
    families, label,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    time::timeout,
};

label! {
    /// A label.
    enum Colour("colour") {
        /// One.
        Red = "red",
        /// Another.
        Blue = "blue",
    }
}

#[derive(Default)]
struct Fake {
    ready: AtomicBool,
    seen: ByLabel<Colour, Counter>,
    took: ByLabels<Colour, Colour, Histogram>,
}

impl Observed for Fake {
    fn tell(&self, page: &mut Page<'_>) -> fmt::Result {
        page.counter("fake_sent_bytes_total", "Bytes sent", 7)?;
        page.counters("fake_seen_total", "Seen", &self.seen)?;
        page.gauges_of("fake_up", "Up", [([("peer", "http://a:1")], 1)])?;
        page.histograms_seen("fake_took_seconds", "Time", &self.took)
    }

    fn ready(&self) -> Result<(), NotReady> {
        match self.ready.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("not yet".into()),
        }
    }
}

struct Running {
    at: SocketAddr,
    fake: Arc<Fake>,
    _stop: oneshot::Sender<()>,
}

fn start() -> Running {
    let server = MetricsServer::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let at = server.local_addr();
    let fake = Arc::new(Fake::default());
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(server.serve(Arc::clone(&fake) as _, async {
        let _: Result<(), _> = stopped.await;
    }));
    Running {
        at,
        fake,
        _stop: stop,
    }
}

/// Sends bytes and reads until the other end closes.
async fn say(at: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(90), stream.read_to_end(&mut answer));
    // A reset is an end, too.
    let _ = read.await.expect("the server closes");
    String::from_utf8(answer).unwrap()
}

async fn get(at: SocketAddr, path: &str) -> String {
    say(
        at,
        format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes(),
    )
    .await
}

#[tokio::test]
async fn pages_say_what_they_are_for() {
    let running = start();
    running.fake.seen.of(Colour::Blue).add(3);
    let took = running.fake.took.of(Colour::Red, Colour::Blue);
    took.observe(Duration::from_millis(2));
    let page = get(running.at, "/metrics").await;
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert!(page.contains("content-type: application/openmetrics-text; version=1.0.0"));
    for line in [
        "# TYPE fake_sent_bytes counter",
        "# UNIT fake_sent_bytes bytes",
        "fake_sent_bytes_total 7",
        "fake_seen_total{colour=\"red\"} 0",
        "fake_seen_total{colour=\"blue\"} 3",
        "fake_up{peer=\"http://a:1\"} 1",
        "fake_took_seconds_sum{a} 0.002",
        "fake_took_seconds_bucket{le=\"0.001\",a} 0",
        "fake_took_seconds_bucket{le=\"0.0025\",a} 1",
        "fake_took_seconds_bucket{le=\"+Inf\",a} 1",
        "fake_took_seconds_count{a} 1",
        "# EOF",
    ] {
        let line = line.replace("a}", "colour=\"red\",colour=\"blue\"}");
        assert!(page.lines().any(|told| told == line), "no {line} in {page}");
    }
    // What never was is left out of the large ones.
    assert_eq!(page.matches("fake_took_seconds_count").count(), 1);
    assert!(page.contains("process_resident_memory_bytes "));

    let body = page.split_once("\r\n\r\n").unwrap().1;
    let read_back = families(body);
    let names: Vec<_> = read_back
        .iter()
        .map(|family| family.name.as_str())
        .collect();
    assert_eq!(
        names[..4],
        [
            "fake_sent_bytes_total",
            "fake_seen_total",
            "fake_up",
            "fake_took_seconds"
        ]
    );
    assert_eq!(read_back[2].labels, ["peer"]);
    assert_eq!(read_back[3].kind, "histogram");
}

#[tokio::test]
async fn ready_or_the_reason_why_not() {
    let running = start();
    assert!(get(running.at, "/healthz").await.ends_with("\r\n\r\nok\n"));
    let page = get(running.at, "/readyz").await;
    assert!(
        page.starts_with("HTTP/1.1 503") && page.ends_with("\r\n\r\nnot yet\n"),
        "{page}"
    );
    running.fake.ready.store(true, Ordering::Relaxed);
    let page = get(running.at, "/readyz?verbose").await;
    assert!(
        page.starts_with("HTTP/1.1 200") && page.ends_with("ready\n"),
        "{page}"
    );
}

#[tokio::test]
async fn nothing_else_is_there_and_nothing_can_be_written() {
    let running = start();
    let page = get(running.at, "/metrics/../etc").await;
    assert!(page.starts_with("HTTP/1.1 404"), "{page}");
    let posted = say(
        running.at,
        b"POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
    );
    let page = posted.await;
    assert!(
        page.starts_with("HTTP/1.1 405") && page.contains("allow: GET, HEAD"),
        "{page}"
    );
    let page = say(running.at, b"HEAD /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(
        page.starts_with("HTTP/1.1 200") && page.ends_with("\r\n\r\n"),
        "{page}"
    );
}

#[tokio::test]
async fn heads_are_bounded() {
    let running = start();
    let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1_000));
    let page = say(running.at, many.as_bytes()).await;
    assert!(page.starts_with("HTTP/1.1 431"), "{page}");
    let long = format!(
        "GET /metrics HTTP/1.1\r\na: {}\r\n\r\n",
        "b".repeat(100_000)
    );
    let page = say(running.at, long.as_bytes()).await;
    assert!(!page.starts_with("HTTP/1.1 200"), "{page}");
    assert!(
        say(running.at, b"\x16\x03\x01 no http\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 400")
    );
}

/// More silent callers than there are places: they are cut off, and who waits is answered.
#[tokio::test]
async fn callers_that_say_nothing_are_cut_off() {
    let running = start();
    let mut silent = Vec::new();
    for _ in 0..10 {
        let mut stream = TcpStream::connect(running.at).await.unwrap();
        stream.write_all(b"GET /metr").await.unwrap();
        silent.push(stream);
    }
    let page = get(running.at, "/healthz").await;
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
}

#[tokio::test]
async fn a_port_in_use_is_named_with_what_to_do() {
    let running = start();
    let error = MetricsServer::bind(running.at).unwrap_err();
    assert!(matches!(error, BindError::InUse { listen } if listen == running.at));
    assert!(
        error.to_string().contains("listen_metrics = \"off\""),
        "{error}"
    );
}
