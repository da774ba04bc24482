//! Listening on a unix socket without taking it from somebody who uses it.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixStream};

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
    /// Anything else.
    #[error("cannot listen on {}: {source}", path.display())]
    Failed {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A listening unix socket; its file is removed with this value.
#[derive(Debug)]
pub(crate) struct BoundSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl BoundSocket {
    /// Listens at `path`, for this user only. A missing directory is made; a socket that nobody
    /// answers on any more is replaced.
    ///
    /// # Errors
    /// [`SocketError`].
    pub(crate) async fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Failed {
            path: path.to_owned(),
            source,
        };
        if let Some(directory) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(failed)?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NotASocket {
                    path: path.to_owned(),
                });
            }
            Ok(_) => {
                if UnixStream::connect(path).await.is_ok() {
                    return Err(SocketError::InUse {
                        path: path.to_owned(),
                    });
                }
                fs::remove_file(path).map_err(failed)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = UnixListener::bind(path).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => SocketError::InUse {
                path: path.to_owned(),
            },
            _ => failed(source),
        })?;
        let socket = Self {
            listener,
            path: path.to_owned(),
        };
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(socket)
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
        // Best effort: the next agent replaces what is left.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_live_socket_is_left_alone_and_a_dead_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/agent.sock");
        let first = BoundSocket::bind(&path).await.unwrap();
        assert!(matches!(
            BoundSocket::bind(&path).await,
            Err(SocketError::InUse { .. })
        ));
        drop(first);
        assert!(!path.exists());
        // What a killed agent leaves behind.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        BoundSocket::bind(&path).await.unwrap();
        fs::write(&path, "not a socket").unwrap();
        assert!(matches!(
            BoundSocket::bind(&path).await,
            Err(SocketError::NotASocket { .. })
        ));
    }
}
