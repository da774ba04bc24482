//! The second line against bad hardware; validated reads are the first.

use std::{fmt, hash::Hasher};

use twox_hash::XxHash3_64;

use crate::pb;

/// One in this many blocks is checked where the policy is `sampled`.
const SAMPLE_ONE_IN: u64 = 16;

/// Which of a namespace's blocks carry a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ChecksumPolicy {
    /// None.
    #[default]
    Off,
    /// One in 16, chosen by the block's hash, so that owner and reader agree.
    Sampled,
    /// Every block.
    Always,
}

impl ChecksumPolicy {
    /// Does the block with this hash carry a checksum?
    #[must_use]
    pub fn covers(self, hash: &[u8]) -> bool {
        match self {
            Self::Off => false,
            Self::Sampled => XxHash3_64::oneshot(hash).is_multiple_of(SAMPLE_ONE_IN),
            Self::Always => true,
        }
    }
}

impl fmt::Display for ChecksumPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Sampled => "sampled",
            Self::Always => "always",
        })
    }
}

impl From<pb::ChecksumPolicy> for ChecksumPolicy {
    fn from(message: pb::ChecksumPolicy) -> Self {
        match message {
            pb::ChecksumPolicy::Unspecified | pb::ChecksumPolicy::Off => Self::Off,
            pb::ChecksumPolicy::Sampled => Self::Sampled,
            pb::ChecksumPolicy::Always => Self::Always,
        }
    }
}

impl From<ChecksumPolicy> for pb::ChecksumPolicy {
    fn from(policy: ChecksumPolicy) -> Self {
        match policy {
            ChecksumPolicy::Off => Self::Off,
            ChecksumPolicy::Sampled => Self::Sampled,
            ChecksumPolicy::Always => Self::Always,
        }
    }
}

/// XXH3-64 of bytes that come piece by piece. With the widest instructions that the processor has.
pub struct Summing(XxHash3_64);

impl Default for Summing {
    fn default() -> Self {
        Self(XxHash3_64::new())
    }
}

impl Summing {
    /// The next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.write(piece);
    }

    /// Of all pieces so far.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.0.finish()
    }
}

impl fmt::Debug for Summing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Summing").field(&self.digest()).finish()
    }
}

/// XXH3-64 of a block's bytes. Never zero: zero means "none" on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum(u64);

impl Checksum {
    /// Takes the finished state of a hash over the block's bytes, in order.
    #[must_use]
    pub fn of(state: &Summing) -> Self {
        Self(state.digest().max(1))
    }

    /// Of bytes that lie in one piece.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(XxHash3_64::oneshot(bytes).max(1))
    }

    /// From the wire, where zero means none.
    #[must_use]
    pub fn from_wire(number: u64) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }

    /// To the wire.
    #[must_use]
    pub fn to_wire(checksum: Option<Self>) -> u64 {
        checksum.map_or(0, |sum| sum.0)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_and_whole_agree() {
        let mut state = Summing::default();
        state.update(b"ab");
        state.update(b"cd");
        assert_eq!(Checksum::of(&state), Checksum::of_bytes(b"abcd"));
    }

    /// Others compute it too: it must stay XXH3-64 with seed 0 (the second is xxhash's own sanity test of 2,048 bytes).
    #[test]
    fn it_is_xxh3() {
        assert_eq!(Checksum::of_bytes(b"").0, 0x2d06_8005_38d3_94c2);
        let (mut bytes, mut generator) = (Vec::new(), 2_654_435_761_u64);
        for _ in 0..2048 {
            bytes.push((generator >> 56) as u8);
            generator = generator.wrapping_mul(11_400_714_785_074_694_797);
        }
        assert_eq!(Checksum::of_bytes(&bytes).0, 0xdd59_e2c3_a5f0_38e0);
        for piece in [1, 63, 255, 256, 1024, 1500] {
            let mut state = Summing::default();
            bytes.chunks(piece).for_each(|piece| state.update(piece));
            assert_eq!(Checksum::of(&state), Checksum::of_bytes(&bytes));
        }
    }

    #[test]
    fn sampling_takes_about_one_in_sixteen() {
        let covered = (0..16_000u64)
            .filter(|n| ChecksumPolicy::Sampled.covers(&n.to_le_bytes()))
            .count();
        assert!((800..1200).contains(&covered), "{covered}");
    }
}
