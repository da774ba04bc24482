//! Who is at the other end of a local connection, and that it went away.
//!
//! An engine's reservations and pins belong to its connection. The connection's stream and every call
//! that came over it share a handle; when the last of them is gone, whatever the reason, the handle
//! reports it. So nothing is released while a call that uses it still runs.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::{net::UnixStream, sync::mpsc};
use tonic::{Request, Status, transport::server::Connected};

use crate::{Guarded, region::ClientId};

/// Gives each connection its id and hears of its end.
#[derive(Debug)]
pub(crate) struct Clients {
    next: AtomicU64,
    /// Unbounded because a drop cannot wait; it holds at most one entry per connection.
    gone: mpsc::UnboundedSender<ClientId>,
}

impl Clients {
    /// The other end gives each client that has gone, once.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<ClientId>) {
        let (gone, receiver) = mpsc::unbounded_channel();
        let clients = Self {
            next: AtomicU64::new(1),
            gone,
        };
        (clients, receiver)
    }

    /// A new connection.
    pub(crate) fn admit(&self, stream: UnixStream) -> ClientStream {
        let handle = self.handle();
        Guarded::new(stream, handle)
    }

    pub(crate) fn handle(&self) -> ClientHandle {
        ClientHandle(Arc::new(Guard {
            client: ClientId(self.next.fetch_add(1, Ordering::Relaxed)),
            gone: self.gone.clone(),
        }))
    }
}

/// Keeps a client's belongings while it lives. Handlers hold it until their call has ended.
#[derive(Debug, Clone)]
pub(crate) struct ClientHandle(Arc<Guard>);

#[derive(Debug)]
struct Guard {
    client: ClientId,
    gone: mpsc::UnboundedSender<ClientId>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Nobody listens any more only when the agent stops.
        let _ = self.gone.send(self.client);
    }
}

impl ClientHandle {
    /// The client a request came from.
    #[allow(clippy::result_large_err)] // tonic's signature
    pub(crate) fn of<M>(request: &Request<M>) -> Result<Self, Status> {
        request
            .extensions()
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Status::internal("the call came over no local connection"))
    }

    pub(crate) fn id(&self) -> ClientId {
        self.0.client
    }
}

/// A local connection that reports its end.
pub(crate) type ClientStream = Guarded<ClientHandle>;

impl Connected for ClientStream {
    type ConnectInfo = ClientHandle;
    fn connect_info(&self) -> ClientHandle {
        self.guard().clone()
    }
}
