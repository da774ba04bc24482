//! How many bytes the KV cache of a token takes.

use super::trace::TOKENS_PER_BLOCK;

/// A model's cache, as far as its size goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Layers.
    pub layers: u32,
    /// What a layer keeps of a token.
    pub kept: Kept,
    /// Bytes of a number.
    pub dtype_bytes: u32,
}

/// What a layer keeps of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// K and V of every KV head.
    Heads {
        /// KV heads.
        count: u32,
        /// Numbers of each.
        dim: u32,
    },
    /// One compressed vector for all heads (multi-head latent attention), its rotary part included.
    Latent {
        /// Numbers.
        dim: u32,
    },
}

impl Shape {
    /// All layers together.
    #[must_use]
    pub fn token_bytes(&self) -> u64 {
        let numbers = match self.kept {
            Kept::Heads { count, dim } => 2 * u64::from(count) * u64::from(dim),
            Kept::Latent { dim } => dim.into(),
        };
        u64::from(self.layers) * numbers * u64::from(self.dtype_bytes)
    }

    /// Of a block of a trace.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        self.token_bytes() * TOKENS_PER_BLOCK
    }
}

/// A published model.
#[derive(Debug, Clone, Copy)]
pub struct Preset {
    /// As it is called on the command line.
    pub name: &'static str,
    /// From its published configuration, in bf16.
    pub shape: Shape,
}

const fn heads(name: &'static str, layers: u32, count: u32) -> Preset {
    let kept = Kept::Heads { count, dim: 128 };
    Preset {
        name,
        shape: Shape {
            layers,
            kept,
            dtype_bytes: 2,
        },
    }
}

/// Models whose shape is known here.
pub const PRESETS: [Preset; 4] = [
    heads("llama-3-8b", 32, 8),
    heads("llama-3-70b", 80, 8),
    heads("qwen3-32b", 64, 8),
    Preset {
        name: "deepseek-v3",
        shape: Shape {
            layers: 61,
            kept: Kept::Latent { dim: 576 },
            dtype_bytes: 2,
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_published_ones() {
        let token = |name| {
            let preset = PRESETS.iter().find(|preset| preset.name == name).unwrap();
            preset.shape.token_bytes()
        };
        assert_eq!(token("llama-3-8b"), 128 << 10);
        assert_eq!(token("llama-3-70b"), 320 << 10);
        assert_eq!(token("deepseek-v3"), 70_272);
        assert_eq!(PRESETS[0].shape.block_bytes(), 64 << 20);
    }
}
