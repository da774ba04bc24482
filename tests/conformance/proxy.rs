//! Stands between a reader and an owner, and stops in the middle when it is told to.

use std::{io, net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, watch},
    task::JoinSet,
};

/// Forwards bytes, each way only as far as its budget lasts.
pub struct Proxy {
    pub address: SocketAddr,
    budget: watch::Sender<u64>,
    requests: watch::Sender<u64>,
    cut: Arc<Notify>,
    extra: Extra,
}

/// Bytes no owner said, to be slipped in behind the next that one says.
type Extra = Arc<Mutex<Option<Vec<u8>>>>;

impl Proxy {
    pub async fn start(owner: SocketAddr) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), owner).await
    }

    pub async fn start_at(listen: SocketAddr, owner: SocketAddr) -> Self {
        let listener = TcpListener::bind(listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let budget = watch::Sender::new(u64::MAX);
        let requests = watch::Sender::new(u64::MAX);
        let cut = Arc::new(Notify::new());
        let (shared, ended) = (budget.clone(), Arc::clone(&cut));
        let to_owners = requests.clone();
        let extra = Extra::default();
        let slipped = Arc::clone(&extra);
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    () = ended.notified() => return,
                    accepted = listener.accept() => {
                        let reader = accepted.unwrap().0;
                        let Ok(owner) = connect(owner).await else { continue };
                        let (from_reader, to_reader) = reader.into_split();
                        let (from_owner, to_owner) = owner.into_split();
                        connections.spawn(forward(
                            from_reader,
                            to_owner,
                            to_owners.clone(),
                            Extra::default(),
                        ));
                        connections.spawn(forward(
                            from_owner,
                            to_reader,
                            shared.clone(),
                            Arc::clone(&slipped),
                        ));
                    }
                }
            }
        });
        Self {
            address,
            budget,
            requests,
            cut,
            extra,
        }
    }

    pub fn allow(&self, bytes: u64) {
        self.budget.send_replace(bytes);
    }

    /// As `allow`, of what goes to the owner.
    #[allow(dead_code)] // End-to-end tests hold requests back.
    pub fn allow_requests(&self, bytes: u64) {
        self.requests.send_replace(bytes);
    }

    pub fn slip_in(&self, bytes: Vec<u8>) {
        *self.extra.lock() = Some(bytes);
    }

    pub fn cut(&self) {
        self.cut.notify_one();
    }
}

/// Of what the owner says no more lies on the way than this, however much the system would buffer for a socket: when nothing
/// comes through any more, the owner notices soon.
const ON_THE_WAY: u32 = 256 << 10;

async fn connect(owner: SocketAddr) -> io::Result<TcpStream> {
    let socket = match owner {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_recv_buffer_size(ON_THE_WAY)?;
    socket.connect(owner).await
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    budget: watch::Sender<u64>,
    extra: Extra,
) {
    let mut changes = budget.subscribe();
    let mut buffer = vec![0; 64 << 10];
    loop {
        if changes.wait_for(|budget| *budget > 0).await.is_err() {
            return;
        }
        let Ok(count @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            // It may have been told to stop while it waited for bytes, or before all of them.
            let Ok(left) = changes
                .wait_for(|budget| *budget > 0)
                .await
                .map(|left| *left)
            else {
                return;
            };
            let (piece, later) = rest.split_at(left.min(rest.len() as u64) as usize);
            budget.send_modify(|budget| {
                if *budget != u64::MAX {
                    *budget = budget.saturating_sub(piece.len() as u64);
                }
            });
            if to.write_all(piece).await.is_err() {
                return;
            }
            rest = later;
        }
        let extra = extra.lock().take();
        if let Some(extra) = extra
            && to.write_all(&extra).await.is_err()
        {
            return;
        }
    }
}
