//! Copies between memories, and between memory and buffers.
//!
//! Stable memory is copied by the processor. Memory whose file may shrink is copied by the kernel
//! (`pread`, `pwrite`), which answers a truncated file with an error instead of a signal.

use std::{io, ops::Range, os::fd::AsRawFd};

use crate::{AccessError, HostMemory};

/// Bytes moved through a buffer at a time where the processor must look at them: fits the second
/// level cache with room for what else is hot.
const BOUNCE_BYTES: usize = 64 << 10;

/// As [`BOUNCE_BYTES`], where each piece costs no system call: a quarter of the first level cache.
const NEAR_BYTES: usize = 8 << 10;

impl HostMemory {
    /// Copies bytes out.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`] or [`AccessError::Gone`].
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), AccessError> {
        self.range(offset, into.len() as u64)?;
        // SAFETY: `into` is valid for writes of its length and nothing else refers to it.
        unsafe { self.copy_out(offset, into.as_mut_ptr(), into.len()) }
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`], [`AccessError::ReadOnly`] or [`AccessError::Gone`].
    pub fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), AccessError> {
        // SAFETY: `from` is valid for reads of its length.
        unsafe { self.copy_in(offset, from.as_ptr(), from.len()) }
    }

    /// # Safety
    /// `into` is valid for writes of `len` bytes and does not overlap this memory's range.
    unsafe fn copy_out(&self, offset: u64, into: *mut u8, len: usize) -> Result<(), AccessError> {
        let at = self.range(offset, len as u64)?;
        if self.is_stable() {
            // SAFETY: the source range is inside the mapping, the destination is the caller's
            // promise. Others may write to the source meanwhile: the bytes are then of no use, which
            // the generation words tell, and no reference to them exists.
            unsafe { libc::memcpy(into.cast(), self.as_ptr().add(at).cast(), len) };
            return Ok(());
        }
        self.by_kernel(offset, len, |fd, done, offset| {
            // SAFETY: `into + done` is valid for writes of `len - done` bytes.
            unsafe { libc::pread(fd, into.add(done).cast(), len - done, offset) }
        })
    }

    /// # Safety
    /// `from` is valid for reads of `len` bytes and does not overlap this memory's range.
    unsafe fn copy_in(&self, offset: u64, from: *const u8, len: usize) -> Result<(), AccessError> {
        let at = self.range(offset, len as u64)?;
        if !self.is_writable() {
            return Err(AccessError::ReadOnly);
        }
        if self.is_stable() {
            // SAFETY: as in `copy_out`, the other way round; the mapping is writable.
            unsafe { libc::memcpy(self.as_ptr().add(at).cast(), from.cast(), len) };
            return Ok(());
        }
        self.by_kernel(offset, len, |fd, done, offset| {
            // SAFETY: `from + done` is valid for reads of `len - done` bytes.
            unsafe { libc::pwrite(fd, from.add(done).cast(), len - done, offset) }
        })
    }

    /// Repeats a positioned read or write until all is moved.
    fn by_kernel(
        &self,
        offset: u64,
        len: usize,
        mut step: impl FnMut(i32, usize, i64) -> isize,
    ) -> Result<(), AccessError> {
        let Some(file) = self.file() else {
            // Anonymous memory is stable; nothing else lacks a file.
            return Err(AccessError::Gone(io::ErrorKind::Unsupported.into()));
        };
        let mut done = 0;
        while done < len {
            let at = i64::try_from(offset + done as u64)
                .map_err(|_| AccessError::Gone(io::ErrorKind::InvalidInput.into()))?;
            match step(file.as_raw_fd(), done, at) {
                0 => return Err(AccessError::Gone(io::ErrorKind::UnexpectedEof.into())),
                moved if moved > 0 => done += moved.unsigned_abs(),
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(AccessError::Gone(error));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Copies the bytes of `from_ranges`, in order, to `to_ranges`, in order. The two may be cut
/// differently; their total lengths must be equal.
///
/// # Errors
/// [`AccessError`]; then some bytes may have been copied.
pub fn copy_ranges(
    from: &HostMemory,
    from_ranges: impl IntoIterator<Item = Range<u64>>,
    to: &HostMemory,
    to_ranges: impl IntoIterator<Item = Range<u64>>,
) -> Result<(), AccessError> {
    let (mut sources, mut targets) = (from_ranges.into_iter(), to_ranges.into_iter());
    let (mut source, mut target) = (0..0, 0..0);
    loop {
        if source.is_empty() {
            match sources.next() {
                Some(next) => {
                    source = next;
                    continue;
                }
                None if target.is_empty() && targets.all(|range| range.is_empty()) => return Ok(()),
                None => return Err(AccessError::LengthMismatch),
            }
        }
        if target.is_empty() {
            target = targets.next().ok_or(AccessError::LengthMismatch)?;
            continue;
        }
        let len = (source.end - source.start).min(target.end - target.start);
        copy_one(from, source.start, to, target.start, len)?;
        source.start += len;
        target.start += len;
    }
}

fn copy_one(
    from: &HostMemory,
    from_offset: u64,
    to: &HostMemory,
    to_offset: u64,
    len: u64,
) -> Result<(), AccessError> {
    let from_at = from.range(from_offset, len)?;
    let to_at = to.range(to_offset, len)?;
    let bytes = len as usize; // within a mapping, so it fits
    if from.is_stable() && !std::ptr::eq(from, to) {
        // SAFETY: the source range is inside a stable mapping other than the destination's; two
        // mappings of one file may still name the same bytes, then equal bytes are stored.
        return unsafe { to.copy_in(to_offset, from.as_ptr().add(from_at), bytes) };
    }
    if to.is_stable() && to.is_writable() && !std::ptr::eq(from, to) {
        // SAFETY: the destination range is inside a stable, writable mapping other than the source's.
        return unsafe { from.copy_out(from_offset, to.as_ptr().add(to_at), bytes) };
    }
    let mut bounce = vec![0; BOUNCE_BYTES.min(bytes)];
    let mut done = 0;
    while done < bytes {
        let step = bounce.len().min(bytes - done);
        from.read_at(from_offset + done as u64, &mut bounce[..step])?;
        to.write_at(to_offset + done as u64, &bounce[..step])?;
        done += step;
    }
    Ok(())
}

/// Shows the bytes of `ranges`, in order, to `look`, piece by piece, through a private buffer. It is small enough that
/// what is copied there is looked at in the first level cache.
///
/// # Errors
/// [`AccessError::OutOfRange`] or [`AccessError::Gone`].
pub fn fold_ranges(
    memory: &HostMemory,
    ranges: impl IntoIterator<Item = Range<u64>>,
    mut look: impl FnMut(&[u8]),
) -> Result<(), AccessError> {
    let (mut near, mut far) = ([0; NEAR_BYTES], Vec::new());
    let bounce: &mut [u8] = match memory.is_stable() {
        true => &mut near,
        false => {
            far.resize(BOUNCE_BYTES, 0);
            &mut far
        }
    };
    for mut range in ranges {
        while !range.is_empty() {
            let step = (range.end - range.start).min(bounce.len() as u64);
            let piece = &mut bounce[..step as usize];
            memory.read_at(range.start, piece)?;
            look(piece);
            range.start += step;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HugePages;

    fn unstable(len: u64) -> HostMemory {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        HostMemory::import(file.into()).unwrap()
    }

    fn contents(memory: &HostMemory) -> Vec<u8> {
        let mut all = Vec::new();
        fold_ranges(memory, std::iter::once(0..memory.len()), |piece| {
            all.extend_from_slice(piece);
        })
        .unwrap();
        all
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)]
    fn ranges_cut_differently_are_copied_in_order() {
        let pool = |len| HostMemory::pool("test", len, HugePages::Off).unwrap();
        let pairs = [
            (pool(256), pool(256)),
            (pool(256), unstable(256)),
            (unstable(256), pool(256)),
            (unstable(256), unstable(256)),
        ];
        for (from, to) in pairs {
            let bytes: Vec<u8> = (0..=255).collect();
            from.write_at(0, &bytes).unwrap();
            copy_ranges(&from, [0..10, 100..110], &to, [50..53, 0..17]).unwrap();
            let seen = contents(&to);
            assert_eq!(seen[50..53], [0, 1, 2]);
            assert_eq!(seen[0..7], [3, 4, 5, 6, 7, 8, 9]);
            assert_eq!(seen[7..17], bytes[100..110]);
            for (a, b) in [(0..10, 0..11), (0..11, 0..10)] {
                assert!(matches!(
                    copy_ranges(&from, [a], &to, [b]),
                    Err(AccessError::LengthMismatch)
                ));
            }
            assert!(matches!(
                copy_ranges(&from, [250..260], &to, [0..10]),
                Err(AccessError::OutOfRange { .. })
            ));
        }
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)]
    fn one_memory_can_be_copied_within() {
        let memory = HostMemory::anonymous(64).unwrap();
        memory.write_at(0, b"abcd").unwrap();
        copy_ranges(&memory, [0..4], &memory, [32..36]).unwrap();
        assert_eq!(&contents(&memory)[32..36], b"abcd");
    }
}
