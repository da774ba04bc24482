//! Why a ticket does not let its bearer in.

use std::fmt;

use kvferry_observe::label;

label! {
    /// Why a ticket does not let its bearer in. Told to the bearer: none of it is a secret.
    pub enum Refusal("reason") {
        /// There is none, and one is needed.
        Absent = "absent",
        /// It is no ticket.
        Malformed = "malformed",
        /// None of the known coordinators signs with that key.
        UnknownKey = "unknown_key",
        /// Something in it was changed after it was signed.
        BadSignature = "bad_signature",
        /// It was good once.
        Expired = "expired",
        /// It lasts longer than any ticket: the clocks of the two sides differ.
        TooLong = "too_long",
        /// It is for another owner, or for another lifetime of it.
        OtherOwner = "other_owner",
        /// Its bearer does not have the key it names.
        BadProof = "bad_proof",
        /// It does not go on where the one before it ended: another reader, or another key.
        OtherReader = "other_reader",
        /// It does not name the namespace that was asked for.
        OtherNamespace = "other_namespace",
        /// The owner has not heard from a coordinator yet, so that it knows no key.
        NotReady = "not_ready",
        /// One that a later release has.
        Other = "other",
    }
}

impl Refusal {
    /// As one byte; never 0.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Absent => 1,
            Self::Malformed => 2,
            Self::UnknownKey => 3,
            Self::BadSignature => 4,
            Self::Expired => 5,
            Self::TooLong => 6,
            Self::OtherOwner => 7,
            Self::BadProof => 8,
            Self::OtherReader => 9,
            Self::OtherNamespace => 10,
            Self::NotReady => 11,
            Self::Other => 15,
        }
    }

    /// Of what [`Refusal::code`] gives; [`Refusal::Other`] for what this release does not know.
    #[must_use]
    pub fn from_code(code: u8) -> Self {
        use kvferry_observe::Label;
        let known = Self::ALL.iter().find(|known| known.code() == code);
        known.copied().unwrap_or(Self::Other)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "it lets nobody in without a ticket",
            Self::Malformed => "the ticket is none",
            Self::UnknownKey => {
                "the ticket is signed with a key that it was not told: do both sides have the same coordinators?"
            }
            Self::BadSignature => "the ticket was changed after it was signed",
            Self::Expired => "the ticket has expired; if it was new, the clocks differ",
            Self::TooLong => "the ticket lasts longer than any: the clocks differ",
            Self::OtherOwner => "the ticket is for another owner, or another lifetime of it",
            Self::BadProof => "the ticket's key is not its bearer's",
            Self::OtherReader => "the ticket is not of who holds the connection",
            Self::OtherNamespace => "the ticket does not name that namespace",
            Self::NotReady => "it has not heard from its coordinator yet whom to let in",
            Self::Other => "for a reason this release does not know",
        })
    }
}

impl std::error::Error for Refusal {}
