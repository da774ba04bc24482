//! Bearer tokens: secrets of a file, known to the other side by their hash only.

use std::{
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tonic::metadata::{Ascii, MetadataValue};

use crate::reread::Reread;

/// Shortest token: 16 characters of hexadecimal are 64 bits, which nobody guesses over a network.
pub const MIN_TOKEN: usize = 16;
/// Longest token, a signed one of somebody else's included.
pub const MAX_TOKEN: usize = 4_096;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("the token file {} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file holds something else.
    #[error(
        "the token file {} holds no token: one line of {MIN_TOKEN} to {MAX_TOKEN} visible characters is needed (`kvferry keys token` makes one)",
        path.display()
    )]
    NoToken {
        /// The file.
        path: PathBuf,
    },
}

/// SHA-256 of a token: what a policy holds.
#[derive(Clone, Copy)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Of a token.
    #[must_use]
    pub fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// From 64 hexadecimal digits.
    #[must_use]
    pub fn parse(hex: &str) -> Option<Self> {
        let digits = hex.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            *byte = (digit(0)? * 16 + digit(1)?) as u8;
        }
        Some(Self(bytes))
    }
}

/// In constant time: how much of two hashes agrees is nobody's business.
impl PartialEq for TokenHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for TokenHash {}

/// As a policy has it.
impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash")
    }
}

/// A token that goes with every call; its file is read again when it changes.
#[derive(Debug)]
pub struct TokenFile(Reread<MetadataValue<Ascii>, TokenError>);

impl TokenFile {
    /// Reads it.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn open(path: &Path) -> Result<Self, TokenError> {
        let file = path.to_owned();
        let load = move || read(&file);
        Reread::open("the token", vec![path.to_owned()], load).map(Self)
    }

    /// As the header `authorization` has it.
    #[must_use]
    pub fn bearer(&self) -> MetadataValue<Ascii> {
        self.0.current().value.clone()
    }
}

fn read(path: &Path) -> Result<MetadataValue<Ascii>, TokenError> {
    let unreadable = |source| TokenError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let none = || TokenError::NoToken {
        path: path.to_owned(),
    };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(unreadable)?;
    // A line's end beside the token.
    let mut file = file.take(MAX_TOKEN as u64 + 3);
    file.read_to_string(&mut text).map_err(unreadable)?;
    let token = text.trim();
    let fits = (MIN_TOKEN..=MAX_TOKEN).contains(&token.len());
    if !fits || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(none());
    }
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| none())?;
    // Nobody who logs headers logs it.
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_read_as_it_is_written() {
        let hash = TokenHash::of(b"0123456789abcdef");
        assert_eq!(TokenHash::parse(&hash.to_string()), Some(hash));
        assert_ne!(TokenHash::of(b"0123456789abcdeg"), hash);
        for bad in ["", "00", &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(TokenHash::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_token_is_one_line_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        for bad in [
            "",
            "short\n",
            "two words are no token\n",
            "0123456789abcdef\nmore\n",
        ] {
            fs::write(&path, bad).unwrap();
            let error = TokenFile::open(&path).unwrap_err();
            assert!(matches!(error, TokenError::NoToken { .. }), "{error}");
        }
        fs::write(&path, "0123456789abcdef\n").unwrap();
        let token = TokenFile::open(&path).unwrap();
        assert_eq!(token.bearer().as_bytes(), b"Bearer 0123456789abcdef");
        let shown = format!("{token:?} {:?}", token.bearer());
        assert!(!shown.contains("0123456789abcdef"), "{shown}");
    }
}
