//! The owner's end of the descriptor socket.

use std::{
    future::Future,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{pin, select, sync::Semaphore, task::JoinSet};

use super::{
    deposit::DepositBox,
    session::{self, Shared},
};
use crate::{
    SocketError,
    region::RegionCatalog,
    tickets::Gate,
    unix_socket::{BoundSocket, Reach},
};

/// Most connections at a time: every process on one host, with room to spare.
const MAX_CONNECTIONS: usize = 1024;
/// After the kernel could not accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is served.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ShmOptions {
    /// Users besides the agent's own that may map regions for reading.
    pub reader_uids: Vec<u32>,
    /// Users besides the agent's own that may deposit descriptors, and map regions for writing.
    pub engine_uids: Vec<u32>,
}

/// Hands out descriptors of a catalogue's regions. Removes its socket when it is dropped.
#[derive(Debug)]
pub struct ShmServer {
    socket: BoundSocket,
    shared: Arc<Shared>,
}

impl ShmServer {
    /// Listens on a path. A socket that nobody answers on is replaced; the directory is made, for this
    /// user only, where there is none. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(
        path: &Path,
        catalog: Arc<RegionCatalog>,
        options: ShmOptions,
    ) -> Result<Self, SocketError> {
        // Other users reach the socket only where some are allowed; who they are is checked on every
        // connection.
        let alone = options.reader_uids.is_empty() && options.engine_uids.is_empty();
        let reach = if alone {
            Reach::ThisUser
        } else {
            Reach::Everybody
        };
        let socket = BoundSocket::bind(path, reach)?;
        Ok(Self {
            socket,
            shared: Arc::new(Shared {
                catalog,
                gate: Arc::new(Gate::open()),
                options,
                deposits: Arc::default(),
                handed_out: AtomicU64::new(0),
            }),
        })
    }

    /// Hands regions to processes of other users only as the gate lets them; who is of the agent's own user, or an
    /// engine's, needs no ticket: it could do as it likes with the agent. To be said before anything is served.
    #[must_use]
    pub fn behind(mut self, gate: Arc<Gate>) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.gate = gate;
        }
        self
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.socket.path()
    }

    /// What engines left.
    #[must_use]
    pub fn deposits(&self) -> Arc<DepositBox> {
        Arc::clone(&self.shared.deposits)
    }

    /// Serves until `shutdown` completes; then closes every connection and removes the socket.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        pin!(shutdown);
        let mut sessions = JoinSet::new();
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut next_connection = 0u64;
        loop {
            select! {
                () = &mut shutdown => break,
                Some(_) = sessions.join_next() => {}
                accepted = self.socket.accept() => match accepted {
                    Ok(stream) => {
                        next_connection += 1;
                        let permit = Arc::clone(&room).try_acquire_owned().ok();
                        let shared = Arc::clone(&self.shared);
                        if permit.is_none() {
                            session::refuse(&stream, &shared);
                            continue;
                        }
                        sessions.spawn(async move {
                            let _permit = permit;
                            session::run(stream, shared, next_connection).await;
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept on the descriptor socket");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        sessions.shutdown().await;
        let handed_out = self.shared.handed_out.load(Ordering::Relaxed);
        tracing::debug!(handed_out, "the descriptor socket is closed");
    }
}
