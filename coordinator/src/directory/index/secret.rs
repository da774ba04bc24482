//! Block hash -> 64 bits that nobody outside can foresee.

use std::hash::{BuildHasher, RandomState};

/// Where an engine's hashes are uniform their bytes would do. They are opaque to us, so a tenant
/// could choose ones that collide; a secret of this process takes that away. What an index answers
/// doesn't depend on it.
#[derive(Debug)]
pub(super) struct Secret([u64; 8]);

impl Secret {
    pub(super) fn new() -> Self {
        let random = RandomState::new();
        Self(std::array::from_fn(|word| random.hash_one(word)))
    }

    /// `N` is a multiple of 16.
    #[inline]
    pub(super) fn hash<const N: usize>(&self, key: &[u8; N]) -> u64 {
        let mut state = self.0[7];
        for (pair, secrets) in key.chunks_exact(16).zip(self.0.chunks_exact(2)) {
            let (low, high) = pair.split_at(8);
            state = fold(
                word(low) ^ secrets[0] ^ state,
                word(high) ^ secrets[1].rotate_left(N as u32),
            );
        }
        // Every bit of the product is in every field we cut out of it.
        fold(state ^ self.0[6], 0x9e37_79b9_7f4a_7c15)
    }
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// Both halves of the product of two words: one multiplication that moves every bit.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}
