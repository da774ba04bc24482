//! Between C and Rust: no panic gets out, no pointer is used unchecked.
//!
//! What cannot be checked here (that memory behind a pointer is there, and as large as is said) is the
//! caller's promise, written in the header; every `unsafe fn` below hands that promise on.

use std::{
    any::Any,
    ffi::{CStr, c_char},
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr::NonNull,
};

use kvferry_client::{Cause, Failure};

use crate::{error::to_c, kvf_error, kvf_status};

/// Longest text taken from C: a path has at most 4096 bytes on Linux, names are shorter.
const MAX_TEXT: usize = 4096;

/// Runs an exported function's body.
///
/// # Safety
/// `error` is NULL or points to memory for a `kvf_error` that nobody else uses meanwhile.
pub(crate) unsafe fn guard(
    error: *mut kvf_error,
    body: impl FnOnce() -> Result<(), Failure>,
) -> kvf_status {
    // What a panic leaves half-done is behind locks that do not poison, and counted in bounds; the
    // caller is told that it met a defect.
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => None,
        Ok(Err(failure)) => Some(failure),
        Err(panic) => Some(Failure::new(Cause::Internal, what_panicked(&*panic))),
    };
    let told = failure.as_ref().map_or(kvf_error::NONE, to_c);
    if let Some(place) = aligned(error) {
        // SAFETY: aligned and not NULL; memory for a `kvf_error` of the caller's, as this function demands.
        unsafe { place.write(told) };
    }
    told.status
}

/// Frees what was given out.
///
/// # Safety
/// NULL, or from Box::into_raw and used by nobody any more.
pub(crate) unsafe fn free<T>(given: *mut T) {
    // SAFETY: no error is to be told; else the caller's promise.
    unsafe {
        guard(std::ptr::null_mut(), || {
            if !given.is_null() && given.is_aligned() {
                drop(Box::from_raw(given));
            }
            Ok(())
        });
    }
}

fn what_panicked(panic: &(dyn Any + Send)) -> String {
    let said = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    format!("a defect in libkvferry, please report it: {said}")
}

/// The pointer, where it may be used for a `T` at all.
fn aligned<T>(pointer: *mut T) -> Option<NonNull<T>> {
    NonNull::new(pointer).filter(|pointer| pointer.is_aligned())
}

fn usable<T>(pointer: *const T, what: &str) -> Result<NonNull<T>, Failure> {
    aligned(pointer.cast_mut()).ok_or_else(|| {
        let wrong = if pointer.is_null() {
            "NULL"
        } else {
            "not aligned"
        };
        Failure::invalid(format!("{what} is {wrong}"))
    })
}

/// What a handle or struct of the caller's says.
///
/// # Safety
/// `pointer` is NULL or points to a valid `T` that nobody changes for `'a`.
pub(crate) unsafe fn reference<'a, T>(pointer: *const T, what: &str) -> Result<&'a T, Failure> {
    let pointer = usable(pointer, what)?;
    // SAFETY: aligned and not NULL; valid for `'a`, as this function demands.
    Ok(unsafe { pointer.as_ref() })
}

/// An array of the caller's. NULL is an empty one where `len` is 0.
///
/// # Safety
/// `pointer` is NULL or points to `len` valid `T` that nobody changes for `'a`.
pub(crate) unsafe fn slice<'a, T>(
    pointer: *const T,
    len: usize,
    max: usize,
    what: &str,
) -> Result<&'a [T], Failure> {
    if len == 0 {
        return Ok(&[]);
    }
    if len > max {
        return Err(Failure::new(
            Cause::BoundReached,
            format!("{len} {what}; at most {max} are allowed in one call: split it"),
        ));
    }
    let pointer = usable(pointer, what)?;
    // SAFETY: aligned and not NULL; `len` elements valid for `'a`, as this function demands; their bytes are
    // no more than isize::MAX, because every `max` is far below it.
    Ok(unsafe { std::slice::from_raw_parts(pointer.as_ptr(), len) })
}

/// Text of the caller's.
///
/// # Safety
/// `pointer` is NULL or points to text that ends with a NUL, which nobody changes meanwhile.
pub(crate) unsafe fn text(pointer: *const c_char, what: &str) -> Result<String, Failure> {
    let pointer = usable(pointer, what)?;
    // SAFETY: the text ends with a NUL, as this function demands, and strnlen reads no further than that.
    let len = unsafe { libc::strnlen(pointer.as_ptr(), MAX_TEXT + 1) };
    if len > MAX_TEXT {
        return Err(Failure::invalid(format!(
            "{what} is longer than {MAX_TEXT} bytes"
        )));
    }
    // SAFETY: as above; the NUL has just been found.
    let text = unsafe { CStr::from_ptr(pointer.as_ptr()) };
    let text = text
        .to_str()
        .map_err(|_| Failure::invalid(format!("{what} is not UTF-8")))?;
    Ok(text.to_owned())
}

/// A struct whose first field is its size, so that it can grow at its end.
///
/// # Safety
/// The type is `repr(C)`, begins with `size: usize`, and is valid with all bits zero and with whatever else
/// C writes to it: integers, raw pointers and `Option<extern fn>`s only.
pub(crate) unsafe trait Growing: Copy {
    /// Its size in the first release that had it.
    const FIRST_SIZE: usize;
}

/// A struct that grows: what the caller's header does not have yet is zero.
///
/// # Safety
/// `pointer` is NULL or points to as many readable bytes as its first field says.
pub(crate) unsafe fn sized<T: Growing>(pointer: *const T, what: &str) -> Result<T, Failure> {
    let pointer = usable(pointer, what)?;
    // SAFETY: aligned, not NULL, and begins with its size, as the trait and this function demand.
    let size = unsafe { pointer.cast::<usize>().read() };
    check_size::<T>(size, what)?;
    let mut copy = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: `size` bytes can be read, as this function demands; no more than T's are written to `copy`,
    // which is ours and does not overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(
            pointer.cast::<u8>().as_ptr(),
            copy.as_mut_ptr().cast::<u8>(),
            size.min(size_of::<T>()),
        );
    }
    // SAFETY: zeros and the caller's bytes are valid, as the trait demands.
    Ok(unsafe { copy.assume_init() })
}

fn check_size<T: Growing>(size: usize, what: &str) -> Result<(), Failure> {
    // Structs do not become that large; something else was taken for a size.
    const LARGEST: usize = 4096;
    if (T::FIRST_SIZE..=LARGEST).contains(&size) {
        return Ok(());
    }
    Err(Failure::invalid(format!(
        "{what}.size is {size}: set it to sizeof({what}) and the rest to zero"
    )))
}

/// Where a result goes.
pub(crate) struct Out<'a, T>(NonNull<T>, PhantomData<&'a mut T>);

impl<T> Out<'_, T> {
    pub(crate) fn set(self, value: T) {
        // SAFETY: `out` was promised memory for a T that is the caller's alone for as long as this lives.
        unsafe { self.0.write(value) };
    }
}

/// A place for a result, which need not be initialised.
///
/// # Safety
/// `pointer` is NULL or points to writable memory for a `T` that nobody else uses for `'a`.
pub(crate) unsafe fn out<'a, T>(pointer: *mut T, what: &str) -> Result<Out<'a, T>, Failure> {
    Ok(Out(usable(pointer, what)?, PhantomData))
}

/// As `out`, for a result that not everybody wants.
///
/// # Safety
/// As `out`.
pub(crate) unsafe fn optional_out<'a, T>(
    pointer: *mut T,
    what: &str,
) -> Result<Option<Out<'a, T>>, Failure> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the same promise.
    unsafe { out(pointer, what) }.map(Some)
}

/// Places for an array of results, which need not be initialised.
pub(crate) struct OutSlice<'a, T> {
    start: *mut T,
    len: usize,
    lives: PhantomData<&'a mut T>,
}

impl<T> OutSlice<'_, T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Writes as many as there is room for; gives their number.
    pub(crate) fn fill(self, values: impl IntoIterator<Item = T>) -> usize {
        let mut filled = 0;
        for value in values.into_iter().take(self.len) {
            // SAFETY: below `len`, for which `out_slice` was promised room, the caller's alone.
            unsafe { self.start.add(filled).write(value) };
            filled += 1;
        }
        filled
    }
}

/// Room for `len` results; NULL where `len` is 0.
///
/// # Safety
/// `pointer` is NULL or points to writable memory for `len` `T` that nobody else uses for `'a`.
pub(crate) unsafe fn out_slice<'a, T>(
    pointer: *mut T,
    len: usize,
    what: &str,
) -> Result<OutSlice<'a, T>, Failure> {
    let lives = PhantomData;
    if len == 0 {
        let start = NonNull::dangling().as_ptr();
        return Ok(OutSlice { start, len, lives });
    }
    let start = usable(pointer, what)?.as_ptr();
    Ok(OutSlice { start, len, lives })
}

/// A struct that grows, written no further than the caller's header has it.
///
/// # Safety
/// `pointer` is NULL or points to as many writable bytes as its first field says, the caller's alone.
pub(crate) unsafe fn write_sized<T: Growing>(
    pointer: *mut T,
    value: &T,
    what: &str,
) -> Result<(), Failure> {
    let place = usable(pointer, what)?;
    // SAFETY: aligned, not NULL, and begins with its size, as the trait and this function demand.
    let size = unsafe { place.cast::<usize>().read() };
    check_size::<T>(size, what)?;
    let skip = size_of::<usize>();
    // SAFETY: `size` bytes can be written, as this function demands, and `value` has at least as many as are
    // copied; the two do not overlap, because `value` is ours. The size itself stays as it is.
    unsafe {
        std::ptr::copy_nonoverlapping(
            std::ptr::from_ref(value).cast::<u8>().add(skip),
            place.cast::<u8>().as_ptr().add(skip),
            size.min(size_of::<T>()) - skip,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_status() {
        let mut error = kvf_error::NONE;
        // SAFETY: `error` is a local.
        let status = unsafe { guard(&raw mut error, || panic!("so it is")) };
        assert_eq!(status, kvf_status::KVF_INTERNAL);
        let said: Vec<u8> = error.message.iter().map(|byte| *byte as u8).collect();
        assert!(String::from_utf8_lossy(&said).contains("so it is"));
    }

    #[test]
    fn what_cannot_be_a_pointer_is_refused() {
        let odd = std::ptr::without_provenance::<u64>(3);
        // SAFETY: none of these is read.
        unsafe {
            assert!(reference::<u64>(std::ptr::null(), "x").is_err());
            assert!(reference(odd, "x").is_err());
            assert!(slice(odd, 1, 8, "x").is_err());
            assert!(slice(odd, 0, 8, "x").is_ok());
            assert!(slice(&raw const *[0u8; 9].as_slice().first().unwrap(), 9, 8, "x").is_err());
            assert!(text(std::ptr::null(), "x").is_err());
            assert!(out::<u64>(std::ptr::null_mut(), "x").is_err());
        }
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Grown {
        size: usize,
        old: u64,
        new: u64,
    }

    // SAFETY: repr(C), begins with its size, integers only.
    unsafe impl Growing for Grown {
        const FIRST_SIZE: usize = 16;
    }

    #[test]
    fn a_struct_of_an_older_header_is_read_and_written_within_its_size() {
        let mut given = Grown {
            size: 16,
            old: 1,
            new: 2,
        };
        let all = Grown {
            size: 24,
            old: 7,
            new: 8,
        };
        // SAFETY: locals, larger than their sizes say.
        unsafe {
            let read = sized(&raw const given, "grown").unwrap();
            assert_eq!((read.old, read.new), (1, 0));
            write_sized(&raw mut given, &all, "grown").unwrap();
            assert_eq!((given.size, given.old, given.new), (16, 7, 2));
            given.size = 8;
            assert!(sized(&raw const given, "grown").is_err());
        }
    }
}
