//! What a source is: the identity of a named set of tensors, and the id that is its content's hash.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::{IdError, InvalidMessage, Labels, NamespaceName, pb};

/// Longest name, in bytes: a repository, a model and a variant fit.
const MAX_SOURCE_NAME: usize = 256;
/// Longest revision, in bytes: a commit's hash, or a date and a word.
const MAX_REVISION: usize = 128;
/// Longest content digest, in bytes: SHA-512.
const MAX_CONTENT: usize = 64;
/// Most ranks: tensor x pipeline x expert parallelism of the largest deployments is thousands.
const MAX_WORLD_SIZE: u32 = 65_536;
/// Bytes of an id: nobody finds two identities that share 128 bits of a SHA-256.
const ID_BYTES: usize = 16;

/// Why an identity was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// A text that is empty, too long or not visible.
    #[error("the {what} {text:?} is not {min} to {max} bytes of visible text")]
    Text {
        /// Which text.
        what: &'static str,
        /// As given, cut.
        text: String,
        /// The least bytes.
        min: usize,
        /// The most.
        max: usize,
    },
    /// More attributes than allowed, or an attribute that cannot be.
    #[error("an attribute of the source: {0}")]
    Attributes(IdError),
    /// No ranks, or too many.
    #[error("a world of {world_size} ranks; 1 to {MAX_WORLD_SIZE} are allowed")]
    WorldSize {
        /// As given.
        world_size: u32,
    },
    /// A rank the world does not have.
    #[error("rank {rank} of a world of {world_size}")]
    Rank {
        /// As given.
        rank: u32,
        /// The identity's.
        world_size: u32,
    },
    /// A digest longer than any.
    #[error("a content digest of {len} bytes; at most {MAX_CONTENT} are allowed")]
    Content {
        /// Bytes given.
        len: usize,
    },
    /// Bytes that are no id.
    #[error("a source id of {len} bytes; ids have {ID_BYTES}")]
    IdLength {
        /// Bytes given.
        len: usize,
    },
    /// Text that is no id.
    #[error("{text:?} is no source id: {} hexadecimal digits are", 2 * ID_BYTES)]
    IdText {
        /// As given, cut.
        text: String,
    },
}

/// Visible text within bounds: no control characters, nothing at its ends that one would not see.
pub(crate) fn visible(
    what: &'static str,
    text: &str,
    min: usize,
    max: usize,
) -> Result<(), SourceError> {
    let fits = (min..=max).contains(&text.len());
    if fits && text.trim() == text && !text.chars().any(char::is_control) {
        return Ok(());
    }
    Err(SourceError::Text {
        what,
        text: text.chars().take(64).collect(),
        min,
        max,
    })
}

/// A source's name, as its publisher writes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceName(Box<str>);

impl SourceName {
    /// Parses a name.
    ///
    /// # Errors
    /// [`SourceError::Text`].
    pub fn new(name: &str) -> Result<Self, SourceError> {
        visible("source name", name, 1, MAX_SOURCE_NAME)?;
        Ok(Self(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The first 16 bytes of a SHA-256 over an identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId([u8; ID_BYTES]);

impl SourceId {
    /// Takes an id's bytes.
    ///
    /// # Errors
    /// [`SourceError::IdLength`].
    pub fn new(bytes: &[u8]) -> Result<Self, SourceError> {
        match bytes.try_into() {
            Ok(bytes) => Ok(Self(bytes)),
            Err(_) => Err(SourceError::IdLength { len: bytes.len() }),
        }
    }

    /// Parses hexadecimal text.
    ///
    /// # Errors
    /// [`SourceError::IdText`].
    pub fn from_hex(text: &str) -> Result<Self, SourceError> {
        let digits = text.as_bytes();
        let digit = |c: u8| (c as char).to_digit(16);
        let bytes: Option<Vec<u8>> = digits
            .chunks(2)
            .map(|pair| match pair {
                [high, low] => Some((digit(*high)? << 4 | digit(*low)?) as u8),
                _ => None,
            })
            .collect();
        bytes
            .and_then(|bytes| Self::new(&bytes).ok())
            .ok_or_else(|| SourceError::IdText {
                text: text.chars().take(64).collect(),
            })
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl fmt::Debug for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a set of tensors is. Whoever publishes the same identity promises the same bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceIdentity {
    /// Where its chunks are blocks.
    pub namespace: NamespaceName,
    /// Its name.
    pub name: SourceName,
    /// Which version; may be empty.
    revision: Box<str>,
    world_size: u32,
    /// What else tells it apart.
    pub attributes: Labels,
    content: Box<[u8]>,
}

impl SourceIdentity {
    /// Checks and takes the parts of an identity.
    ///
    /// # Errors
    /// [`SourceError`] names the part that is wrong.
    pub fn new(
        namespace: NamespaceName,
        name: SourceName,
        revision: &str,
        world_size: u32,
        attributes: Labels,
        content: &[u8],
    ) -> Result<Self, SourceError> {
        visible("revision", revision, 0, MAX_REVISION)?;
        if world_size == 0 || world_size > MAX_WORLD_SIZE {
            return Err(SourceError::WorldSize { world_size });
        }
        if content.len() > MAX_CONTENT {
            return Err(SourceError::Content { len: content.len() });
        }
        Ok(Self {
            namespace,
            name,
            revision: revision.into(),
            world_size,
            attributes,
            content: content.into(),
        })
    }

    /// Ranks there are.
    #[must_use]
    pub fn world_size(&self) -> u32 {
        self.world_size
    }

    /// Bytes it takes in a message, at most.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        let texts = [self.namespace.as_str(), self.name.as_str(), &self.revision];
        let attributes = self.attributes.iter();
        // Tags, lengths and numbers at their longest.
        texts.iter().map(|text| text.len() + 4).sum::<usize>()
            + attributes
                .map(|(k, v)| k.len() + v.len() + 12)
                .sum::<usize>()
            + self.content.len()
            + 16
    }

    /// Is there such a rank?
    ///
    /// # Errors
    /// [`SourceError::Rank`].
    pub fn check_rank(&self, rank: u32) -> Result<(), SourceError> {
        if rank < self.world_size {
            return Ok(());
        }
        Err(SourceError::Rank {
            rank,
            world_size: self.world_size,
        })
    }

    /// The content hash: SHA-256 over a canonical, versioned encoding, cut to 16 bytes.
    #[must_use]
    pub fn id(&self) -> SourceId {
        let mut hasher = Sha256::new();
        hasher.update(b"kvferry source v1\0");
        // Length before content: no two identities share an encoding.
        let mut text = |bytes: &[u8]| {
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        text(self.namespace.as_str().as_bytes());
        text(self.name.as_str().as_bytes());
        text(self.revision.as_bytes());
        text(&self.world_size.to_le_bytes());
        text(&self.content);
        for (key, value) in self.attributes.iter() {
            text(key.as_bytes());
            text(value.as_bytes());
        }
        SourceId(first_bytes(hasher))
    }
}

/// The first bytes of a digest.
pub(crate) fn first_bytes<const N: usize>(hasher: Sha256) -> [u8; N] {
    let digest: [u8; 32] = hasher.finalize().into();
    let mut first = [0; N];
    for (to, from) in first.iter_mut().zip(digest) {
        *to = from;
    }
    first
}

impl TryFrom<pb::SourceIdentity> for SourceIdentity {
    type Error = InvalidMessage;
    fn try_from(message: pb::SourceIdentity) -> Result<Self, InvalidMessage> {
        Ok(Self::new(
            NamespaceName::new(&message.namespace)?,
            SourceName::new(&message.name)?,
            &message.revision,
            message.world_size,
            Labels::new(message.attributes).map_err(SourceError::Attributes)?,
            &message.content,
        )?)
    }
}

impl From<&SourceIdentity> for pb::SourceIdentity {
    fn from(identity: &SourceIdentity) -> Self {
        Self {
            namespace: identity.namespace.to_string(),
            name: identity.name.as_str().to_owned(),
            revision: identity.revision.to_string(),
            world_size: identity.world_size,
            attributes: identity
                .attributes
                .iter()
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
            content: bytes::Bytes::copy_from_slice(&identity.content),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> pb::SourceIdentity {
        pb::SourceIdentity {
            namespace: "weights".into(),
            name: "org/llama-3-8b".into(),
            revision: "main".into(),
            world_size: 2,
            attributes: [("dtype".to_owned(), "bf16".to_owned())].into(),
            content: vec![1, 2, 3].into(),
        }
    }

    fn id(change: impl FnOnce(&mut pb::SourceIdentity)) -> SourceId {
        let mut message = identity();
        change(&mut message);
        SourceIdentity::try_from(message).unwrap().id()
    }

    #[test]
    fn every_part_is_part_of_the_id() {
        let ids = [
            id(|_| {}),
            id(|i| i.namespace = "w".into()),
            id(|i| i.name = "other".into()),
            id(|i| i.revision = String::new()),
            id(|i| i.world_size = 3),
            id(|i| i.content = vec![1, 2].into()),
            id(|i| i.attributes.clear()),
        ];
        for (n, one) in ids.iter().enumerate() {
            assert!(!ids[n + 1..].contains(one), "{one}");
        }
        let message = pb::SourceIdentity::from(&SourceIdentity::try_from(identity()).unwrap());
        assert_eq!(message, identity());
        // Fixed for ever: ids are compared between versions of this program.
        assert_eq!(ids[0].to_string(), "cbeadb6f62d88f13bab99fbeb496bc71");
        assert_eq!(SourceId::from_hex(&ids[0].to_string()), Ok(ids[0]));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |change: fn(&mut pb::SourceIdentity)| {
            let mut message = identity();
            change(&mut message);
            SourceIdentity::try_from(message).unwrap_err()
        };
        for change in [
            (|i| i.name = String::new()) as fn(&mut pb::SourceIdentity),
            |i| i.name = "a\nb".into(),
            |i| i.name = " a".into(),
            |i| i.name = "x".repeat(257),
            |i| i.world_size = 0,
            |i| i.world_size = 65_537,
            |i| i.content = vec![0; 65].into(),
            |i| i.revision = "x".repeat(129),
        ] {
            assert!(matches!(refused(change), InvalidMessage::Source(_)));
        }
        for bad in ["", "0", "zz", &"0".repeat(31), &"0".repeat(34)] {
            assert!(SourceId::from_hex(bad).is_err(), "{bad}");
        }
        let identity = SourceIdentity::try_from(identity()).unwrap();
        assert_eq!(identity.check_rank(1), Ok(()));
        assert!(identity.check_rank(2).is_err());
    }
}
