//! A connection that was let in.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::places::Place;
use crate::Caller;

/// A connection, in clear or by TLS, and who is at its other end.
#[derive(Debug)]
pub struct Accepted {
    io: Io,
    caller: Caller,
    /// Of one who has shown no certificate.
    place: Option<Place>,
}

#[derive(Debug)]
enum Io {
    Clear(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Accepted {
    pub(super) fn clear(stream: TcpStream, from: SocketAddr) -> Self {
        Self {
            io: Io::Clear(stream),
            caller: Caller::anonymous(Some(from)),
            place: None,
        }
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>, from: SocketAddr) -> Self {
        let shown = stream.get_ref().1.peer_certificates();
        let caller = match shown.and_then(<[_]>::first) {
            Some(certificate) => Caller::with_certificate(Some(from), certificate),
            None => Caller::anonymous(Some(from)),
        };
        Self {
            io: Io::Tls(Box::new(stream)),
            caller,
            place: None,
        }
    }

    pub(super) fn has_certificate(&self) -> bool {
        self.caller.names().is_some()
    }

    /// Holds a place as long as it lasts.
    pub(super) fn holding(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }
}

impl Connected for Accepted {
    type ConnectInfo = Caller;
    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Clear(stream) => Pin::new(stream).poll_read(cx, buffer),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Clear(stream) => Pin::new(stream).poll_write(cx, bytes),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Clear(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Clear(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Clear(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Clear(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
