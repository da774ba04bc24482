//! That the bearer of a ticket is the reader it names.

use std::fmt;

use ring::{
    digest::{self, SHA256},
    rand::{SecureRandom, SystemRandom},
    signature::{Ed25519KeyPair, KeyPair},
};

use super::{NoRandomness, Ticket, keyring::PublicKey};

/// Bytes of what an owner has signed: never the same twice.
pub const NONCE_BYTES: usize = 32;
/// Bytes of a proof.
pub const PROOF_BYTES: usize = 64;

/// What a proof is for: one that was made for another door opens none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A connection of the data port, in clear.
    Data,
    /// One by TLS: the nonce is [`Nonce::within`] its session.
    DataByTls,
    /// A connection of the descriptor socket.
    Descriptors,
    /// Queue pairs.
    Rdma,
}

impl Purpose {
    fn context(self) -> &'static [u8] {
        match self {
            Self::Data => b"kvferry proof v1 data\0",
            Self::DataByTls => b"kvferry proof v1 data by tls\0",
            Self::Descriptors => b"kvferry proof v1 descriptors\0",
            Self::Rdma => b"kvferry proof v1 rdma\0",
        }
    }
}

/// What the two ends of a TLS session know, and nobody else does: another at each session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Binding(pub [u8; 32]);

impl fmt::Debug for Binding {
    // It is of the session's secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Binding")
    }
}

/// What an owner has its reader sign. Chosen anew for every connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nonce(pub [u8; NONCE_BYTES]);

impl Nonce {
    /// From the system's randomness.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn random() -> Result<Self, NoRandomness> {
        let mut bytes = [0; NONCE_BYTES];
        let filled = SystemRandom::new().fill(&mut bytes);
        filled.map(|()| Self(bytes)).map_err(|_| NoRandomness)
    }

    /// What is signed in its place over TLS, so that a proof is good in the session that it was made in, and in no other:
    /// not even by the hands of one who speaks TLS to both sides.
    #[must_use]
    pub fn within(&self, session: &Binding) -> Self {
        let mut context = digest::Context::new(&SHA256);
        for part in [b"kvferry nonce in tls v1\0".as_slice(), &self.0, &session.0] {
            context.update(part);
        }
        let mut bytes = [0; NONCE_BYTES];
        for (to, from) in bytes.iter_mut().zip(context.finish().as_ref()) {
            *to = *from;
        }
        Self(bytes)
    }
}

/// A reader's own key. It lives as long as the process, and is written nowhere.
pub struct ReaderKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl ReaderKey {
    /// From the system's randomness.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn random() -> Result<Self, NoRandomness> {
        Self::from_seed(&Nonce::random()?.0)
    }

    /// The key that belongs to a seed.
    ///
    /// # Errors
    /// [`NoRandomness`]: every seed of 32 bytes has one.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, NoRandomness> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| NoRandomness)?;
        let public = PublicKey::from_bytes(pair.public_key().as_ref()).ok_or(NoRandomness)?;
        Ok(Self { pair, public })
    }

    /// What goes into tickets.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// That we are whom this ticket names, to who asks with this nonce.
    #[must_use]
    pub fn prove(&self, purpose: Purpose, nonce: &Nonce, ticket: &[u8]) -> [u8; PROOF_BYTES] {
        let signature = self.pair.sign(&proven(purpose, nonce, ticket));
        let mut proof = [0; PROOF_BYTES];
        for (to, from) in proof.iter_mut().zip(signature.as_ref()) {
            *to = *from;
        }
        proof
    }
}

impl fmt::Debug for ReaderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReaderKey").field(&self.public).finish()
    }
}

impl Ticket {
    /// Did who has this ticket's key sign the nonce, for this purpose? `bytes` are those that were verified.
    #[must_use]
    pub fn is_proven(&self, purpose: Purpose, nonce: &Nonce, bytes: &[u8], proof: &[u8]) -> bool {
        self.reader_key
            .signed(&proven(purpose, nonce, bytes), proof)
    }
}

/// What is signed. The ticket is part of it: it names the owner, so that a proof given to one owner is none to
/// another that hands it on.
fn proven(purpose: Purpose, nonce: &Nonce, ticket: &[u8]) -> Vec<u8> {
    [purpose.context(), &nonce.0, ticket].concat()
}
