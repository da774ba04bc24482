//! READs to be posted together: one doorbell for many.

use std::sync::Arc;

use kvferry_rdma_sys::ibv_sge;

use crate::{LocalPiece, LocalRegion};

/// Where to read from: bytes of one of the peer's regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RemotePiece {
    /// The first byte, in the peer's addresses.
    pub address: u64,
    /// The region's key.
    pub rkey: u32,
}

/// A READ that cannot be put in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It has no local piece.
    #[error("a READ needs somewhere to put its bytes")]
    Empty,
    /// The list is longer than the device can hold.
    #[error("{pieces} local pieces; the device takes {most} at a time")]
    TooManyPieces {
        /// As asked for.
        pieces: usize,
        /// What fits.
        most: u32,
    },
    /// More bytes than one READ can have.
    #[error("{bytes} bytes; one READ has at most {most}")]
    TooLong {
        /// As asked for.
        bytes: u64,
        /// What fits.
        most: u32,
    },
}

/// What a request keeps registered until it is over: most have all their pieces in one region.
pub(crate) struct Keep {
    pub(crate) first: Arc<LocalRegion>,
    pub(crate) others: Vec<Arc<LocalRegion>>,
}

impl Keep {
    pub(crate) fn regions(&self) -> impl Iterator<Item = &Arc<LocalRegion>> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

pub(crate) struct Work {
    pub(crate) token: u64,
    pub(crate) remote: RemotePiece,
    pub(crate) first_piece: usize,
    pub(crate) pieces: usize,
    pub(crate) keep: Keep,
}

/// READs that wait to be posted, in order. Reuse one: its buffers stay.
pub struct ReadChain {
    max_pieces: u32,
    max_bytes: u32,
    pub(crate) works: std::collections::VecDeque<Work>,
    pub(crate) pieces: Vec<ibv_sge>,
}

impl ReadChain {
    /// An empty one, for READs of at most so many local pieces and bytes each: see
    /// [`QueuePair::chain`](crate::QueuePair::chain).
    #[must_use]
    pub fn new(max_pieces: u32, max_bytes: u32) -> Self {
        Self {
            max_pieces,
            max_bytes,
            works: std::collections::VecDeque::new(),
            pieces: Vec::new(),
        }
    }

    /// Adds a READ of consecutive remote bytes into local pieces, in order; as many bytes as the pieces have. `token`
    /// is what comes out of the completion queue when it is over.
    ///
    /// # Errors
    /// [`ChainError`]; then nothing was added.
    pub fn push(
        &mut self,
        token: u64,
        remote: RemotePiece,
        local: impl IntoIterator<Item = LocalPiece>,
    ) -> Result<(), ChainError> {
        let first_piece = self.pieces.len();
        let (mut keep, mut bytes) = (None::<Keep>, 0);
        for piece in local {
            bytes += u64::from(piece.len);
            self.pieces.push(ibv_sge {
                addr: piece.address,
                length: piece.len,
                lkey: piece.lkey,
            });
            match &mut keep {
                None => {
                    keep = Some(Keep {
                        first: piece.region,
                        others: Vec::new(),
                    });
                }
                Some(keep) if !keep.regions().any(|held| Arc::ptr_eq(held, &piece.region)) => {
                    keep.others.push(piece.region);
                }
                Some(_) => {}
            }
        }
        let pieces = self.pieces.len() - first_piece;
        let checked = match keep {
            None => Err(ChainError::Empty),
            Some(_) if pieces > self.max_pieces as usize => Err(ChainError::TooManyPieces {
                pieces,
                most: self.max_pieces,
            }),
            Some(_) if bytes > u64::from(self.max_bytes) => Err(ChainError::TooLong {
                bytes,
                most: self.max_bytes,
            }),
            Some(keep) => Ok(keep),
        };
        match checked {
            Ok(keep) => self.works.push_back(Work {
                token,
                remote,
                first_piece,
                pieces,
                keep,
            }),
            Err(error) => {
                self.pieces.truncate(first_piece);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Gives back the room of pieces that were posted. Now and then, so that it costs little.
    pub(crate) fn compact(&mut self) {
        const WORTH_IT: usize = 4096;
        match self.works.front().map(|work| work.first_piece) {
            None => self.pieces.clear(),
            Some(posted) if posted >= WORTH_IT => {
                self.pieces.drain(..posted);
                for work in &mut self.works {
                    work.first_piece -= posted;
                }
            }
            Some(_) => {}
        }
    }

    /// How many READs wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.works.len()
    }

    /// True when none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.works.is_empty()
    }

    /// Throws away what waits. Nothing of it was posted, so nothing of it will come out of a completion queue.
    pub fn clear(&mut self) {
        self.works.clear();
        self.pieces.clear();
    }
}
