//! The keys of a coordinator, and what it signs.

use std::{fmt, io, path::Path, time::Duration};

use ring::signature::{Ed25519KeyPair, KeyPair};

use super::{
    NoRandomness, Nonce,
    claims::{Ticket, TicketTooLong, signed},
    keyring::{MAX_KEYS, PublicKey},
};

/// So long after its start a coordinator that has a former key signs with that one: owners that have not come back to
/// it know no other yet. Several times what agents wait before they come back.
pub const SETTLE: Duration = Duration::from_secs(60);
/// Bytes of a key file: a few lines.
const MAX_FILE_BYTES: u64 = 64 << 10;
const SEED_BYTES: usize = 32;

/// Why there are no keys to sign with.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Others than its owner can read it.
    #[error("others than its owner can read it: chmod 600")]
    Open,
    /// It has no line that is a key, or too many.
    #[error("it has {count} keys; 1 to {MAX_KEYS} are allowed")]
    Count {
        /// How many there are.
        count: usize,
    },
    /// A line that is no key.
    #[error("line {line} is no key: 64 hexadecimal digits, as `kvferry keys ticket` writes them")]
    Line {
        /// Which.
        line: usize,
    },
    /// A key cannot be made.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// A key tickets are signed with. Never shown.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl SigningKey {
    /// The key that belongs to a seed.
    ///
    /// # Errors
    /// [`NoRandomness`]: every seed of 32 bytes has one.
    pub fn from_seed(seed: &[u8; SEED_BYTES]) -> Result<Self, NoRandomness> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| NoRandomness)?;
        let public = PublicKey::from_bytes(pair.public_key().as_ref()).ok_or(NoRandomness)?;
        Ok(Self { pair, public })
    }

    /// A line for a key file.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn new_line() -> Result<String, NoRandomness> {
        let seed = Nonce::random()?.0;
        Ok(seed.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SigningKey").field(&self.public).finish()
    }
}

/// Signs tickets.
#[derive(Debug)]
pub struct Issuer {
    current: SigningKey,
    /// Those that signed before, the last one first.
    former: Vec<SigningKey>,
}

impl Issuer {
    /// With this key alone.
    #[must_use]
    pub fn new(key: SigningKey) -> Self {
        Self {
            current: key,
            former: Vec::new(),
        }
    }

    /// The keys of a file that nobody but its owner can read: the first signs, the others did.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn open(path: &Path) -> Result<Self, KeyFileError> {
        use std::os::unix::fs::PermissionsExt;
        let about = std::fs::metadata(path)?;
        if about.permissions().mode() & 0o077 != 0 {
            return Err(KeyFileError::Open);
        }
        if about.len() > MAX_FILE_BYTES {
            return Err(
                io::Error::new(io::ErrorKind::FileTooLarge, "too large for a key file").into(),
            );
        }
        Self::parse(&std::fs::read_to_string(path)?)
    }

    /// As [`Issuer::open`], of a file's text: a key a line, empty lines and those that begin with `#` aside.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn parse(text: &str) -> Result<Self, KeyFileError> {
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let seed = seed(line).ok_or(KeyFileError::Line { line: index + 1 })?;
            keys.push(SigningKey::from_seed(&seed)?);
        }
        let count = keys.len();
        let mut keys = keys.into_iter();
        match keys.next() {
            Some(current) if count <= MAX_KEYS => Ok(Self {
                current,
                former: keys.collect(),
            }),
            _ => Err(KeyFileError::Count { count }),
        }
    }

    /// What owners are told, so that they believe what is signed here.
    #[must_use]
    pub fn public(&self) -> Vec<PublicKey> {
        let former = self.former.iter().map(|key| key.public);
        std::iter::once(self.current.public).chain(former).collect()
    }

    /// A ticket's bytes, signed by a coordinator that has run for so long.
    ///
    /// # Errors
    /// [`TicketTooLong`].
    pub fn issue(&self, uptime: Duration, ticket: &Ticket) -> Result<Vec<u8>, TicketTooLong> {
        let former = self.former.first().filter(|_| uptime < SETTLE);
        let key = former.unwrap_or(&self.current);
        let mut bytes = ticket.encode(key.public.id())?;
        let signature = key.pair.sign(&signed(&bytes));
        bytes.extend_from_slice(signature.as_ref());
        Ok(bytes)
    }
}

fn seed(line: &str) -> Option<[u8; SEED_BYTES]> {
    let mut seed = [0; SEED_BYTES];
    if line.len() != 2 * SEED_BYTES || !line.is_ascii() {
        return None;
    }
    for (byte, digits) in seed.iter_mut().zip(line.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).ok()?;
        // `from_str_radix` takes a sign.
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(seed)
}
