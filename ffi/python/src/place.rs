//! Private memory made shared where it lies, for engines that allocate their KV cache themselves.

use std::{io, os::fd::AsRawFd};

use kvferry_client::Failure;
use kvferry_memory::{HostMemory, HugePages};
use pyo3::prelude::*;

use crate::failure::raise;

/// Puts shared memory with the same bytes under [address, address + nbytes), which the caller found to be whole pages of
/// private anonymous memory of this process, readable and writable, that nobody writes to meanwhile. Gives a descriptor of the
/// memory, which is the caller's.
///
/// Done piece by piece would leave half of it converted where memory is short; so all is copied first.
#[pyfunction]
pub(crate) fn share_in_place(py: Python<'_>, address: usize, nbytes: usize) -> PyResult<i32> {
    let shared = py.detach(|| {
        let refused = |error: &dyn std::fmt::Display| {
            Failure::system("private memory cannot be made shared", error)
        };
        let copy = HostMemory::pool("kvferry-engine", nbytes as u64, HugePages::Off)
            .map_err(|error| refused(&error))?;
        let descriptor = copy.descriptor().map_err(|error| refused(&error))?;
        let (start, _) = copy.as_raw_parts();
        // SAFETY: the caller found [address, address + nbytes) to be mapped and readable; the copy has as many bytes and is
        // nobody else's yet.
        unsafe { copy_used(address as *const u8, start, nbytes) };
        // SAFETY: the range is whole pages that the caller found to be private anonymous memory; what was there is
        // replaced by the same bytes with the same rights, so that every pointer into it stays good.
        let mapped = unsafe {
            libc::mmap(
                address as *mut libc::c_void,
                nbytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                descriptor.as_raw_fd(),
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(refused(&io::Error::last_os_error()));
        }
        Ok(descriptor)
    });
    let descriptor = shared.map_err(|failure| raise(py, &failure))?;
    Ok(std::os::fd::IntoRawFd::into_raw_fd(descriptor))
}

/// What is looked at as a whole: a page.
const PAGE: usize = 4096;

/// Copies into memory that is zero, page by page, and leaves pages out that have nothing in them: memory that was
/// allocated and never used must not begin to take room.
///
/// # Safety
/// `from` has `len` readable bytes, `to` as many that are the caller's; they do not overlap.
unsafe fn copy_used(from: *const u8, to: *mut u8, len: usize) {
    for at in (0..len).step_by(PAGE) {
        let len = PAGE.min(len - at);
        // SAFETY: within what this function demands; nobody writes meanwhile, as `share_in_place` demands.
        let page = unsafe { std::slice::from_raw_parts(from.add(at), len) };
        if page.iter().any(|byte| *byte != 0) {
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), to.add(at), len) };
        }
    }
}
