//! What is to be copied, and why it is not.

use crate::{CallError, GpuMemory, PinnedRange};

/// Pieces of one length at one distance from each other, on both sides. One piece: `rows` is 1, and the strides mean
/// nothing. Offsets count from the beginning of the [`GpuMemory`] and of the [`PinnedRange`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// First byte on the GPU.
    pub device_offset: u64,
    /// From one piece's first byte to the next one's, on the GPU.
    pub device_stride: u64,
    /// First byte in host memory.
    pub host_offset: u64,
    /// From one piece's first byte to the next one's, in host memory.
    pub host_stride: u64,
    /// Bytes of each piece.
    pub row_bytes: u64,
    /// How many pieces.
    pub rows: u64,
}

impl Rows {
    /// Bytes in all; None where they cannot be counted.
    #[must_use]
    pub fn len_bytes(&self) -> Option<u64> {
        self.row_bytes.checked_mul(self.rows)
    }

    /// One past the last byte of pieces that begin at `offset`, `stride` apart.
    fn end(&self, offset: u64, stride: u64) -> Option<u64> {
        let last = self.rows.checked_sub(1)?;
        offset
            .checked_add(last.checked_mul(stride)?)?
            .checked_add(self.row_bytes)
    }
}

/// Most [`Rows`] of one copy: what is started cannot be taken back, and at some microseconds each this many
/// take some milliseconds.
pub const MAX_ROWS: usize = 4096;

/// A copy was not started, or did not end well.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CopyError {
    /// The caller's request is wrong; do not repeat it.
    #[error("not a valid copy: {0}")]
    Invalid(&'static str),
    /// The deadline passed. The GPU may still be at it; both sides stay its own until it is done.
    #[error("the GPU did not copy in time")]
    TimedOut,
    /// The GPU failed, and this process cannot use it any more.
    #[error("the GPU is lost to this process: {0}")]
    GpuLost(CallError),
    /// Anything else. The GPU is good.
    #[error("the GPU does not copy: {0}")]
    Failed(CallError),
}

impl From<CallError> for CopyError {
    fn from(error: CallError) -> Self {
        if error.status.is_sticky() {
            Self::GpuLost(error)
        } else {
            Self::Failed(error)
        }
    }
}

/// Is every piece within both sides, and may the driver be asked for it?
pub(crate) fn check(gpu: &GpuMemory, host: &PinnedRange, rows: &[Rows]) -> Result<(), CopyError> {
    if rows.is_empty() {
        return Err(CopyError::Invalid("there is nothing to copy"));
    }
    if rows.len() > MAX_ROWS {
        return Err(CopyError::Invalid("more rows than one copy may have"));
    }
    let max_pitch = gpu.context().device().max_pitch();
    for piece in rows {
        let inside = |offset, stride, len| piece.end(offset, stride).is_some_and(|end| end <= len);
        let why = if piece.row_bytes == 0 || piece.rows == 0 {
            "an empty piece"
        } else if !inside(piece.device_offset, piece.device_stride, gpu.len()) {
            "a piece is outside the GPU memory"
        } else if !inside(piece.host_offset, piece.host_stride, host.len()) {
            "a piece is outside the host memory"
        } else if piece.rows == 1 {
            continue;
        } else if piece.device_stride < piece.row_bytes || piece.host_stride < piece.row_bytes {
            "pieces overlap"
        } else if piece.device_stride.max(piece.host_stride) > max_pitch {
            "a stride is longer than the GPU copies at once"
        } else {
            continue;
        };
        return Err(CopyError::Invalid(why));
    }
    Ok(())
}
