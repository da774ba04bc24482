//! What a set of tensors is called.

use std::fmt;

use super::{DIGEST_BYTES, TensorError};

/// What a set of tensors is called: equal exactly where everything about two sets is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableDigest(pub(super) [u8; DIGEST_BYTES]);

impl TableDigest {
    /// The least of all.
    pub const MIN: Self = Self([0; DIGEST_BYTES]);
    /// The greatest of all.
    pub const MAX: Self = Self([u8::MAX; DIGEST_BYTES]);

    /// Takes a digest's bytes.
    ///
    /// # Errors
    /// [`TensorError::Digest`].
    pub fn new(bytes: &[u8]) -> Result<Self, TensorError> {
        match bytes.try_into() {
            Ok(bytes) => Ok(Self(bytes)),
            Err(_) => Err(TensorError::Digest { len: bytes.len() }),
        }
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for TableDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl fmt::Debug for TableDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
