//! One tensor, and what its bytes must be.

use super::{MAX_DIMENSIONS, MAX_DTYPE, MAX_TENSOR_NAME, TensorError};
use crate::{pb, source::visible};

/// One tensor of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    pub(super) name: Box<str>,
    pub(super) dtype: Box<str>,
    pub(super) shape: Box<[u64]>,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl Tensor {
    /// Its name, unique in the set.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Bytes from the first chunk's first.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }
    /// How many it has; may be 0.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes it takes in a message, at most.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        // Tags, lengths and numbers at their longest.
        self.name.len() + self.dtype.len() + 10 * self.shape.len() + 48
    }
}

impl TryFrom<pb::TensorDescriptor> for Tensor {
    type Error = TensorError;
    fn try_from(message: pb::TensorDescriptor) -> Result<Self, TensorError> {
        let name = message.name;
        visible("tensor name", &name, 1, MAX_TENSOR_NAME)
            .map_err(|error| TensorError::Name(error.to_string()))?;
        let dtype = message.dtype;
        if dtype.is_empty()
            || dtype.len() > MAX_DTYPE
            || !dtype.bytes().all(|b| b.is_ascii_graphic())
        {
            let dtype = dtype.chars().take(MAX_DTYPE * 2).collect();
            return Err(TensorError::Dtype { name, dtype });
        }
        let elements = message
            .shape
            .iter()
            .try_fold(1u64, |all, size| all.checked_mul(*size))
            .filter(|all| *all < 1 << 60 && message.shape.len() <= MAX_DIMENSIONS);
        let Some(elements) = elements else {
            return Err(TensorError::Shape { name });
        };
        if let Some(bits) = bits_of(&dtype) {
            // Below 2^66 bits, so in u128.
            let want = (u128::from(elements) * u128::from(bits)).div_ceil(8);
            if want != u128::from(message.bytes) {
                return Err(TensorError::Bytes {
                    name,
                    got: message.bytes,
                    want: u64::try_from(want).unwrap_or(u64::MAX),
                });
            }
        }
        Ok(Self {
            name: name.into(),
            dtype: dtype.into(),
            shape: message.shape.into(),
            offset: message.offset,
            bytes: message.bytes,
        })
    }
}

impl From<&Tensor> for pb::TensorDescriptor {
    fn from(tensor: &Tensor) -> Self {
        Self {
            name: tensor.name.to_string(),
            dtype: tensor.dtype.to_string(),
            shape: tensor.shape.to_vec(),
            offset: tensor.offset,
            bytes: tensor.bytes,
        }
    }
}

/// Bits of an element, for the names whose meaning is fixed (safetensors'); None for others.
fn bits_of(dtype: &str) -> Option<u8> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    })
}
