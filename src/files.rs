//! Files that appear whole or not at all.

use std::{
    fs::{File, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tempfile::{Builder, NamedTempFile};

/// A file that is written under another name beside its own; removed unless it is finished.
#[derive(Debug)]
pub(crate) struct Unfinished {
    file: NamedTempFile,
    name: PathBuf,
}

impl Unfinished {
    pub(crate) fn create(name: &Path) -> io::Result<Self> {
        let directory = match name.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let file = Builder::new()
            .prefix(".kvferry-")
            // As any new file: the process's umask takes its share away.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(directory)?;
        Ok(Self {
            file,
            name: name.to_owned(),
        })
    }

    pub(crate) fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Gives the file its name, in place of what had it.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.file.as_file().sync_all()?;
        self.file.persist(&self.name).map_err(|error| error.error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    #[test]
    fn nothing_is_left_of_what_was_not_finished() {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().join("out");
        fs::write(&name, "old").unwrap();
        let unfinished = Unfinished::create(&name).unwrap();
        unfinished.file().write_all(b"half").unwrap();
        drop(unfinished);
        assert_eq!(fs::read(&name).unwrap(), b"old");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);

        let whole = Unfinished::create(&name).unwrap();
        whole.file().write_all(b"new").unwrap();
        whole.finish().unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"new");
    }
}
