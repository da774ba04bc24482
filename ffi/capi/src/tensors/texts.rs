//! Texts that are lent to C: they last as long as what they came with.

use std::ffi::CString;

use super::words::kvf_tensor;
use kvferry_proto::pb;

/// A NUL within would end it for C.
pub(super) fn lent(text: String) -> CString {
    let text = match text.contains('\0') {
        true => text.replace('\0', " "),
        false => text,
    };
    CString::new(text).unwrap_or_default()
}

/// A tensor with its texts.
pub(super) struct Tensor {
    name: CString,
    dtype: CString,
    shape: Vec<u64>,
    offset: u64,
    bytes: u64,
}

impl From<pb::TensorDescriptor> for Tensor {
    fn from(it: pb::TensorDescriptor) -> Self {
        Self {
            name: lent(it.name),
            dtype: lent(it.dtype),
            shape: it.shape,
            offset: it.offset,
            bytes: it.bytes,
        }
    }
}

impl Tensor {
    pub(super) fn to_c(&self) -> kvf_tensor {
        kvf_tensor {
            name: self.name.as_ptr(),
            dtype: self.dtype.as_ptr(),
            shape: self.shape.as_ptr(),
            dimensions: self.shape.len(),
            offset: self.offset,
            bytes: self.bytes,
        }
    }
}
