//! What goes over the descriptor socket: frames of fixed size, little-endian, every decoder total.
//!
//! ```text
//! hello     magic 4 | version u16 | 0 0 | incarnation u64 (0: any)
//! welcome   magic 4 | version u16 | status u8 | 0 | incarnation u64
//! command   kind u8 | writable u8 | 0 0 | region u32 | incarnation u64       deposit: one descriptor
//! reply     status u8 | 0 x 7 | a u64 | b u64                                open: two descriptors
//! ```

use kvferry_proto::{Incarnation, RegionId};

const MAGIC: [u8; 4] = *b"KVFs";
const VERSION: u16 = 1;
/// Bytes of a hello, a welcome and a command.
pub(super) const FRAME_BYTES: usize = 16;
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
    pub(super) incarnation: u64,
}

/// The owner's answers to a hello.
pub(super) const WELCOME: u8 = 0;
pub(super) const WRONG_INCARNATION: u8 = 1;
pub(super) const NOT_ALLOWED: u8 = 2;
pub(super) const BUSY: u8 = 3;

impl Greeting {
    pub(super) fn encode(self) -> [u8; FRAME_BYTES] {
        let mut out = [0; FRAME_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[6] = self.status;
        out[8..].copy_from_slice(&self.incarnation.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8; FRAME_BYTES]) -> Result<Self, ShmFrameError> {
        let [m0, m1, m2, m3, v0, v1, status, reserved, incarnation @ ..] = *bytes;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(ShmFrameError::Magic);
        }
        match u16::from_le_bytes([v0, v1]) {
            VERSION => {}
            found => return Err(ShmFrameError::Version { found }),
        }
        match (status, reserved) {
            (WELCOME | WRONG_INCARNATION | NOT_ALLOWED | BUSY, 0) => Ok(Self {
                status,
                incarnation: u64::from_le_bytes(incarnation),
            }),
            (_, 0) => Err(ShmFrameError::Status { found: status }),
            _ => Err(ShmFrameError::Reserved),
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
            (1 | 2, _) => Err(ShmFrameError::Reserved),
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
        };
        let mut out = [0; REPLY_BYTES];
        out[0] = status;
        out[8..16].copy_from_slice(&u64::to_le_bytes(a));
        out[16..].copy_from_slice(&u64::to_le_bytes(b));
        out
    }

    pub(super) fn decode(bytes: &[u8; REPLY_BYTES]) -> Result<Self, ShmFrameError> {
        let [status, 0, 0, 0, 0, 0, 0, 0, rest @ ..] = bytes else {
            return Err(ShmFrameError::Reserved);
        };
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
        fn frames_round_trip(a: u64, b: u32, writable: bool, status in 0u8..4) {
            let greeting = Greeting { status, incarnation: a };
            prop_assert_eq!(Greeting::decode(&greeting.encode()), Ok(greeting));
            let open = Command::Open { region: RegionId(b), incarnation: a, writable };
            for command in [open, Command::Deposit] {
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
            ] {
                prop_assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(frame: [u8; FRAME_BYTES], reply: [u8; REPLY_BYTES]) {
            let _ = Greeting::decode(&frame);
            let _ = Command::decode(&frame);
            let _ = Reply::decode(&reply);
        }
    }
}
