//! What `put` leaves behind and `get` starts from: the hashes of a file's blocks.

use std::{
    fs, io,
    num::NonZeroU64,
    path::{Path, PathBuf},
};

use kvferry_proto::{BlockHash, HashError, HashLen, MAX_BLOCK_BYTES};
use serde::{Deserialize, Serialize};

/// Says what the file is, and which chain its hashes are.
const FORMAT: &str = "kvferry-manifest-1";
/// Largest manifest: two million blocks, four terabytes in blocks of 2 MiB.
const MAX_MANIFEST_BYTES: u64 = 256 << 20;

/// Why a manifest is no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    /// It cannot be read.
    #[error("the manifest {path} cannot be read: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    /// It cannot be written.
    #[error("the manifest {path} cannot be written: {source}", path = path.display())]
    Write { path: PathBuf, source: io::Error },
    /// It is too large.
    #[error("the manifest {path} is larger than {MAX_MANIFEST_BYTES} bytes", path = path.display())]
    TooLarge { path: PathBuf },
    /// It is no JSON of this form.
    #[error("{path} is no manifest of `kvferry put`: {source}", path = path.display())]
    Json {
        path: PathBuf,
        source: serde_json::Error,
    },
    /// It is of another form.
    #[error("{path} has the format {found:?}; this kvferry reads {FORMAT:?}", path = path.display())]
    Format { path: PathBuf, found: String },
    /// A hash in it is none, or has another length.
    #[error("{path}: hash {index}: {source}", path = path.display())]
    Hash {
        path: PathBuf,
        index: usize,
        source: HashError,
    },
    /// The file it describes does not have as many blocks.
    #[error(
        "{path}: {length} bytes in blocks of {block_bytes} are {want} blocks, but there are {got} hashes",
        path = path.display()
    )]
    Count {
        path: PathBuf,
        length: u64,
        block_bytes: u64,
        want: u64,
        got: usize,
    },
    /// Its blocks cannot be that large.
    #[error("{path}: blocks of {block_bytes} bytes; allowed are 1 to {MAX_BLOCK_BYTES}", path = path.display())]
    BlockBytes { path: PathBuf, block_bytes: u64 },
}

/// A file, as its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) namespace: String,
    /// Bytes of the file, without the zeros behind its end.
    pub(crate) length: u64,
    pub(crate) block_bytes: NonZeroU64,
    pub(crate) hash_len: HashLen,
    pub(crate) hashes: Vec<BlockHash>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: String,
    namespace: String,
    length: u64,
    block_bytes: u64,
    hash_len: usize,
    hashes: Vec<String>,
}

impl Manifest {
    /// Reads and checks one.
    pub(crate) fn read(path: &Path) -> Result<Self, ManifestError> {
        let unreadable = |source| ManifestError::Read {
            path: path.to_owned(),
            source,
        };
        if fs::metadata(path).map_err(unreadable)?.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLarge {
                path: path.to_owned(),
            });
        }
        Self::parse(path, &fs::read(path).map_err(unreadable)?)
    }

    /// Writes it, whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> Result<(), ManifestError> {
        let failed = |source| ManifestError::Write {
            path: path.to_owned(),
            source,
        };
        let written = Written {
            format: FORMAT.to_owned(),
            namespace: self.namespace.clone(),
            length: self.length,
            block_bytes: self.block_bytes.get(),
            hash_len: self.hash_len.get(),
            hashes: self.hashes.iter().map(ToString::to_string).collect(),
        };
        let file = crate::files::Unfinished::create(path).map_err(failed)?;
        serde_json::to_writer_pretty(io::BufWriter::new(file.file()), &written)
            .map_err(|error| failed(error.into()))?;
        file.finish().map_err(failed)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ManifestError> {
        let path = || path.to_owned();
        let written: Written =
            serde_json::from_slice(bytes).map_err(|source| ManifestError::Json {
                path: path(),
                source,
            })?;
        if written.format != FORMAT {
            return Err(ManifestError::Format {
                path: path(),
                found: written.format,
            });
        }
        let block_bytes = NonZeroU64::new(written.block_bytes)
            .filter(|bytes| bytes.get() <= MAX_BLOCK_BYTES)
            .ok_or_else(|| ManifestError::BlockBytes {
                path: path(),
                block_bytes: written.block_bytes,
            })?;
        let bad_hash = |index| {
            move |source| ManifestError::Hash {
                path: path(),
                index,
                source,
            }
        };
        let hash_len = HashLen::new(written.hash_len).map_err(bad_hash(0))?;
        let mut hashes = Vec::with_capacity(written.hashes.len());
        for (index, text) in written.hashes.iter().enumerate() {
            let hash = BlockHash::from_hex(text).map_err(bad_hash(index))?;
            if hash.hash_len() != hash_len {
                return Err(bad_hash(index)(HashError::OtherLength {
                    got: hash.hash_len().get(),
                    want: hash_len.get(),
                }));
            }
            hashes.push(hash);
        }
        let want = written.length.div_ceil(block_bytes.get());
        if want != hashes.len() as u64 {
            return Err(ManifestError::Count {
                path: path(),
                length: written.length,
                block_bytes: block_bytes.get(),
                want,
                got: hashes.len(),
            });
        }
        Ok(Self {
            namespace: written.namespace,
            length: written.length,
            block_bytes,
            hash_len,
            hashes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            namespace: "t/m".into(),
            length: 5,
            block_bytes: NonZeroU64::new(4).unwrap(),
            hash_len: HashLen::new(32).unwrap(),
            hashes: vec![BlockHash::from([1; 32]), BlockHash::from([2; 32])],
        }
    }

    #[test]
    fn it_comes_back_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.kvf.json");
        manifest().write(&path).unwrap();
        assert_eq!(Manifest::read(&path).unwrap(), manifest());
        assert_eq!(
            fs::read_dir(&directory).unwrap().count(),
            1,
            "nothing else is left"
        );
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.kvf.json");
        manifest().write(&path).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let parse = |from: &str, to: &str| {
            let bad = good.replace(from, to);
            assert_ne!(good, bad);
            Manifest::parse(&path, bad.as_bytes()).unwrap_err()
        };
        assert!(matches!(
            parse("\"length\": 5", "\"length\": 9"),
            ManifestError::Count {
                want: 3,
                got: 2,
                ..
            }
        ));
        assert!(matches!(
            parse("\"block_bytes\": 4", "\"block_bytes\": 0"),
            ManifestError::BlockBytes { .. }
        ));
        assert!(matches!(
            parse("manifest-1", "manifest-9"),
            ManifestError::Format { .. }
        ));
        assert!(matches!(
            parse("\"0202", "\"zz02"),
            ManifestError::Hash { index: 1, .. }
        ));
        assert!(matches!(
            parse("\"0202", "\"02"),
            ManifestError::Hash { index: 1, .. }
        ));
        assert!(matches!(
            parse("namespace", "nomespace"),
            ManifestError::Json { .. }
        ));
    }
}
