//! A folder of keys and certificates. Files appear whole; secrets are this user's alone from the start.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::KeysError;

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Public,
    Secret,
}

/// The folder.
pub(super) struct Store {
    dir: PathBuf,
    replace: bool,
}

/// A file's name, where a name can be one.
pub(super) fn file(name: &str, extension: &str) -> Result<String, KeysError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.chars().all(fits) {
        return Err(KeysError::Name {
            name: name.to_owned(),
        });
    }
    Ok(format!("{name}.{extension}"))
}

impl Store {
    /// Makes the folder where it is missing.
    pub(super) fn open(dir: &Path, replace: bool) -> Result<Self, KeysError> {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir);
        made.map_err(|source| failed(dir, source))?;
        Ok(Self {
            dir: dir.to_owned(),
            replace,
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.dir.join(name).exists()
    }

    /// Looks for all before one is written.
    pub(super) fn must_be_free(&self, names: &[&str]) -> Result<(), KeysError> {
        match names.iter().find(|name| !self.replace && self.has(name)) {
            None => Ok(()),
            Some(name) => Err(KeysError::Exists {
                path: self.dir.join(name).display().to_string(),
            }),
        }
    }

    pub(super) fn read(&self, name: &str) -> Result<String, KeysError> {
        let path = self.dir.join(name);
        fs::read_to_string(&path).map_err(|source| KeysError::NoCa {
            path: path.display().to_string(),
            source,
        })
    }

    /// Writes a file whole; gives its path.
    pub(super) fn write(&self, name: &str, text: &str, kind: Kind) -> Result<String, KeysError> {
        let path = self.dir.join(name);
        let new = self.dir.join(format!(".{name}.new"));
        let mode = match kind {
            Kind::Public => 0o644,
            Kind::Secret => 0o600,
        };
        let write = || {
            // What a crash left behind: its mode is not known.
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(mode).open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(|source| failed(&path, source))?;
        Ok(path.display().to_string())
    }
}

fn failed(path: &Path, source: io::Error) -> KeysError {
    KeysError::File {
        path: path.display().to_string(),
        source,
    }
}
