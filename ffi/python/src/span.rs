//! Memory of a Python object, by the buffer protocol or DLPack: where it lies, kept alive.

use std::ffi::{CStr, c_void};

use bytes::Bytes;
use pyo3::{
    buffer::PyUntypedBuffer,
    exceptions::{PyBufferError, PyTypeError},
    ffi,
    prelude::*,
};

/// DLPack's device types for memory that the processor can read.
const DL_CPU: [i32; 2] = [1, 3];
/// What a DLPack capsule is called until somebody takes it over; this library only looks.
const DL_NAME: &CStr = c"dltensor";
/// More dimensions than any tensor has.
const DL_MAX_DIMENSIONS: i32 = 64;

/// `DLTensor` of dlpack.h, which `DLManagedTensor` begins with.
#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

/// Memory of another object. As long as this lives the object keeps it.
#[pyclass(frozen, module = "kvferry._native")]
pub(crate) struct Span {
    /// Where it begins.
    #[pyo3(get)]
    address: usize,
    /// Bytes from its first element to its last.
    #[pyo3(get)]
    nbytes: usize,
    #[pyo3(get)]
    readonly: bool,
    /// Elements lie one after another, the last dimension fastest.
    #[pyo3(get)]
    contiguous: bool,
    /// DLPack's (device type, device id).
    #[pyo3(get)]
    device: (i32, i32),
    // One of them, so that the memory stays there.
    _buffer: Option<PyUntypedBuffer>,
    _capsule: Option<Py<PyAny>>,
}

#[pymethods]
impl Span {
    /// Of an object with the buffer protocol.
    #[staticmethod]
    fn of_buffer(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyUntypedBuffer::get(object)?;
        Ok(Self {
            address: buffer.buf_ptr() as usize,
            nbytes: buffer.len_bytes(),
            readonly: buffer.readonly(),
            contiguous: buffer.is_c_contiguous(),
            device: (1, 0),
            _buffer: Some(buffer),
            _capsule: None,
        })
    }

    /// Of a DLPack capsule.
    #[staticmethod]
    fn of_capsule(capsule: Bound<'_, PyAny>) -> PyResult<Self> {
        // SAFETY: any object may be asked; the answer is NULL, with an exception, where it is no capsule of that name.
        let pointer = unsafe { ffi::PyCapsule_GetPointer(capsule.as_ptr(), DL_NAME.as_ptr()) };
        if pointer.is_null() {
            return Err(PyErr::fetch(capsule.py()));
        }
        // SAFETY: a capsule called "dltensor" holds a DLManagedTensor, which begins with a DLTensor and lives as long
        // as the capsule (dlpack.h); nobody changes it.
        let tensor = unsafe { &*pointer.cast::<DlTensor>() };
        let dimensions = match tensor.ndim {
            0..=DL_MAX_DIMENSIONS => tensor.ndim as usize,
            _ => return Err(PyBufferError::new_err("a tensor of that many dimensions")),
        };
        if dimensions > 0 && tensor.shape.is_null() {
            return Err(PyBufferError::new_err("a tensor without a shape"));
        }
        // SAFETY: dlpack.h: as many as there are dimensions, living as long as the tensor; strides may be NULL.
        let (shape, strides) = unsafe {
            let strides = (!tensor.strides.is_null()).then(|| list(tensor.strides, dimensions));
            (list(tensor.shape, dimensions), strides)
        };
        let element = (u64::from(tensor.bits) * u64::from(tensor.lanes)).div_ceil(8);
        let (nbytes, contiguous) = extent(shape, strides, element)
            .ok_or_else(|| PyBufferError::new_err("a tensor whose strides go backwards"))?;
        let offset = usize::try_from(tensor.byte_offset)
            .map_err(|_| PyBufferError::new_err("a tensor beyond all memory"))?;
        Ok(Self {
            address: (tensor.data as usize).wrapping_add(offset),
            nbytes,
            readonly: false,
            contiguous,
            device: (tensor.device_type, tensor.device_id),
            _buffer: None,
            _capsule: Some(capsule.unbind()),
        })
    }

    fn __repr__(&self) -> String {
        format!("<{} bytes at {:#x}>", self.nbytes, self.address)
    }
}

/// # Safety
/// `pointer` has `len` values that nobody changes for `'a`, or `len` is 0.
unsafe fn list<'a>(pointer: *const i64, len: usize) -> &'a [i64] {
    match len {
        0 => &[],
        // SAFETY: as this function demands.
        _ => unsafe { std::slice::from_raw_parts(pointer, len) },
    }
}

/// Bytes from the first element to the last, and whether they lie in order. None where a stride is negative or nothing
/// is that large.
fn extent(shape: &[i64], strides: Option<&[i64]>, element: u64) -> Option<(usize, bool)> {
    let mut dense: u64 = 1;
    let mut last: u64 = 0;
    let mut contiguous = true;
    for (at, dimension) in shape.iter().enumerate().rev() {
        let dimension = u64::try_from(*dimension).ok()?;
        if dimension == 0 {
            return Some((0, true));
        }
        let stride = match strides {
            None => dense,
            Some(strides) => u64::try_from(*strides.get(at)?).ok()?,
        };
        contiguous &= dimension == 1 || stride == dense;
        last = last.checked_add((dimension - 1).checked_mul(stride)?)?;
        dense = dense.checked_mul(dimension)?;
    }
    let bytes = last.checked_add(1)?.checked_mul(element)?;
    Some((usize::try_from(bytes).ok()?, contiguous))
}

impl Span {
    /// That the processor can read it as one run of bytes.
    pub(crate) fn check_bytes(&self) -> PyResult<()> {
        if !DL_CPU.contains(&self.device.0) {
            return Err(PyTypeError::new_err(
                "memory of a device: register it (register_cuda), or copy it to the host first",
            ));
        }
        if !self.contiguous {
            return Err(PyBufferError::new_err("memory that is not contiguous"));
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.nbytes
    }

    /// A copy of some of its bytes; for spans that `check_bytes` is content with.
    pub(crate) fn copy(&self, from: usize, len: usize) -> Bytes {
        let len = len.min(self.nbytes.saturating_sub(from));
        let mut copy = Vec::with_capacity(len);
        // SAFETY: within the object's memory, which it keeps as long as `owner` lives; `copy` has room and is ours. What
        // Python writes meanwhile is torn at worst, and only bytes are read.
        unsafe {
            let start = (self.address as *const u8).add(from);
            std::ptr::copy_nonoverlapping(start, copy.as_mut_ptr(), len);
            copy.set_len(len);
        }
        copy.into()
    }
}
