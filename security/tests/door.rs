//! Those who should not get in try to, and those who should do. One server, one client, on loopback.

// Helpers say what they expect in the shortest way, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{error::Error, fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use kvferry_security::tls::{
    Dialer, DoorCounts, HANDSHAKE_WITHIN, Handshake, Listener, Secured, ServerTls, TlsFiles,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use time::{Duration as Days, OffsetDateTime};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tonic::transport::{Endpoint, Server};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// A CA and what it issues.
struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    fn new(dir: &Path, file: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, file);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(dir.join(file), certificate.pem()).unwrap();
        Self(Issuer::new(params, key))
    }

    /// `NAME.pem` and `NAME.key`, valid from and until so many days from now.
    fn issue(&self, dir: &Path, name: &str, days: (i64, i64)) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let now = OffsetDateTime::now_utc();
        params.not_before = now + Days::days(days.0);
        params.not_after = now + Days::days(days.1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

const VALID: (i64, i64) = (-1, 1);

fn files(dir: &Path, name: Option<&str>, ca: Option<&str>) -> TlsFiles {
    let file = |extension| name.map(|name| dir.join(format!("{name}.{extension}")));
    TlsFiles {
        cert: file("pem"),
        key: file("key"),
        ca: ca.map(|ca| dir.join(ca)),
    }
}

/// A server that answers whether it is well, to whoever gets in.
async fn serve(files: Option<TlsFiles>) -> (SocketAddr, Arc<DoorCounts>) {
    let tls = files.map(|files| ServerTls::open(&files).unwrap().unwrap());
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let counts = Arc::<DoorCounts>::default();
    let listener = Listener::new(tcp, tls.map(Arc::new), Arc::clone(&counts));
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder().add_service(health);
    tokio::spawn(server.serve_with_incoming(listener.incoming()));
    (address, counts)
}

/// Everything that lies in an error.
fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Is it let in, and answered?
async fn call(dialer: &Dialer, url: &str) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(url.to_owned()).unwrap();
    let line = dialer.connect_as(&endpoint, Some("server")).await;
    let line = line.map_err(|error| in_full(&error))?;
    let mut client = HealthClient::new(line);
    let asked = client.check(HealthCheckRequest::default());
    asked.await.map(drop).map_err(|status| in_full(&status))
}

/// Waits until it is so; a test that waits this long has failed.
async fn eventually(what: &str, is: impl AsyncFn() -> bool) {
    const PATIENCE: Duration = Duration::from_secs(90);
    let waited = tokio::time::timeout(PATIENCE, async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never {what}"));
}

fn dialer(files: TlsFiles) -> Dialer {
    Dialer::open(&Secured {
        files,
        ..Secured::default()
    })
    .unwrap()
}

#[tokio::test]
async fn only_those_with_a_certificate_of_the_ca_get_in() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (ours, theirs) = (
        Authority::new(dir, "ca.pem"),
        Authority::new(dir, "other.pem"),
    );
    ours.issue(dir, "server", VALID);
    ours.issue(dir, "client", VALID);
    ours.issue(dir, "old", (-2, -1));
    ours.issue(dir, "early", (1, 2));
    theirs.issue(dir, "stranger", VALID);
    let (address, counts) = serve(Some(files(dir, Some("server"), Some("ca.pem")))).await;
    let url = format!("https://{address}");
    let attempt = |name, ca| {
        let (dialer, url) = (dialer(files(dir, name, Some(ca))), url.clone());
        async move { call(&dialer, &url).await }
    };
    attempt(Some("client"), "ca.pem").await.unwrap();
    let nobody = attempt(None, "ca.pem").await.unwrap_err();
    assert!(nobody.contains("wants a client certificate"), "{nobody}");
    for name in ["old", "early", "stranger"] {
        let refused = attempt(Some(name), "ca.pem").await.unwrap_err();
        assert!(
            refused.contains("refuses our certificate"),
            "{name}: {refused}"
        );
    }
    // The client looks at the server, too.
    let other = attempt(Some("client"), "other.pem").await.unwrap_err();
    assert!(
        other.contains("other.pem") && other.contains("not issued by"),
        "{other}"
    );
    assert_eq!(counts.of(Handshake::Done).get(), 1);
    // The server hears of the last one after its client does.
    eventually("refused", async || counts.of(Handshake::Refused).get() >= 5).await;
    assert_eq!(counts.of(Handshake::Refused).get(), 5);
}

#[tokio::test]
async fn a_server_that_is_another_or_out_of_date_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let ours = Authority::new(dir, "ca.pem");
    let client = dialer(files(dir, None, Some("ca.pem")));
    ours.issue(dir, "somebody-else", VALID);
    let (address, _) = serve(Some(files(dir, Some("somebody-else"), None))).await;
    let wrong = call(&client, &format!("https://{address}"))
        .await
        .unwrap_err();
    let expected = format!("the certificate of {address} is for somebody-else, not for server");
    assert!(wrong.contains(&expected), "{wrong}");
    ours.issue(dir, "server", (-2, -1));
    let (address, _) = serve(Some(files(dir, Some("server"), None))).await;
    let expired = call(&client, &format!("https://{address}"))
        .await
        .unwrap_err();
    assert!(expired.contains("has expired"), "{expired}");
}

#[tokio::test]
async fn who_speaks_in_clear_where_tls_is_spoken_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Authority::new(dir, "ca.pem").issue(dir, "server", VALID);
    let (address, counts) = serve(Some(files(dir, Some("server"), None))).await;
    let clear = call(&Dialer::clear(), &format!("http://{address}")).await;
    let clear = clear.unwrap_err();
    assert!(
        clear.contains("this port speaks TLS only: use https://"),
        "{clear}"
    );
    let mut browser = TcpStream::connect(address).await.unwrap();
    browser.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    browser.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("https://"),
        "{answer}"
    );
    assert_eq!(counts.of(Handshake::Clear).get(), 2);

    // And the other way round.
    let (address, _) = serve(None).await;
    let client = dialer(files(dir, None, Some("ca.pem")));
    let clear = call(&client, &format!("https://{address}"))
        .await
        .unwrap_err();
    assert!(clear.contains("does not speak TLS"), "{clear}");
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_never_ends_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Authority::new(dir, "ca.pem").issue(dir, "server", VALID);
    let (address, counts) = serve(Some(files(dir, Some("server"), None))).await;
    let begun = tokio::time::Instant::now();
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut slow = TcpStream::connect(address).await.unwrap();
    // The head of a record of 256 bytes, and nothing of them.
    slow.write_all(&[22, 3, 1, 1, 0]).await.unwrap();
    for stream in [&mut silent, &mut slow] {
        // Its end, or a reset.
        assert_eq!(stream.read(&mut [0; 64]).await.unwrap_or(0), 0);
    }
    assert!(begun.elapsed() >= HANDSHAKE_WITHIN, "{:?}", begun.elapsed());
    assert_eq!(counts.of(Handshake::Late).get(), 2);
}

#[tokio::test]
async fn many_who_only_knock_do_not_keep_others_out() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Authority::new(dir, "ca.pem").issue(dir, "server", VALID);
    let (address, counts) = serve(Some(files(dir, Some("server"), None))).await;
    let mut knocking = Vec::new();
    for _ in 0..140 {
        knocking.push(TcpStream::connect(address).await.unwrap());
    }
    // They come from one address, and have its share of places only: who comes from there is turned away.
    let turned_away = || counts.of(Handshake::TooMany).get();
    eventually("turned away", async || turned_away() >= 12).await;
    assert_eq!(turned_away(), 12);
    let client = dialer(files(dir, None, Some("ca.pem")));
    let url = format!("https://{address}");
    assert!(call(&client, &url).await.is_err());
    drop(knocking);
    eventually("let in", async || call(&client, &url).await.is_ok()).await;
}

#[tokio::test]
async fn certificates_are_renewed_while_calls_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let ours = Authority::new(dir, "ca.pem");
    ours.issue(dir, "server", VALID);
    let (address, _) = serve(Some(files(dir, Some("server"), None))).await;
    let url = format!("https://{address}");
    let client = dialer(files(dir, None, Some("ca.pem")));
    let endpoint = Endpoint::from_shared(url.clone()).unwrap();
    let line = client.connect_as(&endpoint, Some("server")).await.unwrap();
    let mut open = HealthClient::new(line);
    open.check(HealthCheckRequest::default()).await.unwrap();

    // Half of a pair is none: what was there stays.
    let old_key = fs::read(dir.join("server.key")).unwrap();
    ours.issue(dir, "renewed", VALID);
    fs::copy(dir.join("renewed.pem"), dir.join("server.pem")).unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    call(&client, &url).await.unwrap();
    assert_eq!(fs::read(dir.join("server.key")).unwrap(), old_key);

    fs::copy(dir.join("renewed.key"), dir.join("server.key")).unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let renewed = call(&client, &url).await.unwrap_err();
    assert!(
        renewed.contains("is for renewed, not for server"),
        "{renewed}"
    );
    let line = client.connect_as(&endpoint, Some("renewed")).await.unwrap();
    let mut other = HealthClient::new(line);
    other.check(HealthCheckRequest::default()).await.unwrap();
    open.check(HealthCheckRequest::default()).await.unwrap();
}

#[test]
fn files_of_no_use_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let ours = Authority::new(dir, "ca.pem");
    ours.issue(dir, "a", VALID);
    ours.issue(dir, "b", VALID);
    let error = |files: TlsFiles| ServerTls::open(&files).unwrap_err().to_string();
    let mut mixed = files(dir, Some("a"), None);
    mixed.key = Some(dir.join("b.key"));
    let mismatch = error(mixed.clone());
    assert!(
        mismatch.contains("b.key") && mismatch.contains("a.pem"),
        "{mismatch}"
    );
    mixed.key = Some(dir.join("a.pem"));
    assert!(
        error(mixed.clone()).contains("no private key"),
        "{}",
        error(mixed)
    );
    mixed.key = Some(dir.join("gone.key"));
    assert!(error(mixed.clone()).contains("gone.key"));
    mixed.key = None;
    assert!(error(mixed).contains("tls_key is not"));
}
