//! The keys an owner believes, and what it asks of a ticket.

use std::{fmt, time::Duration};

use kvferry_proto::{Incarnation, NodeId};
use ring::{
    digest,
    signature::{ED25519, UnparsedPublicKey},
};

use super::{
    Refusal, UnixMillis,
    claims::{Presented, Ticket, signed},
};

/// How far clocks may be apart: machines that keep time are apart by milliseconds, those that have just been started
/// by seconds.
pub const CLOCK_DRIFT: Duration = Duration::from_secs(10);
/// Longest life of a ticket. What lasts longer was signed by a clock that is ahead.
pub const MAX_LIFE: Duration = Duration::from_secs(3600);
/// Most keys a coordinator has: the one that signs, and those that signed what is still in use.
pub const MAX_KEYS: usize = 4;
/// Bytes of an Ed25519 public key.
pub const PUBLIC_KEY_BYTES: usize = 32;
pub(super) const KEY_ID_BYTES: usize = 8;

/// An Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; PUBLIC_KEY_BYTES]);

/// The beginning of a public key's SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct KeyId(pub(super) [u8; KEY_ID_BYTES]);

impl PublicKey {
    /// Of bytes from outside; None where they are not 32. Whether they are a point of the curve shows at the first
    /// signature.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(super) fn id(&self) -> KeyId {
        let hash = digest::digest(&digest::SHA256, &self.0);
        let mut id = [0; KEY_ID_BYTES];
        for (to, from) in id.iter_mut().zip(hash.as_ref()) {
            *to = *from;
        }
        KeyId(id)
    }

    pub(super) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, &self.0);
        key.verify(message, signature).is_ok()
    }
}

impl fmt::Debug for PublicKey {
    /// As much as tells keys apart.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.id().0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// The keys of the coordinators that an owner heard from.
#[derive(Debug, Clone, Default)]
pub struct KeyRing {
    keys: Vec<(KeyId, PublicKey)>,
}

impl KeyRing {
    /// Of these; each once.
    #[must_use]
    pub fn new(keys: impl IntoIterator<Item = PublicKey>) -> Self {
        let mut ring = Self::default();
        for key in keys {
            let id = key.id();
            if !ring.keys.iter().any(|(known, _)| *known == id) {
                ring.keys.push((id, key));
            }
        }
        ring
    }

    /// True where nothing can be verified.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// What a coordinator vouches for with these bytes, to this lifetime of this owner, at this time.
    ///
    /// Nothing that is in them is looked at before the signature was found right.
    ///
    /// # Errors
    /// [`Refusal`]. Whether the bearer is the reader is another question: see [`ReaderKey`](super::ReaderKey).
    pub fn verify(
        &self,
        now: UnixMillis,
        owner: &NodeId,
        incarnation: Incarnation,
        bytes: &[u8],
    ) -> Result<Ticket, Refusal> {
        let presented = Presented::of(bytes)?;
        let known = self.keys.iter().find(|(id, _)| *id == presented.key);
        let (_, key) = known.ok_or(Refusal::UnknownKey)?;
        if !key.signed(&signed(presented.body), presented.signature) {
            return Err(Refusal::BadSignature);
        }
        let ticket = presented.parse()?;
        if ticket.owner != *owner || ticket.incarnation != incarnation {
            return Err(Refusal::OtherOwner);
        }
        if ticket.expires.after(CLOCK_DRIFT) <= now {
            return Err(Refusal::Expired);
        }
        if ticket.expires > now.after(MAX_LIFE).after(CLOCK_DRIFT) {
            return Err(Refusal::TooLong);
        }
        Ok(ticket)
    }
}
