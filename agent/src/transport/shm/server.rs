//! The owner's end of the descriptor socket.

use std::{
    fs,
    future::Future,
    io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{net::UnixListener, pin, select, sync::Semaphore, task::JoinSet};

use super::{
    deposit::DepositBox,
    session::{self, Shared},
};
use crate::region::RegionCatalog;

/// Longest path of a unix socket: `sun_path` holds 108 bytes with its end.
const MAX_PATH_BYTES: usize = 107;
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

/// Why the server does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ShmBindError {
    /// Something answers on the path.
    #[error("{} is in use; stop the agent that listens there, or choose another path", path.display())]
    InUse {
        /// As asked for.
        path: PathBuf,
    },
    /// The path is there and is no socket.
    #[error("{} exists and is no socket; choose another path", path.display())]
    NotASocket {
        /// As asked for.
        path: PathBuf,
    },
    /// Longer than a socket's address can be.
    #[error("{} is longer than {MAX_PATH_BYTES} bytes; choose a shorter path", path.display())]
    TooLong {
        /// As asked for.
        path: PathBuf,
    },
    /// Anything else.
    #[error("cannot listen on {}: {source}", path.display())]
    Failed {
        /// As asked for.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Hands out descriptors of a catalogue's regions. Removes its socket when it is dropped.
#[derive(Debug)]
pub struct ShmServer {
    listener: UnixListener,
    socket: SocketFile,
    shared: Arc<Shared>,
}

impl ShmServer {
    /// Listens on a path. A socket that nobody answers on is replaced; the directory is made, for this
    /// user only, where there is none. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// [`ShmBindError`].
    pub fn bind(
        path: &Path,
        catalog: Arc<RegionCatalog>,
        options: ShmOptions,
    ) -> Result<Self, ShmBindError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => ShmBindError::InUse {
                path: path.to_owned(),
            },
            _ => ShmBindError::Failed {
                path: path.to_owned(),
                source,
            },
        };
        if path.as_os_str().len() > MAX_PATH_BYTES {
            return Err(ShmBindError::TooLong {
                path: path.to_owned(),
            });
        }
        make_directory(path).map_err(failed)?;
        make_room(path)?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        let socket = SocketFile::new(path).map_err(failed)?;
        // Other users reach the socket only where some are allowed; who they are is checked on every
        // connection.
        let alone = options.reader_uids.is_empty() && options.engine_uids.is_empty();
        let mode = if alone { 0o600 } else { 0o666 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
        Ok(Self {
            listener,
            socket,
            shared: Arc::new(Shared {
                catalog,
                options,
                deposits: Arc::default(),
                handed_out: AtomicU64::new(0),
            }),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.socket.path
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
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
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

fn make_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.exists() => fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent),
        _ => Ok(()),
    }
}

/// Removes a socket that a dead process left; refuses anything else.
fn make_room(path: &Path) -> Result<(), ShmBindError> {
    let failed = |source| ShmBindError::Failed {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(ShmBindError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        // Also where it could not be found out: a live agent's socket is never taken away.
        _ => Err(ShmBindError::InUse {
            path: path.to_owned(),
        }),
    }
}

/// The socket in the file system, while it is ours.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            inode: fs::symlink_metadata(path)?.ino(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the socket");
        }
    }
}
