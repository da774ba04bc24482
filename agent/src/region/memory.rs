//! What a region's blocks lie in: memory of the host or of a GPU.

use std::{ops::Range, sync::Arc};

use kvferry_cuda::StagingError;
use kvferry_memory::{AccessError, HostMemory, copy_ranges, fold_ranges};

use crate::gpu::{Cursor, GpuMemory, NotSettled};

/// A region's memory. Calls that move bytes of a GPU wait for it, for at most five seconds: for threads that may block.
#[derive(Debug, Clone)]
pub enum Memory {
    /// Mapped: sockets, mappings and RDMA devices reach it.
    Host(Arc<HostMemory>),
    /// Reached through pinned host memory; by RDMA devices straight, where the driver lets them.
    Gpu(Arc<GpuMemory>),
}

/// Memory fails.
#[derive(Debug, thiserror::Error)]
pub enum MemoryFault {
    /// The host's.
    #[error(transparent)]
    Host(#[from] AccessError),
    /// A GPU's.
    #[error(transparent)]
    Gpu(#[from] StagingError),
    /// A GPU's, and what was being written may be written to still: it must not be used for anything else.
    #[error(transparent)]
    NotSettled(#[from] NotSettled),
}

impl From<HostMemory> for Memory {
    fn from(memory: HostMemory) -> Self {
        Self::Host(Arc::new(memory))
    }
}

impl From<Arc<HostMemory>> for Memory {
    fn from(memory: Arc<HostMemory>) -> Self {
        Self::Host(memory)
    }
}

impl From<Arc<GpuMemory>> for Memory {
    fn from(memory: Arc<GpuMemory>) -> Self {
        Self::Gpu(memory)
    }
}

impl Memory {
    /// Bytes there are.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // memory of zero bytes cannot be made
    pub fn len(&self) -> u64 {
        match self {
            Self::Host(memory) => memory.len(),
            Self::Gpu(memory) => memory.len(),
        }
    }

    /// The host's, if it is.
    #[must_use]
    pub fn host(&self) -> Option<&Arc<HostMemory>> {
        match self {
            Self::Host(memory) => Some(memory),
            Self::Gpu(_) => None,
        }
    }

    /// A GPU's, if it is.
    #[must_use]
    pub fn gpu(&self) -> Option<&Arc<GpuMemory>> {
        match self {
            Self::Host(_) => None,
            Self::Gpu(memory) => Some(memory),
        }
    }

    /// Is it the very same memory?
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Host(one), Self::Host(two)) => Arc::ptr_eq(one, two),
            (Self::Gpu(one), Self::Gpu(two)) => Arc::ptr_eq(one, two),
            _ => false,
        }
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`MemoryFault`].
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), MemoryFault> {
        match self {
            Self::Host(memory) => Ok(memory.read_at(offset, into)?),
            Self::Gpu(memory) => {
                let mut rest = into;
                memory.read(
                    vec![extent(offset, rest.len(), memory.len())?],
                    |chunk, range| {
                        let len = (range.end - range.start) as usize;
                        let (now, later) = std::mem::take(&mut rest).split_at_mut(len);
                        rest = later;
                        Ok(chunk.read_at(range.start, now)?)
                    },
                )
            }
        }
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`MemoryFault`].
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), MemoryFault> {
        match self {
            Self::Host(memory) => Ok(memory.write_at(offset, from)?),
            Self::Gpu(memory) => {
                let mut rest = from;
                memory.write(
                    vec![extent(offset, rest.len(), memory.len())?],
                    |buffer, range| {
                        let (now, later) = rest.split_at((range.end - range.start) as usize);
                        rest = later;
                        Ok(buffer.write_at(range.start, now)?)
                    },
                )
            }
        }
    }

    /// Shows the bytes of `ranges`, in order, to `look`, piece by piece, through a private buffer.
    ///
    /// # Errors
    /// [`MemoryFault`].
    pub fn fold(
        &self,
        ranges: impl IntoIterator<Item = Range<u64>>,
        mut look: impl FnMut(&[u8]),
    ) -> Result<(), MemoryFault> {
        match self {
            Self::Host(memory) => Ok(fold_ranges(memory, ranges, look)?),
            Self::Gpu(memory) => memory.read(ranges.into_iter().collect(), |chunk, range| {
                Ok(fold_ranges(chunk, std::iter::once(range), &mut look)?)
            }),
        }
    }

    /// Copies the bytes of `ranges`, in order, to `to_ranges` of `to`, in order. The two may be cut differently; their
    /// total lengths must be equal.
    ///
    /// # Errors
    /// [`MemoryFault`]; then some bytes may have been copied.
    pub fn copy(
        &self,
        ranges: impl IntoIterator<Item = Range<u64>>,
        to: &Self,
        to_ranges: impl IntoIterator<Item = Range<u64>>,
    ) -> Result<(), MemoryFault> {
        match (self, to) {
            (Self::Host(from), Self::Host(to)) => Ok(copy_ranges(from, ranges, to, to_ranges)?),
            (Self::Host(from), Self::Gpu(to)) => {
                let (from_ranges, to_ranges) = (collect(ranges), collect(to_ranges));
                equal(&from_ranges, &to_ranges)?;
                to.fill_from(to_ranges, from, from_ranges)
            }
            (Self::Gpu(from), to) => {
                let (from_ranges, to_ranges) = (collect(ranges), collect(to_ranges));
                equal(&from_ranges, &to_ranges)?;
                let mut target = Cursor::new(to_ranges);
                from.read(from_ranges, |chunk, range| {
                    let part = target.take(range.end - range.start);
                    match to {
                        Self::Host(to) => Ok(copy_ranges(chunk, std::iter::once(range), to, part)?),
                        Self::Gpu(to) => to.fill_from(part, chunk, vec![range]),
                    }
                })
            }
        }
    }
}

fn collect(ranges: impl IntoIterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    ranges.into_iter().collect()
}

fn equal(one: &[Range<u64>], two: &[Range<u64>]) -> Result<(), AccessError> {
    let bytes = |ranges: &[Range<u64>]| -> u64 {
        let lens = ranges.iter().map(|range| range.end - range.start);
        lens.sum()
    };
    match bytes(one) == bytes(two) {
        true => Ok(()),
        false => Err(AccessError::LengthMismatch),
    }
}

fn extent(offset: u64, len: usize, memory: u64) -> Result<Range<u64>, AccessError> {
    let len = len as u64;
    match offset.checked_add(len) {
        Some(end) if end <= memory => Ok(offset..end),
        _ => Err(AccessError::OutOfRange {
            offset,
            len,
            memory,
        }),
    }
}
