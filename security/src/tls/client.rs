//! A client's side: whom it trusts, who it is, and how it dials.

use std::{
    future::Future,
    io::{self, IoSlice},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    body::Body,
    codegen::{Service, http},
    transport::{Channel, Endpoint, Error as TransportError, Uri},
};

use super::{
    configs::Configs,
    data::DataSession,
    files::{self, TlsFileError, TlsFiles},
    refusal::TlsRefusal,
};
use crate::{
    reread::Reread,
    token::{TokenError, TokenFile},
};

/// How long a server may take to say its first words before it is left to the first call: they come with the end of
/// the handshake, after a round trip.
const FIRST_WORDS: Duration = Duration::from_secs(1);
/// Of them: an HTTP/2 server's settings are some tens of bytes.
const FIRST_BYTES: usize = 128;

/// What a client brings along.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Secured {
    /// Its certificate and key, and the servers' CA.
    pub files: TlsFiles,
    /// Its token's file.
    pub token: Option<PathBuf>,
    /// Allows to send the token in clear beyond this host.
    pub insecure: bool,
}

impl Secured {
    /// Looks whether an address can be dialled with this.
    ///
    /// # Errors
    /// [`DialRefusal`].
    pub fn check(&self, url: &str) -> Result<Uri, DialRefusal> {
        let url = || url.to_owned();
        let no_address = || DialRefusal::NoAddress { url: url() };
        let uri: Uri = url().parse().map_err(|_| no_address())?;
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.ok_or_else(no_address)?;
        match uri.scheme_str() {
            Some("https") if self.files.ca.is_none() => Err(DialRefusal::NoCa { url: url() }),
            Some("https") => Ok(uri),
            Some("http") if self.token.is_some() && !self.insecure && !is_loopback(host) => {
                Err(DialRefusal::TokenInClear { url: url() })
            }
            Some("http") => Ok(uri),
            _ => Err(no_address()),
        }
    }
}

/// Why an address is not dialled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialRefusal {
    /// Not an address.
    #[error("{url:?} is no http://host:port or https://host:port")]
    NoAddress {
        /// As given.
        url: String,
    },
    /// Nobody to trust.
    #[error(
        "{url}: https takes the CA that issued the server's certificate: give its file (--tls-ca)"
    )]
    NoCa {
        /// As given.
        url: String,
    },
    /// A secret would travel in clear.
    #[error(
        "{url}: the token would travel in clear, readable by anybody on the way: use https://, or allow it with --insecure"
    )]
    TokenInClear {
        /// As given.
        url: String,
    },
}

/// Why there is no dialer.
#[derive(Debug, thiserror::Error)]
pub enum DialerError {
    /// A certificate, key or CA.
    #[error(transparent)]
    Tls(#[from] TlsFileError),
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// Dials servers: in clear, or by TLS. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Dialer {
    tls: Option<Arc<Trust>>,
    token: Option<Arc<TokenFile>>,
}

#[derive(Debug)]
struct Trust {
    files: Reread<Configs<ClientConfig>, TlsFileError>,
    /// For people.
    ca: PathBuf,
}

impl Dialer {
    /// In clear, as nobody.
    #[must_use]
    pub fn clear() -> Self {
        Self::default()
    }

    /// Reads what there is.
    ///
    /// # Errors
    /// [`DialerError`].
    pub fn open(secured: &Secured) -> Result<Self, DialerError> {
        secured.files.check()?;
        let tls = secured.files.ca.as_deref();
        let tls = tls.map(|ca| trust(&secured.files, ca)).transpose()?;
        let token = secured.token.as_deref().map(TokenFile::open).transpose()?;
        Ok(Self {
            tls: tls.map(Arc::new),
            token: token.map(Arc::new),
        })
    }

    /// Whether servers are dialled by TLS that are known by their address alone: agents, by agents.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// `http` or `https`, for servers that are known by their address alone.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.has_tls() { "https" } else { "http" }
    }

    /// Connects when it is needed.
    #[must_use]
    pub fn lazy(&self, endpoint: &Endpoint) -> Line {
        let channel = match endpoint.uri().scheme_str() {
            Some("https") => endpoint.connect_with_connector_lazy(self.connector(None)),
            _ => endpoint.connect_lazy(),
        };
        self.line(channel)
    }

    /// Connects.
    ///
    /// # Errors
    /// As tonic's; beneath it lies a [`TlsRefusal`] where TLS failed.
    pub async fn connect(&self, endpoint: &Endpoint) -> Result<Line, TransportError> {
        self.connect_as(endpoint, None).await
    }

    /// Connects to a server whose certificate must be for `name`, whatever its address.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_as(
        &self,
        endpoint: &Endpoint,
        name: Option<&str>,
    ) -> Result<Line, TransportError> {
        let channel = match endpoint.uri().scheme_str() {
            Some("https") => {
                endpoint
                    .connect_with_connector(self.connector(name))
                    .await?
            }
            _ => endpoint.connect().await?,
        };
        Ok(self.line(channel))
    }

    /// Begins TLS on a connection to the data port of a node, whose certificate must be for its name. `server` is what
    /// the port is called in errors. The caller bounds the time.
    ///
    /// # Errors
    /// [`TlsRefusal`]: nothing of what is spoken over it has been said.
    pub async fn begin_data(
        &self,
        node: &str,
        server: &str,
        stream: TcpStream,
    ) -> Result<(TcpStream, DataSession), TlsRefusal> {
        let Some(tls) = &self.tls else {
            let server = server.to_owned();
            return Err(TlsRefusal::NoCa { server });
        };
        let name = server_name(server, node)?;
        let connector = TlsConnector::from(Arc::clone(&tls.files.current().value.data));
        match connector.connect(name, stream).await {
            Ok(stream) => {
                let (stream, connection) = stream.into_inner();
                let session = DataSession::new(connection.into());
                let session = session.map_err(|error| TlsRefusal::Other {
                    server: server.to_owned(),
                    detail: error.to_string(),
                })?;
                Ok((stream, session))
            }
            Err(error) => {
                let ca = tls.ca.display().to_string();
                Err(TlsRefusal::of_server(server, node, &ca, &error))
            }
        }
    }

    fn line(&self, channel: Channel) -> Line {
        Line {
            channel,
            token: self.token.clone(),
        }
    }

    fn connector(&self, name: Option<&str>) -> Connector {
        Connector {
            tls: self.tls.clone(),
            name: name.map(str::to_owned),
        }
    }
}

fn server_name(server: &str, expected: &str) -> Result<ServerName<'static>, TlsRefusal> {
    ServerName::try_from(expected.to_owned()).map_err(|_| TlsRefusal::Other {
        server: server.to_owned(),
        detail: format!(
            "{expected:?} can be no certificate's name: letters, digits, '-' and '_' can, of at most 63 to a dot"
        ),
    })
}

fn trust(files: &TlsFiles, ca: &Path) -> Result<Trust, TlsFileError> {
    let pair = files.pair();
    let mut paths = vec![ca.to_owned()];
    if let Some((cert, key)) = &pair {
        paths.extend([cert.clone(), key.clone()]);
    }
    let trusted = ca.to_owned();
    let load = move || {
        let roots = files::roots(&trusted)?;
        let broken = |error: rustls::Error| TlsFileError::Broken {
            what: "tls_ca",
            path: trusted.clone(),
            detail: error.to_string(),
        };
        let builder = ClientConfig::builder_with_provider(files::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(broken)?
            .with_root_certificates(roots);
        let mut config = match &pair {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let (chain, private) = files::pair(cert, key)?;
                builder
                    .with_client_auth_cert(chain, private)
                    .map_err(|error| files::unusable(cert, key, &error))?
            }
        };
        // A connection lasts for hours; each begins with certificates.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config.into())
    };
    Ok(Trust {
        files: Reread::open("the client's certificate", paths, load)?,
        ca: ca.to_owned(),
    })
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

/// A channel to a server, on which every call says who calls.
#[derive(Debug, Clone)]
pub struct Line {
    channel: Channel,
    token: Option<Arc<TokenFile>>,
}

impl Service<http::Request<Body>> for Line {
    type Response = <Channel as Service<http::Request<Body>>>::Response;
    type Error = <Channel as Service<http::Request<Body>>>::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.channel, cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if let Some(token) = &self.token
            && let Ok(mut value) = http::HeaderValue::from_bytes(token.bearer().as_bytes())
        {
            value.set_sensitive(true);
            request
                .headers_mut()
                .insert(http::header::AUTHORIZATION, value);
        }
        self.channel.call(request)
    }
}

/// Dials by TLS, for tonic.
struct Connector {
    tls: Option<Arc<Trust>>,
    /// Whose certificate it must be; None: that of the address' host.
    name: Option<String>,
}

type Dialling = Pin<Box<dyn Future<Output = io::Result<TokioIo<Dialled>>> + Send>>;

impl Service<Uri> for Connector {
    type Response = TokioIo<Dialled>;
    type Error = io::Error;
    type Future = Dialling;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Dialling {
        let (tls, name) = (self.tls.clone(), self.name.clone());
        Box::pin(async move {
            let host = uri.host().unwrap_or_default();
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let port = uri.port_u16().unwrap_or(443);
            let server = uri
                .authority()
                .map_or_else(String::new, ToString::to_string);
            // Whoever dials has asked `Secured::check` first.
            let Some(tls) = tls else {
                let url = uri.to_string();
                return Err(io::Error::other(DialRefusal::NoCa { url }));
            };
            let expected = name.as_deref().unwrap_or(host);
            let name = server_name(&server, expected).map_err(io::Error::other)?;
            let stream = TcpStream::connect((host, port)).await?;
            stream.set_nodelay(true)?;
            let connector = TlsConnector::from(Arc::clone(&tls.files.current().value.grpc));
            match connector.connect(name, stream).await {
                Ok(stream) => {
                    let mut dialled = Dialled {
                        stream,
                        server,
                        heard: Bytes::new(),
                    };
                    dialled.hear().await?;
                    Ok(TokioIo::new(dialled))
                }
                Err(error) => {
                    let ca = tls.ca.display().to_string();
                    let refusal = TlsRefusal::of_server(&server, expected, &ca, &error);
                    Err(io::Error::new(error.kind(), refusal))
                }
            }
        })
    }
}

/// A connection by TLS. In TLS 1.3 a server that does not take our certificate says so when we believe
/// all is done: its alert is put into words here.
struct Dialled {
    stream: TlsStream<TcpStream>,
    server: String,
    /// What came already.
    heard: Bytes,
}

impl Dialled {
    fn in_words(&self, error: io::Error) -> io::Error {
        match TlsRefusal::of_late_alert(&self.server, &error) {
            Some(refusal) => io::Error::new(error.kind(), refusal),
            None => error,
        }
    }

    /// Waits for the server's first words, which HTTP/2 begins with: its settings, or its alert. Were this left to the
    /// first call, a write that finds the connection gone would be heard first.
    async fn hear(&mut self) -> io::Result<()> {
        let mut room = [0; FIRST_BYTES];
        let Ok(heard) = timeout(FIRST_WORDS, self.stream.read(&mut room)).await else {
            return Ok(());
        };
        let heard = heard.map_err(|error| self.in_words(error))?;
        if heard == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.heard = Bytes::copy_from_slice(&room[..heard]);
        Ok(())
    }
}

impl AsyncRead for Dialled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.heard.is_empty() {
            let now = self.heard.len().min(buffer.remaining());
            buffer.put_slice(&self.heard.split_to(now));
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        read.map_err(|error| self.in_words(error))
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        written.map_err(|error| self.in_words(error))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        written.map_err(|error| self.in_words(error))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        flushed.map_err(|error| self.in_words(error))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
