//! Listening on a unix socket without taking it from somebody who uses it.

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
};

use kvferry_security::tls::go_away;
use tokio::net::{UnixListener, UnixStream};

use crate::config::MAX_SOCKET_PATH;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error("{} is in use: another agent answers there; stop it, or choose another socket path", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// There is something else under that name.
    #[error("{} exists and is no socket: remove it, or choose another socket path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Longer than a socket's address can be.
    #[error("{} is longer than {MAX_SOCKET_PATH} bytes: choose a shorter socket path", path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// Whoever owns the directory could put a socket of his own in its place.
    #[error("{} belongs to user {owner}, who could listen in this agent's place: choose another socket path", path.display())]
    ForeignDirectory {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Anything else.
    #[error("cannot listen on {}: {source}", path.display())]
    Failed {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Processes of this user.
    ThisUser,
    /// Everybody; who they are is checked on each connection.
    Everybody,
}

/// A listening unix socket; its file is removed with this value.
#[derive(Debug)]
pub(crate) struct BoundSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Tells our socket from a successor's under the same name.
    inode: u64,
}

impl BoundSocket {
    /// Listens at `path`. A missing directory is made, for this user only; a socket that nobody
    /// answers on any more is replaced. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// [`SocketError`].
    pub(crate) fn bind(path: &Path, reach: Reach) -> Result<Self, SocketError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => SocketError::InUse {
                path: path.to_owned(),
            },
            _ => SocketError::Failed {
                path: path.to_owned(),
                source,
            },
        };
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(SocketError::TooLong {
                path: path.to_owned(),
            });
        }
        make_directory(path)?;
        make_room(path)?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
        let socket = Self {
            listener,
            path: path.to_owned(),
            inode,
        };
        let mode = match reach {
            Reach::ThisUser => 0o600,
            Reach::Everybody => 0o666,
        };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
        Ok(socket)
    }

    /// Where it listens.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the socket");
        }
    }
}

/// A socket that takes processes of some users only, whoever can reach its file.
#[derive(Debug)]
pub(crate) struct Guarded {
    pub(crate) socket: BoundSocket,
    /// Beside this user, and root, who needs no permission.
    pub(crate) users: Vec<u32>,
}

impl Guarded {
    /// The next connection of a user who may. Others are told why not, and closed.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let stream = self.socket.accept().await?;
            let uid = stream.peer_cred()?.uid();
            if self.takes(uid) {
                return Ok(stream);
            }
            tracing::warn!(
                target: "audit", outcome = "denied", uid, socket = %self.socket.path().display(),
                "a process of another user may not use the local API (socket_users)"
            );
            let words = format!(
                "user {uid} may not use this agent: its operator allows that by --socket-users"
            );
            // A whole answer fits the socket's buffer; who does not take it goes without.
            let _ = stream.try_write(&go_away(&words));
        }
    }

    fn takes(&self, uid: u32) -> bool {
        uid == 0 || uid == rustix::process::geteuid().as_raw() || self.users.contains(&uid)
    }
}

/// Makes the directory where it is missing, and looks whose it is.
fn make_directory(path: &Path) -> Result<(), SocketError> {
    let Some(directory) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) else {
        return Ok(());
    };
    let failed = |source| SocketError::Failed {
        path: path.to_owned(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed)?;
    let owner = fs::metadata(directory).map_err(failed)?.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(SocketError::ForeignDirectory {
            path: directory.to_owned(),
            owner,
        });
    }
    Ok(())
}

/// Removes a socket that a dead process left; refuses anything else.
fn make_room(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Failed {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(SocketError::NotASocket {
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
        _ => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(path: &Path) -> Result<BoundSocket, SocketError> {
        BoundSocket::bind(path, Reach::ThisUser)
    }

    #[tokio::test]
    async fn a_live_socket_is_left_alone_and_a_dead_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/agent.sock");
        let first = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(SocketError::InUse { .. })));
        drop(first);
        assert!(!path.exists());
        // What a killed agent leaves behind.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(bind(&path).unwrap());
        fs::write(&path, "not a socket").unwrap();
        assert!(matches!(bind(&path), Err(SocketError::NotASocket { .. })));
    }

    #[tokio::test]
    async fn other_users_are_kept_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let alone = bind(&path).unwrap();
        assert_eq!(mode(), 0o600);
        drop(alone);
        let socket = BoundSocket::bind(&path, Reach::Everybody).unwrap();
        assert_eq!(mode(), 0o666);
        let ours = rustix::process::geteuid().as_raw();
        let guarded = Guarded {
            socket,
            users: vec![ours + 1],
        };
        assert!(guarded.takes(ours) && guarded.takes(ours + 1) && guarded.takes(0));
        assert!(!guarded.takes(ours + 2));
        let _client = UnixStream::connect(&path).await.unwrap();
        guarded.accept().await.unwrap();
    }

    #[tokio::test]
    async fn what_a_successor_made_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let first = bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
    }

    #[tokio::test]
    async fn a_path_that_is_no_address_is_refused() {
        let path = Path::new("/tmp").join("x".repeat(120));
        assert!(matches!(bind(&path), Err(SocketError::TooLong { .. })));
    }
}
