//! Memory as Python sees it: a region of the agent's, mapped, with windows that can be closed; and memory to be
//! registered.

use std::{
    ffi::c_int,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use kvferry_agent::transport::shm::RegionDescriptors;
use kvferry_client::{Cause, Failure};
use kvferry_memory::{GenerationView, HostMemory, HugePages};
use pyo3::{exceptions::PyBufferError, ffi, prelude::*};

use crate::failure::raise;

/// A region's memory and generation words in this process.
pub(crate) struct Mapped {
    memory: HostMemory,
    generations: GenerationView,
    writable: bool,
}

impl Mapped {
    /// Maps what the agent gave.
    pub(crate) fn new(given: RegionDescriptors, writable: bool) -> Result<Self, Failure> {
        let refused = |error: kvferry_memory::MemoryError| {
            Failure::new(Cause::Memory, format!("a region cannot be mapped: {error}"))
        };
        let memory = match writable {
            true => HostMemory::import(given.data),
            false => HostMemory::view(given.data),
        };
        Ok(Self {
            memory: memory.map_err(refused)?,
            generations: GenerationView::new(given.generations).map_err(refused)?,
            writable,
        })
    }
}

/// A region of the agent's, mapped.
#[pyclass(frozen, module = "kvferry._native")]
pub(crate) struct Mapping(pub(crate) Arc<Mapped>);

#[pymethods]
impl Mapping {
    #[getter]
    fn nbytes(&self) -> u64 {
        self.0.memory.len()
    }

    /// A piece of it.
    fn window(&self, py: Python<'_>, offset: u64, len: u64) -> PyResult<Window> {
        let inside = offset
            .checked_add(len)
            .is_some_and(|end| end <= self.0.memory.len());
        if !inside {
            let failure = Failure::new(
                Cause::SpanOutOfRegion,
                format!("{len} bytes at {offset} are not within the region"),
            );
            return Err(raise(py, &failure));
        }
        Ok(Window {
            mapped: Arc::clone(&self.0),
            // Within the mapping, so that both fit.
            offset: offset as usize,
            len: len as usize,
            exports: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        })
    }

    /// The generation of each of these slots, after everything that was read before.
    fn generations(&self, py: Python<'_>, slots: Vec<u32>) -> PyResult<Vec<u64>> {
        let load = |slot| {
            self.0.generations.load(slot).map_err(|error| {
                let text = format!("slot {slot}: {error}");
                raise(py, &Failure::new(Cause::SlotOutOfRegion, text))
            })
        };
        slots.into_iter().map(load).collect()
    }
}

/// A piece of a mapping that has the buffer protocol until it is closed.
#[pyclass(frozen, module = "kvferry._native")]
pub(crate) struct Window {
    mapped: Arc<Mapped>,
    offset: usize,
    len: usize,
    exports: AtomicUsize,
    closed: AtomicBool,
}

#[pymethods]
impl Window {
    /// How many buffers of it are in use.
    #[getter]
    fn exports(&self) -> usize {
        self.exports.load(Ordering::Acquire)
    }

    /// No buffer is given out any more; false, and nothing is changed, while one is in use.
    fn close(&self) -> bool {
        // Both under the GIL, as is giving one out; without a GIL at worst one is given out just before the second look.
        self.closed.store(true, Ordering::SeqCst);
        let free = self.exports.load(Ordering::SeqCst) == 0;
        if !free {
            self.closed.store(false, Ordering::SeqCst);
        }
        free
    }

    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let window = slf.get();
        window.exports.fetch_add(1, Ordering::SeqCst);
        let given = if window.closed.load(Ordering::SeqCst) {
            // SAFETY: Python hands in a buffer to be filled; without an object it is not to be released.
            unsafe { (*view).obj = std::ptr::null_mut() };
            Err(PyBufferError::new_err("the block is not kept any more"))
        } else {
            let (start, _) = window.mapped.memory.as_raw_parts();
            // SAFETY: the window was found to be within the mapping.
            let start = unsafe { start.add(window.offset) };
            let readonly = !window.mapped.writable;
            // SAFETY: Python's buffer, and memory that lives as long as `slf`, which the buffer refers to.
            unsafe { fill(view, &slf, start, window.len, readonly, flags) }
        };
        if given.is_err() {
            window.exports.fetch_sub(1, Ordering::SeqCst);
        }
        given
    }

    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.exports.fetch_sub(1, Ordering::SeqCst);
    }
}

/// # Safety
/// `view` is Python's, to be filled; `start` has `len` bytes that live as long as `object`.
unsafe fn fill<T>(
    view: *mut ffi::Py_buffer,
    object: &Bound<'_, T>,
    start: *mut u8,
    len: usize,
    readonly: bool,
    flags: c_int,
) -> PyResult<()> {
    // SAFETY: as this function demands; the length is a mapping's, so that it fits.
    let filled = unsafe {
        ffi::PyBuffer_FillInfo(
            view,
            object.as_ptr(),
            start.cast(),
            len as ffi::Py_ssize_t,
            c_int::from(readonly),
            flags,
        )
    };
    match filled {
        0 => Ok(()),
        _ => Err(PyErr::fetch(object.py())),
    }
}

/// Memory of this process that an agent can map: `kvferry.SharedMemory`.
#[pyclass(frozen, subclass, module = "kvferry._native")]
pub(crate) struct SharedMemory {
    memory: HostMemory,
    descriptor: OwnedFd,
}

#[pymethods]
impl SharedMemory {
    #[new]
    #[pyo3(signature = (nbytes, *, hugepages=false))]
    fn new(py: Python<'_>, nbytes: u64, hugepages: bool) -> PyResult<Self> {
        let hugepages = match hugepages {
            true => HugePages::Required,
            false => HugePages::Off,
        };
        let make = || {
            let memory = HostMemory::pool("kvferry-engine", nbytes, hugepages)?;
            let descriptor = memory.descriptor()?;
            Ok(Self { memory, descriptor })
        };
        make().map_err(|error: kvferry_memory::MemoryError| {
            raise(py, &Failure::new(Cause::Memory, error.to_string()))
        })
    }

    #[getter]
    fn nbytes(&self) -> u64 {
        self.memory.len()
    }

    #[getter]
    fn fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }

    fn __len__(&self) -> usize {
        self.memory.as_raw_parts().1
    }

    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let (start, len) = slf.get().memory.as_raw_parts();
        // SAFETY: Python's buffer, and a mapping that lives as long as `slf`, which the buffer refers to.
        unsafe { fill(view, &slf, start, len, false, flags) }
    }
}
