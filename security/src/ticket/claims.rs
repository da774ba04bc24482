//! What a ticket says, and its bytes.

use kvferry_proto::{Incarnation, NamespaceName, NodeId};

use super::{
    Refusal, UnixMillis,
    keyring::{KEY_ID_BYTES, KeyId, PUBLIC_KEY_BYTES, PublicKey},
    scope::Scope,
};

/// Most scopes of one ticket: a policy has a few lines per identity.
pub const MAX_SCOPES: usize = 64;
/// Longest ticket: twice what 64 scopes of 20 letters take.
pub const MAX_TICKET_BYTES: usize = 4096;
/// What a ticket begins with; the last byte is the version.
const MAGIC: [u8; 4] = *b"KVT\x01";
/// What is signed begins with it, so that no other signature of the same key is a ticket.
const CONTEXT: &[u8] = b"kvferry ticket v1\0";
const SIGNATURE_BYTES: usize = 64;

/// What a coordinator vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// Who reads.
    pub reader: NodeId,
    /// The key only the reader has.
    pub reader_key: PublicKey,
    /// Whom from.
    pub owner: NodeId,
    /// Which lifetime of the owner.
    pub incarnation: Incarnation,
    /// Blocks of which namespaces. Not empty.
    pub scopes: Vec<Scope>,
    /// Good until then, by the coordinator's clock.
    pub expires: UnixMillis,
}

/// More namespaces than one ticket can name: ask for those that are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a ticket names 1 to {MAX_SCOPES} namespaces or beginnings in {MAX_TICKET_BYTES} bytes; this one would have {scopes} in {bytes}"
)]
pub struct TicketTooLong {
    /// How many there are.
    pub scopes: usize,
    /// How long it would be.
    pub bytes: usize,
}

impl Ticket {
    /// Is this namespace one it names?
    #[must_use]
    pub fn covers(&self, namespace: &NamespaceName) -> bool {
        self.scopes.iter().any(|scope| scope.covers(namespace))
    }

    /// All but the signature.
    pub(super) fn encode(&self, key: KeyId) -> Result<Vec<u8>, TicketTooLong> {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&key.0);
        out.extend_from_slice(&self.expires.0.to_le_bytes());
        out.extend_from_slice(&self.reader_key.0);
        out.extend_from_slice(&self.incarnation.get().to_le_bytes());
        for name in [self.reader.as_str(), self.owner.as_str()] {
            // A node's name has at most 128 bytes.
            out.push(name.len() as u8);
            out.extend_from_slice(name.as_bytes());
        }
        out.push(self.scopes.len().min(MAX_SCOPES) as u8);
        for scope in &self.scopes {
            // A namespace's name has at most 256 bytes.
            out.extend_from_slice(&(scope.as_str().len() as u16).to_le_bytes());
            out.extend_from_slice(scope.as_str().as_bytes());
        }
        let (scopes, bytes) = (self.scopes.len(), out.len() + SIGNATURE_BYTES);
        match (1..=MAX_SCOPES).contains(&scopes) && bytes <= MAX_TICKET_BYTES {
            true => Ok(out),
            false => Err(TicketTooLong { scopes, bytes }),
        }
    }
}

/// What is signed for these bytes.
pub(super) fn signed(body: &[u8]) -> Vec<u8> {
    [CONTEXT, body].concat()
}

/// A ticket's bytes, taken apart and not believed yet.
pub(super) struct Presented<'a> {
    pub(super) key: KeyId,
    pub(super) body: &'a [u8],
    pub(super) signature: &'a [u8],
}

impl<'a> Presented<'a> {
    /// As far as must be known to check the signature.
    pub(super) fn of(bytes: &'a [u8]) -> Result<Self, Refusal> {
        if bytes.is_empty() {
            return Err(Refusal::Absent);
        }
        if bytes.len() > MAX_TICKET_BYTES {
            return Err(Refusal::Malformed);
        }
        let (body, signature) = bytes
            .split_at_checked(bytes.len().saturating_sub(SIGNATURE_BYTES))
            .filter(|(_, signature)| signature.len() == SIGNATURE_BYTES)
            .ok_or(Refusal::Malformed)?;
        let mut fields = Fields(body);
        if fields.take()? != MAGIC {
            return Err(Refusal::Malformed);
        }
        Ok(Self {
            key: KeyId(fields.take::<KEY_ID_BYTES>()?),
            body,
            signature,
        })
    }

    /// All of it; only of what a coordinator signed.
    pub(super) fn parse(&self) -> Result<Ticket, Refusal> {
        let mut fields = Fields(self.body);
        let (_, _) = (fields.take::<4>()?, fields.take::<KEY_ID_BYTES>()?);
        let expires = UnixMillis(u64::from_le_bytes(fields.take()?));
        let reader_key = PublicKey(fields.take::<PUBLIC_KEY_BYTES>()?);
        let incarnation = Incarnation::new(u64::from_le_bytes(fields.take()?));
        let mut node = || {
            let len = u8::from_le_bytes(fields.take()?);
            let name = fields.text(len.into())?;
            NodeId::new(name).map_err(|_| Refusal::Malformed)
        };
        let (reader, owner) = (node()?, node()?);
        let count = u8::from_le_bytes(fields.take()?) as usize;
        if !(1..=MAX_SCOPES).contains(&count) {
            return Err(Refusal::Malformed);
        }
        let mut scopes = Vec::with_capacity(count);
        for _ in 0..count {
            let len = u16::from_le_bytes(fields.take()?);
            let scope = fields.text(len.into())?;
            scopes.push(Scope::new(scope).map_err(|_| Refusal::Malformed)?);
        }
        match fields.0.is_empty() {
            true => Ok(Ticket {
                reader,
                reader_key,
                owner,
                incarnation: incarnation.map_err(|_| Refusal::Malformed)?,
                scopes,
                expires,
            }),
            false => Err(Refusal::Malformed),
        }
    }
}

/// Takes fields off the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Refusal::Malformed)?;
        self.0 = rest;
        Ok(*head)
    }

    fn text(&mut self, len: usize) -> Result<&'a str, Refusal> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(Refusal::Malformed)?;
        self.0 = rest;
        std::str::from_utf8(head).map_err(|_| Refusal::Malformed)
    }
}
