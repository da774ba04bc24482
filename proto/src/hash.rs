//! Block hashes: 8 to 64 opaque bytes, one length per namespace.

use std::{borrow::Borrow, fmt, hash};

use bytes::Bytes;

use crate::{MAX_HASHES_PER_REQUEST, pb};

/// Why hashes were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// A length no namespace can have.
    #[error("a block hash of {len} bytes; hashes are 8 to 64 bytes long")]
    Length {
        /// The length given.
        len: usize,
    },
    /// A length other than the namespace's.
    #[error("block hashes of {got} bytes; this namespace has hashes of {want} bytes")]
    OtherLength {
        /// The length given.
        got: usize,
        /// The namespace's.
        want: usize,
    },
    /// The bytes are no whole number of hashes.
    #[error("{bytes} bytes of hashes are no multiple of the hash length {hash_len}")]
    Ragged {
        /// Bytes given.
        bytes: usize,
        /// Length of one hash.
        hash_len: usize,
    },
    /// More than one request may carry.
    #[error(
        "{count} hashes in one request; at most {MAX_HASHES_PER_REQUEST} are allowed: split it"
    )]
    TooMany {
        /// How many there were.
        count: usize,
    },
    /// Text that is not hexadecimal.
    #[error("{text:?} is not hexadecimal")]
    NotHex {
        /// The text given.
        text: String,
    },
}

/// How many bytes a namespace's hashes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HashLen(u8);

impl HashLen {
    /// Parses a length.
    ///
    /// # Errors
    /// [`HashError::Length`] outside 8 to 64.
    pub fn new(len: usize) -> Result<Self, HashError> {
        match u8::try_from(len) {
            Ok(short) if (8..=64).contains(&short) => Ok(Self(short)),
            _ => Err(HashError::Length { len }),
        }
    }

    /// Bytes per hash.
    #[must_use]
    pub fn get(self) -> usize {
        usize::from(self.0)
    }
}

/// One block's hash, inline: no allocation.
#[derive(Clone, Copy)]
pub struct BlockHash {
    len: HashLen,
    bytes: [u8; 64],
}

impl BlockHash {
    /// Takes the bytes of one hash.
    ///
    /// # Errors
    /// [`HashError::Length`] outside 8 to 64 bytes.
    pub fn new(bytes: &[u8]) -> Result<Self, HashError> {
        let len = HashLen::new(bytes.len())?;
        let mut inline = [0; 64];
        inline[..bytes.len()].copy_from_slice(bytes);
        Ok(Self { len, bytes: inline })
    }

    /// Parses hexadecimal text.
    ///
    /// # Errors
    /// [`HashError::NotHex`], or [`HashError::Length`].
    pub fn from_hex(text: &str) -> Result<Self, HashError> {
        let not_hex = || HashError::NotHex {
            text: text.to_owned(),
        };
        let digits = text.as_bytes();
        if !digits.len().is_multiple_of(2) {
            return Err(not_hex());
        }
        let digit = |c: u8| (c as char).to_digit(16);
        let bytes = digits
            .chunks_exact(2)
            .map(|pair| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8))
            .collect::<Option<Vec<u8>>>()
            .ok_or_else(not_hex)?;
        Self::new(&bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len.get()]
    }

    /// Its first bytes; itself where it is no longer than that.
    pub(crate) fn cut(mut self, len: HashLen) -> Self {
        if len < self.len {
            self.bytes[len.get()..].fill(0);
            self.len = len;
        }
        self
    }

    /// How many there are.
    #[must_use]
    pub fn hash_len(&self) -> HashLen {
        self.len
    }
}

impl From<[u8; 32]> for BlockHash {
    fn from(digest: [u8; 32]) -> Self {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&digest);
        Self {
            len: HashLen(32),
            bytes,
        }
    }
}

impl PartialEq for BlockHash {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}
impl Eq for BlockHash {}
impl hash::Hash for BlockHash {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}
/// Tables keyed by [`BlockHash`] are looked up by plain bytes, without building one.
impl Borrow<[u8]> for BlockHash {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}
impl PartialOrd for BlockHash {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for BlockHash {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}
impl fmt::Display for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes()
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Many hashes of one length in one buffer, as they travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedHashes {
    hash_len: HashLen,
    bytes: Bytes,
}

impl PackedHashes {
    /// Checks a message against the namespace's hash length.
    ///
    /// # Errors
    /// [`HashError`] when the length differs, bytes are left over, or there are too many.
    pub fn parse(message: pb::PackedHashes, want: HashLen) -> Result<Self, HashError> {
        let got = message.hash_len as usize;
        if got != want.get() {
            return Err(HashError::OtherLength {
                got,
                want: want.get(),
            });
        }
        Self::new(want, message.hashes)
    }

    /// Takes bytes that are hashes back to back.
    ///
    /// # Errors
    /// [`HashError::Ragged`] or [`HashError::TooMany`].
    pub fn new(hash_len: HashLen, bytes: Bytes) -> Result<Self, HashError> {
        if !bytes.len().is_multiple_of(hash_len.get()) {
            return Err(HashError::Ragged {
                bytes: bytes.len(),
                hash_len: hash_len.get(),
            });
        }
        let count = bytes.len() / hash_len.get();
        if count > MAX_HASHES_PER_REQUEST {
            return Err(HashError::TooMany { count });
        }
        Ok(Self { hash_len, bytes })
    }

    /// Packs hashes. Those of another length than `hash_len` are an error.
    ///
    /// # Errors
    /// [`HashError::OtherLength`] or [`HashError::TooMany`].
    pub fn pack<'a>(
        hash_len: HashLen,
        hashes: impl IntoIterator<Item = &'a BlockHash>,
    ) -> Result<Self, HashError> {
        let mut bytes = Vec::new();
        for hash in hashes {
            if hash.hash_len() != hash_len {
                return Err(HashError::OtherLength {
                    got: hash.hash_len().get(),
                    want: hash_len.get(),
                });
            }
            bytes.extend_from_slice(hash.as_bytes());
        }
        Self::new(hash_len, bytes.into())
    }

    /// How many hashes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() / self.hash_len.get()
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes per hash.
    #[must_use]
    pub fn hash_len(&self) -> HashLen {
        self.hash_len
    }

    /// All of them, back to back.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The i-th hash's bytes; None past the end.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let len = self.hash_len.get();
        let start = index.checked_mul(len)?;
        self.bytes.get(start..start.checked_add(len)?)
    }

    /// Each hash's bytes, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.bytes.chunks_exact(self.hash_len.get())
    }

    /// Each hash as a value of its own, in order.
    pub fn to_hashes(&self) -> Vec<BlockHash> {
        self.iter()
            .map(|bytes| {
                let mut inline = [0; 64];
                inline[..bytes.len()].copy_from_slice(bytes);
                BlockHash {
                    len: self.hash_len,
                    bytes: inline,
                }
            })
            .collect()
    }
}

impl From<PackedHashes> for pb::PackedHashes {
    fn from(packed: PackedHashes) -> Self {
        Self {
            hash_len: packed.hash_len.get() as u32,
            hashes: packed.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths_outside_8_to_64_are_refused() {
        assert_eq!(BlockHash::new(&[1; 7]), Err(HashError::Length { len: 7 }));
        assert_eq!(BlockHash::new(&[1; 65]), Err(HashError::Length { len: 65 }));
        assert!(BlockHash::new(&[1; 8]).is_ok());
        assert!(BlockHash::new(&[1; 64]).is_ok());
    }

    #[test]
    fn a_ragged_or_foreign_message_is_refused() {
        let want = HashLen::new(16).unwrap();
        let message = |hash_len, bytes: usize| pb::PackedHashes {
            hash_len,
            hashes: vec![0; bytes].into(),
        };
        assert_eq!(
            PackedHashes::parse(message(32, 64), want),
            Err(HashError::OtherLength { got: 32, want: 16 })
        );
        assert_eq!(
            PackedHashes::parse(message(16, 17), want),
            Err(HashError::Ragged {
                bytes: 17,
                hash_len: 16
            })
        );
        assert_eq!(
            PackedHashes::parse(message(16, 16 * 65_537), want),
            Err(HashError::TooMany { count: 65_537 })
        );
        assert_eq!(PackedHashes::parse(message(16, 32), want).unwrap().len(), 2);
    }

    proptest! {
        #[test]
        fn hex_round_trips(bytes in prop::collection::vec(any::<u8>(), 8..=64)) {
            let hash = BlockHash::new(&bytes).unwrap();
            prop_assert_eq!(BlockHash::from_hex(&hash.to_string()).unwrap(), hash);
        }

        #[test]
        fn hex_never_panics(text in ".*") {
            let _ = BlockHash::from_hex(&text);
        }

        #[test]
        fn packing_round_trips(seeds in prop::collection::vec(any::<[u8; 32]>(), 0..50)) {
            let hashes: Vec<_> = seeds.iter().map(|s| BlockHash::new(s).unwrap()).collect();
            let len = HashLen::new(32).unwrap();
            let packed = PackedHashes::pack(len, &hashes).unwrap();
            let message = pb::PackedHashes::from(packed);
            prop_assert_eq!(PackedHashes::parse(message, len).unwrap().to_hashes(), hashes);
        }
    }
}
