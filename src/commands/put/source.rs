//! The file that is put: its blocks, their hashes, and the messages they go in.

use std::{
    fs::File,
    io,
    num::NonZeroU64,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use indicatif::ProgressBar;
use kvferry_proto::{BlockHash, HashLen, pb};
use tokio::{sync::mpsc, task::spawn_blocking};

use super::PutError;
use crate::{content::ContentChain, progress};

/// Bytes in one message: well under a gRPC message, large enough to keep the socket busy.
const CHUNK_BYTES: usize = 1 << 20;
/// The file, as it is read: opened once, so that a rename changes nothing.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) length: u64,
    pub(super) block_bytes: NonZeroU64,
}

/// Opens a regular file; gives its length too.
pub(super) fn open(path: &Path) -> Result<(File, u64), PutError> {
    let opened = File::open(path).and_then(|file| {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is no regular file",
            ));
        }
        Ok((file, metadata.len()))
    });
    opened.map_err(|source| PutError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Hashes every block of the file, on a thread that may wait for the disk.
pub(super) async fn hash_file(
    source: Arc<Source>,
    hash_len: HashLen,
) -> Result<Vec<BlockHash>, PutError> {
    let mut chain = ContentChain::start(hash_len)?;
    spawn_blocking(move || {
        let bar = progress::bytes(source.length, "hashing");
        let mut block = Vec::new();
        let hashes = (0..source.blocks())
            .map(|index| {
                source.read_block(index, &mut block)?;
                bar.inc(block.len() as u64);
                Ok(chain.next(&block)?)
            })
            .collect();
        bar.finish_and_clear();
        hashes
    })
    .await?
}

/// Reads the blocks of one call, and checks that they still are what was hashed.
pub(super) struct Sender {
    pub(super) source: Arc<Source>,
    /// Index of the call's first block in the file.
    pub(super) first: u64,
    pub(super) hashes: Vec<BlockHash>,
    pub(super) chain: ContentChain,
    pub(super) bar: ProgressBar,
}

impl Sender {
    /// Sends the header and the blocks; ends early where nobody takes them any more.
    pub(super) fn run(
        mut self,
        messages: &mpsc::Sender<pb::PutRequest>,
        header: pb::PutRequest,
    ) -> Result<(), PutError> {
        // A receiver that is gone means that the call has ended; its answer says why.
        if messages.blocking_send(header).is_err() {
            return Ok(());
        }
        let mut block = Vec::new();
        for (index, hash) in (self.first..).zip(&self.hashes) {
            self.source.read_block(index, &mut block)?;
            if self.chain.next(&block)? != *hash {
                return Err(PutError::Changed {
                    path: self.source.path.clone(),
                });
            }
            let whole = Bytes::from(std::mem::take(&mut block));
            for start in (0..whole.len()).step_by(CHUNK_BYTES) {
                let end = whole.len().min(start + CHUNK_BYTES);
                let message = pb::PutRequest {
                    data: whole.slice(start..end),
                    ..pb::PutRequest::default()
                };
                if messages.blocking_send(message).is_err() {
                    return Ok(());
                }
                self.bar.inc((end - start) as u64);
            }
        }
        Ok(())
    }
}

impl Source {
    fn blocks(&self) -> u64 {
        self.length.div_ceil(self.block_bytes.get())
    }

    /// Reads a block; what lies behind the file's end is zero.
    fn read_block(&self, index: u64, block: &mut Vec<u8>) -> Result<(), PutError> {
        let start = index * self.block_bytes.get();
        let inside = self
            .block_bytes
            .get()
            .min(self.length.saturating_sub(start));
        block.clear();
        block.resize(self.block_bytes.get() as usize, 0);
        let read = self
            .file
            .read_exact_at(&mut block[..inside as usize], start);
        read.map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => PutError::Changed {
                path: self.path.clone(),
            },
            _ => PutError::Read {
                path: self.path.clone(),
                source,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_block_is_filled_with_zeros() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"abcdefghij").unwrap();
        let (opened, length) = open(file.path()).unwrap();
        let source = Arc::new(Source {
            file: opened,
            path: file.path().to_owned(),
            length,
            block_bytes: NonZeroU64::new(4).unwrap(),
        });
        let hashes = hash_file(Arc::clone(&source), HashLen::new(32).unwrap())
            .await
            .unwrap();
        let mut chain = ContentChain::start(HashLen::new(32).unwrap()).unwrap();
        let expected: Vec<_> = [b"abcd", b"efgh", b"ij\0\0"]
            .into_iter()
            .map(|block| chain.next(block).unwrap())
            .collect();
        assert_eq!(hashes, expected);
    }

    #[test]
    fn a_file_that_shrinks_is_noticed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"abcdefgh").unwrap();
        let (opened, length) = open(file.path()).unwrap();
        std::fs::write(file.path(), b"abc").unwrap();
        let source = Source {
            file: opened,
            path: file.path().to_owned(),
            length,
            block_bytes: NonZeroU64::new(4).unwrap(),
        };
        let read = source.read_block(1, &mut Vec::new());
        assert!(matches!(read, Err(PutError::Changed { .. })));
    }

    #[test]
    fn what_is_no_file_is_refused() {
        assert!(matches!(open(Path::new("/")), Err(PutError::Read { .. })));
    }
}
