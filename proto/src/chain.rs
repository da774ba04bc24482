//! Block hashes as engines make them.
//!
//! vLLM's `sha256_cbor`: a block's hash is the SHA-256 of the canonical CBOR of
//! `(parent hash, token ids, extra keys)`, over full blocks only
//! (vllm/v1/core/kv_cache_utils.py, `hash_block_tokens`; vllm/utils/hashing.py, `sha256_cbor`).

use sha2::{Digest, Sha256};

use crate::BlockHash;

/// What vLLM hashes into `NONE_HASH` where `PYTHONHASHSEED` is not set
/// (`DEFAULT_NONE_HASH_SEED`, same file; seen in 0.32.0).
pub const DEFAULT_SEED: &str = "vllm-none-hash";

/// vLLM's chain with `sha256_cbor` and no extra keys.
#[derive(Debug, Clone)]
pub struct Sha256CborChain {
    parent: [u8; 32],
}

impl Sha256CborChain {
    /// Starts a chain from a seed: `PYTHONHASHSEED` where it is set, else [`DEFAULT_SEED`].
    #[must_use]
    pub fn new(seed: &str) -> Self {
        let mut cbor = Vec::with_capacity(seed.len() + 9);
        head(&mut cbor, TEXT, seed.len() as u64);
        cbor.extend_from_slice(seed.as_bytes());
        Self {
            parent: Sha256::digest(&cbor).into(),
        }
    }

    /// The hash the next block is chained on (`NONE_HASH` before the first).
    #[must_use]
    pub fn parent(&self) -> &[u8; 32] {
        &self.parent
    }

    /// Hashes the next full block of tokens.
    pub fn next(&mut self, tokens: &[u32]) -> BlockHash {
        let mut cbor = Vec::with_capacity(48 + tokens.len() * 5);
        head(&mut cbor, ARRAY, 3);
        head(&mut cbor, BYTES, self.parent.len() as u64);
        cbor.extend_from_slice(&self.parent);
        head(&mut cbor, ARRAY, tokens.len() as u64);
        for &token in tokens {
            head(&mut cbor, UNSIGNED, u64::from(token));
        }
        cbor.push(NULL);
        self.parent = Sha256::digest(&cbor).into();
        BlockHash::from(self.parent)
    }
}

// CBOR major types (RFC 8949, section 3.1), and null.
const UNSIGNED: u8 = 0 << 5;
const BYTES: u8 = 2 << 5;
const TEXT: u8 = 3 << 5;
const ARRAY: u8 = 4 << 5;
const NULL: u8 = 0xf6;

/// A head in its shortest form, as canonical CBOR wants it (RFC 8949, section 4.2.1).
fn head(out: &mut Vec<u8>, major: u8, value: u64) {
    match value {
        0..=23 => out.push(major | value as u8),
        24..=0xff => out.extend_from_slice(&[major | 24, value as u8]),
        0x100..=0xffff => {
            out.push(major | 25);
            out.extend_from_slice(&(value as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(major | 26);
            out.extend_from_slice(&(value as u32).to_be_bytes());
        }
        _ => {
            out.push(major | 27);
            out.extend_from_slice(&value.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        BlockHash::new(bytes).unwrap().to_string()
    }

    #[test]
    fn vectors_of_vllm() {
        let mut chain = Sha256CborChain::new(DEFAULT_SEED);
        assert_eq!(
            hex(chain.parent()),
            "9bd96a485ad84efdafb72ee48a1d7a69bcead0f8f0433173941b276b9581eef0"
        );
        let first: Vec<u32> = (0..16).collect();
        let second: Vec<u32> = (16..32).collect();
        assert_eq!(
            chain.next(&first).to_string(),
            "dc918a88b139e5afe60b88eda27508d4aee16c10fdc354791efea06206ac0749"
        );
        assert_eq!(
            chain.next(&second).to_string(),
            "c300ec275d7bf08af8fc63e76cdc0086911bbc7091e03c5cf892553bef84ef0c"
        );
    }

    #[test]
    fn heads_are_shortest() {
        let encode = |value| {
            let mut out = Vec::new();
            head(&mut out, UNSIGNED, value);
            out
        };
        // RFC 8949, appendix A.
        assert_eq!(encode(23), [0x17]);
        assert_eq!(encode(24), [0x18, 0x18]);
        assert_eq!(encode(1000), [0x19, 0x03, 0xe8]);
        assert_eq!(encode(1_000_000), [0x1a, 0x00, 0x0f, 0x42, 0x40]);
        assert_eq!(
            encode(1_000_000_000_000),
            [0x1b, 0, 0, 0, 0xe8, 0xd4, 0xa5, 0x10, 0]
        );
    }
}
