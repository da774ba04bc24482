//! What a block looks like, and the fingerprint two sides compare.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::{MAX_PLANES, pb};

/// Largest block: generous for 128 tokens of the widest models, small enough that one block never
/// fills a transfer window by itself.
pub const MAX_BLOCK_BYTES: u64 = 1 << 30;
/// Longest dtype name, in bytes.
const MAX_DTYPE: usize = 32;

/// Why a layout was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// No layout where one is required.
    #[error("the layout is missing")]
    Missing,
    /// dtype empty, too long or not printable.
    #[error("the dtype {dtype:?} is not 1 to {MAX_DTYPE} printable ASCII characters")]
    Dtype {
        /// As given.
        dtype: String,
    },
    /// A count that must be positive is zero.
    #[error("{what} is zero")]
    Zero {
        /// Which one.
        what: &'static str,
    },
    /// More planes than allowed.
    #[error("{count} planes; at most {MAX_PLANES} are allowed")]
    TooManyPlanes {
        /// As given.
        count: u32,
    },
    /// Planes times bytes is too large.
    #[error("{planes} planes of {bytes} bytes make a block larger than {MAX_BLOCK_BYTES} bytes")]
    TooLarge {
        /// Planes of a block.
        planes: u32,
        /// Bytes of each.
        bytes: u64,
    },
}

/// How a block lies in memory: `plane_count` planes of `plane_bytes` bytes, in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Layout {
    dtype: String,
    tokens_per_block: u32,
    plane_count: u32,
    plane_bytes: u64,
}

impl Layout {
    /// Checks and takes the parts of a layout.
    ///
    /// # Errors
    /// [`LayoutError`] names the part that is wrong.
    pub fn new(
        dtype: &str,
        tokens_per_block: u32,
        plane_count: u32,
        plane_bytes: u64,
    ) -> Result<Self, LayoutError> {
        if dtype.is_empty()
            || dtype.len() > MAX_DTYPE
            || !dtype.bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(LayoutError::Dtype {
                dtype: dtype.chars().take(MAX_DTYPE * 2).collect(),
            });
        }
        for (what, value) in [
            ("tokens_per_block", u64::from(tokens_per_block)),
            ("plane_count", u64::from(plane_count)),
            ("plane_bytes", plane_bytes),
        ] {
            if value == 0 {
                return Err(LayoutError::Zero { what });
            }
        }
        if plane_count as usize > MAX_PLANES {
            return Err(LayoutError::TooManyPlanes { count: plane_count });
        }
        match u64::from(plane_count).checked_mul(plane_bytes) {
            Some(bytes) if bytes <= MAX_BLOCK_BYTES => Ok(Self {
                dtype: dtype.to_owned(),
                tokens_per_block,
                plane_count,
                plane_bytes,
            }),
            _ => Err(LayoutError::TooLarge {
                planes: plane_count,
                bytes: plane_bytes,
            }),
        }
    }

    /// Name of the element type.
    #[must_use]
    pub fn dtype(&self) -> &str {
        &self.dtype
    }
    /// Tokens a block stands for.
    #[must_use]
    pub fn tokens_per_block(&self) -> u32 {
        self.tokens_per_block
    }
    /// Pieces of a block.
    #[must_use]
    pub fn plane_count(&self) -> u32 {
        self.plane_count
    }
    /// Bytes of each piece.
    #[must_use]
    pub fn plane_bytes(&self) -> u64 {
        self.plane_bytes
    }
    /// Bytes of a block.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        u64::from(self.plane_count) * self.plane_bytes
    }

    /// The content hash two sides compare: SHA-256 over a canonical, versioned encoding.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hasher = Sha256::new();
        hasher.update(b"kvferry layout v1\0");
        // Length before content: no two layouts share an encoding.
        hasher.update((self.dtype.len() as u64).to_le_bytes());
        hasher.update(self.dtype.as_bytes());
        hasher.update(self.tokens_per_block.to_le_bytes());
        hasher.update(self.plane_count.to_le_bytes());
        hasher.update(self.plane_bytes.to_le_bytes());
        Fingerprint(hasher.finalize().into())
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} x {} B planes, {} tokens, {}",
            self.plane_count, self.plane_bytes, self.tokens_per_block, self.dtype
        )
    }
}

impl TryFrom<pb::Layout> for Layout {
    type Error = LayoutError;
    fn try_from(message: pb::Layout) -> Result<Self, LayoutError> {
        Self::new(
            &message.dtype,
            message.tokens_per_block,
            message.plane_count,
            message.plane_bytes,
        )
    }
}

impl From<&Layout> for pb::Layout {
    fn from(layout: &Layout) -> Self {
        Self {
            dtype: layout.dtype.clone(),
            tokens_per_block: layout.tokens_per_block,
            plane_count: layout.plane_count,
            plane_bytes: layout.plane_bytes,
        }
    }
}

/// Content hash of a [`Layout`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_in_the_fingerprint() {
        let base = Layout::new("bf16", 16, 64, 32_768).unwrap();
        assert_eq!(base.block_bytes(), 2 << 20);
        let others = [
            Layout::new("fp16", 16, 64, 32_768),
            Layout::new("bf16", 32, 64, 32_768),
            Layout::new("bf16", 16, 32, 32_768),
            Layout::new("bf16", 16, 64, 65_536),
        ];
        for other in others {
            assert_ne!(other.unwrap().fingerprint(), base.fingerprint());
        }
        assert_eq!(base.clone().fingerprint(), base.fingerprint());
    }

    #[test]
    fn the_fingerprint_is_stable_across_releases() {
        let layout = Layout::new("bf16", 16, 64, 32_768).unwrap();
        assert_eq!(
            layout.fingerprint().to_string(),
            "e1d1f686f32213a7280880bfaf75a402797f76e2c69a157181ad23a54b60c63a"
        );
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(matches!(
            Layout::new("", 16, 1, 1),
            Err(LayoutError::Dtype { .. })
        ));
        assert!(matches!(
            Layout::new("b f", 16, 1, 1),
            Err(LayoutError::Dtype { .. })
        ));
        assert_eq!(
            Layout::new("u8", 1, 0, 1),
            Err(LayoutError::Zero {
                what: "plane_count"
            })
        );
        assert!(matches!(
            Layout::new("u8", 1, 2, u64::MAX),
            Err(LayoutError::TooLarge { .. })
        ));
        assert!(matches!(
            Layout::new("u8", 1, 100_000, 1),
            Err(LayoutError::TooManyPlanes { .. })
        ));
    }
}
