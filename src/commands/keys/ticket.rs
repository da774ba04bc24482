//! The key that tickets are signed with.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use kvferry_security::ticket::{Issuer, KeyFileError, NoRandomness, SigningKey};
use tempfile::{Builder, NamedTempFile};

/// What a key file begins with.
const HEADER: &str = "\
# kvferry: what tickets are signed with, an Ed25519 seed a line. The first signs, the others did. Secret.
";

/// Why there is no key file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TicketKeyError {
    #[error("{path} exists: `--rotate` puts a new key into it", path = path.display())]
    Exists { path: PathBuf },
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is not rotated: {source}", path = path.display())]
    Bad { path: PathBuf, source: KeyFileError },
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// A new file, or a new key in one.
pub(super) fn make(file: &Path, rotate: bool) -> Result<(), TicketKeyError> {
    let key = SigningKey::new_line()?;
    match rotate {
        false => create(file, &format!("{HEADER}{key}\n")),
        true => replace(file, &rotated(file, &key)?),
    }
}

/// The new key, and the one that signed until now.
fn rotated(path: &Path, key: &str) -> Result<String, TicketKeyError> {
    // Also its mode is looked at, and that each line is a key.
    Issuer::open(path).map_err(|source| TicketKeyError::Bad {
        path: path.to_owned(),
        source,
    })?;
    let text = fs::read_to_string(path).map_err(|source| failed(path, source))?;
    let mut keys = text.lines().map(str::trim);
    let former = keys.find(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(format!("{HEADER}{key}\n{}\n", former.unwrap_or_default()))
}

fn create(path: &Path, text: &str) -> Result<(), TicketKeyError> {
    let file = written(path, text)?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
            Err(TicketKeyError::Exists {
                path: path.to_owned(),
            })
        }
        Err(error) => Err(failed(path, error.error)),
    }
}

fn replace(path: &Path, text: &str) -> Result<(), TicketKeyError> {
    let file = written(path, text)?;
    file.persist(path)
        .map_err(|error| failed(path, error.error))?;
    Ok(())
}

/// Beside its place, readable by nobody else from the beginning.
fn written(path: &Path, text: &str) -> Result<NamedTempFile, TicketKeyError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let write = || {
        let mut file = Builder::new().prefix(".kvferry-").tempfile_in(directory)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        Ok(file)
    };
    write().map_err(|source| failed(path, source))
}

fn failed(path: &Path, source: io::Error) -> TicketKeyError {
    TicketKeyError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_and_turned_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ticket.key");
        make(&path, false).unwrap();
        let first = Issuer::open(&path).unwrap().public();
        assert_eq!(first.len(), 1);
        let again = make(&path, false);
        assert!(matches!(again, Err(TicketKeyError::Exists { .. })));
        for _ in 0..3 {
            let before = Issuer::open(&path).unwrap().public();
            make(&path, true).unwrap();
            let after = Issuer::open(&path).unwrap().public();
            assert_eq!(after.len(), 2);
            assert_eq!(after[1], before[0], "what signed until now is believed");
            assert_ne!(after[0], before[0]);
        }
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    }

    #[test]
    fn what_others_can_read_is_no_secret() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ticket.key");
        assert!(matches!(make(&path, true), Err(TicketKeyError::Bad { .. })));
        make(&path, false).unwrap();
        let open = fs::Permissions::from_mode(0o640);
        fs::set_permissions(&path, open).unwrap();
        assert!(matches!(Issuer::open(&path), Err(KeyFileError::Open)));
        assert!(matches!(make(&path, true), Err(TicketKeyError::Bad { .. })));
    }
}
