//! Who is at the other end of a local connection, and that it went away.
//!
//! An engine's reservations and pins belong to its connection. The connection's stream carries a
//! guard; when the stream is dropped, whatever the reason, the guard reports it.

use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    sync::mpsc,
};
use tonic::transport::server::Connected;

/// One connection of one engine process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// Gives each connection its id.
#[derive(Debug, Default)]
pub(super) struct ClientIds(AtomicU64);

impl ClientIds {
    pub(super) fn next(&self) -> ClientId {
        ClientId(self.0.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// A local connection that reports its end.
pub(super) struct ClientStream {
    stream: UnixStream,
    client: ClientId,
    gone: mpsc::UnboundedSender<ClientId>,
}

impl ClientStream {
    /// `gone` is unbounded because a drop cannot wait; it holds at most one entry per connection.
    pub(super) fn new(
        stream: UnixStream,
        client: ClientId,
        gone: mpsc::UnboundedSender<ClientId>,
    ) -> Self {
        Self {
            stream,
            client,
            gone,
        }
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        // Nobody listens any more only when the agent stops.
        let _ = self.gone.send(self.client);
    }
}

/// Handlers find the [`ClientId`] in their request's extensions.
impl Connected for ClientStream {
    type ConnectInfo = ClientId;
    fn connect_info(&self) -> ClientId {
        self.client
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
