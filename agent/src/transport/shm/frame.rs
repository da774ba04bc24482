//! What goes over the descriptor socket: frames of fixed size, little-endian, every decoder total.
//!
//! ```text
//! hello     magic 4 | version u16 | 0 0 | incarnation u64 (0: any)
//! welcome   magic 4 | version u16 | status u8 | refusal u8 | incarnation u64
//!   prove   nonce 32 follows; the client answers with a bearer, the owner with another welcome
//! bearer    ticket_len u32 | proof 64 | ticket, filled up with zeros to 4096
//! command   kind u8 | writable u8 | 0 0 | region u32 | incarnation u64       deposit: one descriptor
//!   renew   a bearer follows, whose proof is zeros
//! reply     status u8 | refusal u8 | 0 x 6 | a u64 | b u64                   open: two descriptors
//! ```

use kvferry_proto::{Incarnation, RegionId};
use kvferry_security::ticket::{MAX_TICKET_BYTES, PROOF_BYTES, Refusal};

const MAGIC: [u8; 4] = *b"KVFs";
const VERSION: u16 = 1;
/// Bytes of a hello, a welcome and a command.
pub(super) const FRAME_BYTES: usize = 16;
/// Bytes of a bearer. Always as many, so that nothing has to be believed of its length.
pub(super) const BEARER_BYTES: usize = 4 + PROOF_BYTES + MAX_TICKET_BYTES;
/// Bytes of a reply.
pub(super) const REPLY_BYTES: usize = 24;
/// Most descriptors beside one frame: a region's data and its generations.
pub(super) const MAX_DESCRIPTORS: usize = 2;

/// Bytes that are no frame. The connection they came on is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShmFrameError {
    /// The other side speaks something else.
    #[error("it does not begin with kvferry's magic")]
    Magic,
    /// The other side is of another release.
    #[error("protocol version {found}; this side speaks {VERSION}")]
    Version {
        /// As received.
        found: u16,
    },
    /// A kind of command this release does not know.
    #[error("unknown command {found}")]
    Command {
        /// As received.
        found: u8,
    },
    /// A status this release does not know.
    #[error("unknown status {found}")]
    Status {
        /// As received.
        found: u8,
    },
    /// Bytes with an impossible value.
    #[error("reserved bytes are not zero, or a flag is neither 0 nor 1")]
    Reserved,
    /// A ticket over its bound.
    #[error("a ticket of {len} bytes; at most {MAX_TICKET_BYTES} are allowed")]
    TicketLength {
        /// As announced.
        len: u32,
    },
    /// Another number of descriptors than the frame has.
    #[error("{found} descriptors beside a frame that has {expected}")]
    Descriptors {
        /// As received.
        found: usize,
        /// As they should be.
        expected: usize,
    },
}

/// The first frame, from either side. `status` is zero in a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) status: u8,
    /// Where the status is [`REFUSED`]; else zero.
    pub(super) refusal: u8,
    pub(super) incarnation: u64,
}

/// The owner's answers to a hello.
pub(super) const WELCOME: u8 = 0;
pub(super) const WRONG_INCARNATION: u8 = 1;
pub(super) const NOT_ALLOWED: u8 = 2;
pub(super) const BUSY: u8 = 3;
/// A ticket is needed: a nonce to prove it with follows.
pub(super) const PROVE: u8 = 4;
/// The ticket does not let this reader in.
pub(super) const REFUSED: u8 = 5;

impl Greeting {
    pub(super) fn encode(self) -> [u8; FRAME_BYTES] {
        let mut out = [0; FRAME_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[6] = self.status;
        out[7] = self.refusal;
        out[8..].copy_from_slice(&self.incarnation.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8; FRAME_BYTES]) -> Result<Self, ShmFrameError> {
        let [m0, m1, m2, m3, v0, v1, status, refusal, incarnation @ ..] = *bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(ShmFrameError::Magic);
        }
        match u16::from_le_bytes([v0, v1]) {
            VERSION => {}
            found => return Err(ShmFrameError::Version { found }),
        }
        match (status, refusal) {
            (WELCOME | WRONG_INCARNATION | NOT_ALLOWED | BUSY | PROVE, 0) | (REFUSED, _) => {
                Ok(Self {
                    status,
                    refusal,
                    incarnation: u64::from_le_bytes(incarnation),
                })
            }
            (_, 0) => Err(ShmFrameError::Status { found: status }),
            _ => Err(ShmFrameError::Reserved),
        }
    }
}

/// A ticket and its proof, as they travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bearer {
    pub(super) ticket: Vec<u8>,
    pub(super) proof: [u8; PROOF_BYTES],
}

impl Bearer {
    /// `ticket` has at most `MAX_TICKET_BYTES`.
    pub(super) fn encode(&self) -> Vec<u8> {
        let ticket = &self.ticket[..self.ticket.len().min(MAX_TICKET_BYTES)];
        let mut out = Vec::with_capacity(BEARER_BYTES);
        out.extend_from_slice(&(ticket.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.proof);
        out.extend_from_slice(ticket);
        out.resize(BEARER_BYTES, 0);
        out
    }

    pub(super) fn decode(bytes: &[u8; BEARER_BYTES]) -> Result<Self, ShmFrameError> {
        let [l0, l1, l2, l3, rest @ ..] = bytes;
        let len = u32::from_le_bytes([*l0, *l1, *l2, *l3]);
        let (proof, ticket) = rest.split_at(PROOF_BYTES);
        let proof = proof.try_into().map_err(|_| ShmFrameError::Reserved)?;
        let (ticket, zeros) = ticket
            .split_at_checked(len as usize)
            .ok_or(ShmFrameError::TicketLength { len })?;
        match zeros.iter().all(|byte| *byte == 0) {
            true => Ok(Self {
                ticket: ticket.to_vec(),
                proof,
            }),
            false => Err(ShmFrameError::Reserved),
        }
    }
}

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// A region's descriptors.
    Open {
        region: RegionId,
        incarnation: u64,
        writable: bool,
    },
    /// Keep the one descriptor beside this frame for a later request that names its token.
    Deposit,
    /// Go on with the ticket behind this frame.
    Renew,
}

impl Command {
    pub(super) fn encode(self) -> [u8; FRAME_BYTES] {
        let mut out = [0; FRAME_BYTES];
        match self {
            Self::Open {
                region,
                incarnation,
                writable,
            } => {
                out[..2].copy_from_slice(&[1, u8::from(writable)]);
                out[4..8].copy_from_slice(&region.0.to_le_bytes());
                out[8..].copy_from_slice(&incarnation.to_le_bytes());
            }
            Self::Deposit => out[0] = 2,
            Self::Renew => out[0] = 3,
        }
        out
    }

    pub(super) fn decode(bytes: &[u8; FRAME_BYTES]) -> Result<Self, ShmFrameError> {
        let [kind, writable, 0, 0, r0, r1, r2, r3, incarnation @ ..] = *bytes else {
            return Err(ShmFrameError::Reserved);
        };
        match (kind, writable) {
            (1, 0 | 1) => Ok(Self::Open {
                region: RegionId(u32::from_le_bytes([r0, r1, r2, r3])),
                incarnation: u64::from_le_bytes(incarnation),
                writable: writable == 1,
            }),
            (2, 0) => Ok(Self::Deposit),
            (3, 0) => Ok(Self::Renew),
            (1..=3, _) => Err(ShmFrameError::Reserved),
            (found, _) => Err(ShmFrameError::Command { found }),
        }
    }
}

/// The owner's answer to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    /// Two descriptors are beside this frame.
    Opened {
        data_bytes: u64,
        slots: u32,
    },
    Deposited {
        token: u64,
    },
    RegionGone,
    WrongIncarnation {
        found: u64,
    },
    /// This user may not have that.
    NotAllowed,
    /// Deposits that nobody claimed fill the box.
    TooManyDeposits,
    /// The owner has no descriptor to give.
    Failed,
    /// The region is no memory of this host: a GPU's.
    NotMappable,
    /// The later ticket is good.
    Renewed,
    /// The ticket does not let this reader.
    Refused(Refusal),
}

impl Reply {
    pub(super) fn encode(self) -> [u8; REPLY_BYTES] {
        let (status, a, b) = match self {
            Self::Opened { data_bytes, slots } => (0, data_bytes, u64::from(slots)),
            Self::Deposited { token } => (1, token, 0),
            Self::RegionGone => (2, 0, 0),
            Self::WrongIncarnation { found } => (3, found, 0),
            Self::NotAllowed => (4, 0, 0),
            Self::TooManyDeposits => (5, 0, 0),
            Self::Failed => (6, 0, 0),
            Self::NotMappable => (7, 0, 0),
            Self::Renewed => (8, 0, 0),
            Self::Refused(_) => (9, 0, 0),
        };
        let mut out = [0; REPLY_BYTES];
        out[0] = status;
        if let Self::Refused(refusal) = self {
            out[1] = refusal.code();
        }
        out[8..16].copy_from_slice(&u64::to_le_bytes(a));
        out[16..].copy_from_slice(&u64::to_le_bytes(b));
        out
    }

    pub(super) fn decode(bytes: &[u8; REPLY_BYTES]) -> Result<Self, ShmFrameError> {
        let [status, refusal, 0, 0, 0, 0, 0, 0, rest @ ..] = bytes else {
            return Err(ShmFrameError::Reserved);
        };
        if *refusal != 0 && *status != 9 {
            return Err(ShmFrameError::Reserved);
        }
        let (mut a, mut b) = ([0; 8], [0; 8]);
        a.copy_from_slice(&rest[..8]);
        b.copy_from_slice(&rest[8..]);
        let (a, b) = (u64::from_le_bytes(a), u64::from_le_bytes(b));
        Ok(match status {
            0 => Self::Opened {
                data_bytes: a,
                slots: u32::try_from(b).map_err(|_| ShmFrameError::Reserved)?,
            },
            1 => Self::Deposited { token: a },
            2 => Self::RegionGone,
            3 => Self::WrongIncarnation { found: a },
            4 => Self::NotAllowed,
            5 => Self::TooManyDeposits,
            6 => Self::Failed,
            7 => Self::NotMappable,
            8 => Self::Renewed,
            9 => Self::Refused(Refusal::from_code(*refusal)),
            found => return Err(ShmFrameError::Status { found: *found }),
        })
    }
}

/// A number from the wire as an incarnation.
pub(super) fn incarnation(number: u64) -> Result<Incarnation, ShmFrameError> {
    Incarnation::new(number).map_err(|_| ShmFrameError::Reserved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_round_trip(
            a: u64,
            b: u32,
            writable: bool,
            status in 0u8..6,
            refusal in prop::sample::select(<Refusal as kvferry_observe::Label>::ALL),
            ticket in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let code = if status == REFUSED { refusal.code() } else { 0 };
            let greeting = Greeting { status, refusal: code, incarnation: a };
            prop_assert_eq!(Greeting::decode(&greeting.encode()), Ok(greeting));
            let open = Command::Open { region: RegionId(b), incarnation: a, writable };
            let bearer = Bearer { ticket, proof: [status; PROOF_BYTES] };
            let bytes: [u8; BEARER_BYTES] = bearer.encode().try_into().unwrap();
            prop_assert!(Bearer::decode(&bytes) == Ok(bearer));
            for command in [open, Command::Deposit, Command::Renew] {
                prop_assert_eq!(Command::decode(&command.encode()), Ok(command));
            }
            for reply in [
                Reply::Opened { data_bytes: a, slots: b },
                Reply::Deposited { token: a },
                Reply::RegionGone,
                Reply::WrongIncarnation { found: a },
                Reply::NotAllowed,
                Reply::TooManyDeposits,
                Reply::Failed,
                Reply::NotMappable,
                Reply::Renewed,
                Reply::Refused(refusal),
            ] {
                prop_assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(frame: [u8; FRAME_BYTES], reply: [u8; REPLY_BYTES]) {
            let _ = Greeting::decode(&frame);
            let _ = Command::decode(&frame);
            let _ = Reply::decode(&reply);
            let mut bearer = [0; BEARER_BYTES];
            bearer[..FRAME_BYTES].copy_from_slice(&frame);
            let _ = Bearer::decode(&bearer);
        }
    }

    #[test]
    fn a_bearer_is_as_long_as_it_says() {
        let mut bytes = [0; BEARER_BYTES];
        bytes[..4].copy_from_slice(&4097u32.to_le_bytes());
        let too_long = Bearer::decode(&bytes).map(|_| ());
        assert_eq!(too_long, Err(ShmFrameError::TicketLength { len: 4097 }));
        bytes[..4].copy_from_slice(&3u32.to_le_bytes());
        bytes[BEARER_BYTES - 1] = 1;
        assert_eq!(
            Bearer::decode(&bytes).map(|_| ()),
            Err(ShmFrameError::Reserved)
        );
    }
}
