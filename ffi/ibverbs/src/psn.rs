//! Packet sequence numbers.

use std::hash::{BuildHasher, RandomState};

/// A packet sequence number: 24 bits, and arithmetic that wraps there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Psn(u32);

impl Psn {
    /// How many there are.
    const COUNT: u32 = 1 << 24;

    /// Checks a number that came from a peer. None where it has more than 24 bits.
    #[must_use]
    pub fn new(value: u32) -> Option<Self> {
        (value < Self::COUNT).then_some(Self(value))
    }

    /// One that late packets of an earlier connection do not hit but by chance.
    #[must_use]
    pub fn random() -> Self {
        // Each RandomState has keys of its own, from the system's randomness.
        let bits = RandomState::new().hash_one(0u8);
        Self((bits >> 40) as u32)
    }

    /// As a number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }

    /// The one `packets` later.
    #[must_use]
    pub fn after(self, packets: u32) -> Self {
        Self(self.0.wrapping_add(packets) % Self::COUNT)
    }

    /// How many packets after `earlier` this one is, at most half the circle; None where it is before.
    #[must_use]
    pub fn since(self, earlier: Self) -> Option<u32> {
        let distance = self.0.wrapping_sub(earlier.0) % Self::COUNT;
        (distance < Self::COUNT / 2).then_some(distance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_wraps_at_24_bits() {
        let last = Psn::new(0x00ff_ffff).unwrap();
        assert_eq!(Psn::new(0x0100_0000), None);
        assert_eq!(last.after(1).get(), 0);
        assert_eq!(last.after(1).since(last), Some(1));
        assert_eq!(last.since(last.after(1)), None);
        assert_eq!(last.since(last), Some(0));
        assert_eq!(last.after(u32::MAX).get(), 0x00ff_fffe);
    }

    #[test]
    fn random_ones_are_in_range_and_differ() {
        let some: std::collections::HashSet<u32> = (0..64).map(|_| Psn::random().get()).collect();
        assert!(some.iter().all(|psn| *psn < Psn::COUNT));
        assert!(some.len() > 60);
    }
}
