//! The HTTP port: three pages, read only, a few callers at a time.
//!
//! Whoever reaches the port can read the pages: counts and durations, and the addresses of the
//! coordinators an agent is configured with. No names of namespaces or blocks and no KV.

use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

use crate::{Observed, page::scrape};

/// Callers at a time: two Prometheus servers, an orchestrator's probes, somebody with curl. Further
/// ones wait in the kernel's queue, at most as long as a connection may last.
const MAX_CONNECTIONS: usize = 8;
/// A caller sends its request within this time or is cut off.
const HEADER_BOUND: Duration = Duration::from_secs(2);
/// And has read its answer, some hundred KiB, within this: one request a connection.
const CONNECTION_BOUND: Duration = Duration::from_secs(10);
/// Room for a request's head; hyper takes no less than 8 KiB. A probe's is a few hundred bytes.
const HEAD_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// After an accept that failed (no descriptors left, say): time for some to come free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// The port is not to be had. Nothing is bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process listens there: a second agent of this host, say.
    #[error(
        "listen_metrics: {listen} is in use; give each process of a host an address of its own, or set \
         listen_metrics = \"off\""
    )]
    InUse {
        /// The address.
        listen: SocketAddr,
    },
    /// The system does not let us listen there.
    #[error("listen_metrics: cannot listen on {listen}: {source}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

/// A port that is bound and not served yet.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
    local_addr: SocketAddr,
}

impl MetricsServer {
    /// Binds the address.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(listen: SocketAddr) -> Result<Self, BindError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { listen },
            _ => BindError::Listen { listen, source },
        };
        let listener = TcpListener::bind(listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            local_addr,
        })
    }

    /// Where it listens; the port is a real one even where 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Answers until `stop` completes; who is being answered then is cut off.
    pub async fn serve(self, observed: Arc<dyn Observed>, stop: impl Future<Output = ()>) {
        let listener = match tokio::net::TcpListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!("metrics cannot be served: {error}");
                return;
            }
        };
        let mut stop = pin!(stop);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = &mut stop => return,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(converse(stream, Arc::clone(&observed)));
                    }
                    Err(error) => {
                        tracing::warn!("a caller of the metrics port was not accepted: {error}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }
}

/// One connection: a request and its answer. For tests/fuzz.
#[cfg(feature = "fuzzing")]
pub async fn converse_with(stream: TcpStream, observed: Arc<dyn Observed>) {
    converse(stream, observed).await;
}

/// One request and its answer.
async fn converse(stream: TcpStream, observed: Arc<dyn Observed>) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(&request, &observed);
        async { Ok::<_, Infallible>(response) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_BOUND)
        .max_headers(MAX_HEADERS)
        .max_buf_size(HEAD_BYTES)
        .keep_alive(false);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_BOUND, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("a caller of the metrics port went away: {error}"),
        Err(_) => tracing::debug!("a caller of the metrics port was too slow"),
    }
}

fn answer(request: &Request<Incoming>, observed: &Arc<dyn Observed>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = page(
            StatusCode::METHOD_NOT_ALLOWED,
            PLAIN,
            "these pages can only be read: GET\n".to_owned(),
        );
        refused
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/metrics" => match scrape(observed) {
            Ok(text) => page(StatusCode::OK, OPEN_METRICS, text),
            Err(error) => page(
                StatusCode::INTERNAL_SERVER_ERROR,
                PLAIN,
                format!("the metrics cannot be written down: {error}\n"),
            ),
        },
        // It answers: that is all that is asked.
        "/healthz" => page(StatusCode::OK, PLAIN, "ok\n".to_owned()),
        "/readyz" => match observed.ready() {
            Ok(()) => page(StatusCode::OK, PLAIN, "ready\n".to_owned()),
            Err(why) => page(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{why}\n")),
        },
        _ => page(
            StatusCode::NOT_FOUND,
            PLAIN,
            "there are /metrics, /healthz and /readyz\n".to_owned(),
        ),
    }
}

fn page(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
