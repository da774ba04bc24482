//! Tickets: what a coordinator signs so that an owner lets a reader in.
//!
//! ```text
//! coordinator   Issuer::issue(claims)          -> bytes, signed (Ed25519)
//! reader        ReaderKey::prove(nonce, bytes) -> the key that the ticket names is ours
//! owner         KeyRing::verify(now, ..)       -> Ticket: who reads what here, until when
//! ```
//!
//! A ticket names the reader's public key, and is worth nothing without the private one: who copies it off the wire
//! can show it and not prove it. It names its owner's lifetime, and is worth nothing at another.
//!
//! # The bytes
//! Little-endian, at most [`MAX_TICKET_BYTES`]:
//!
//! ```text
//! magic 4 | key id 8 | expires u64 | reader's key 32 | incarnation u64
//! | len u8, reader | len u8, owner | count u8, count x (len u16, scope) | signature 64
//! ```

mod claims;
mod issuer;
mod keyring;
mod proof;
mod refusal;
mod scope;

pub use claims::{MAX_SCOPES, MAX_TICKET_BYTES, Ticket, TicketTooLong};
pub use issuer::{Issuer, KeyFileError, SETTLE, SigningKey};
pub use keyring::{CLOCK_DRIFT, KeyRing, MAX_KEYS, MAX_LIFE, PUBLIC_KEY_BYTES, PublicKey};
pub use proof::{Binding, NONCE_BYTES, Nonce, PROOF_BYTES, Purpose, ReaderKey};
pub use refusal::Refusal;
pub use scope::{BadScope, Scope};

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, as a ticket's expiry is written: the two sides share nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// By this machine's clock.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self(u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX))
    }

    /// That much later.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// How long until then; none where it is past.
    #[must_use]
    pub fn until(self, later: Self) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}

/// The system gives no random bytes: nothing can be signed or asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct NoRandomness;

#[cfg(test)]
mod tests;
