//! A fixed number of plain values, on huge pages where there are many.

use std::{
    alloc::{Layout, alloc, dealloc, handle_alloc_error},
    fmt,
    ops::{Deref, DerefMut},
    ptr::{NonNull, with_exposed_provenance_mut},
};

use crate::chunks::{CHUNK, UNIT, chunks, map, order_of, unmap};

/// The cache line values begin on.
const LINE: usize = 64;

/// A boxed slice whose memory lies, from 64 KiB on, in chunks of huge pages (see `chunks`): arrays up
/// to a chunk take a power of two and share chunks, larger ones take whole chunks of their own. Smaller
/// ones are the allocator's. All begin on a cache line. Memory is touched when an array is made and
/// not later.
pub struct Array<T> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: an array owns its values as a boxed slice does.
unsafe impl<T: Send> Send for Array<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Array<T> {}

/// Where memory comes from: a function of its size, so that it need not be remembered.
enum Source {
    Nothing,
    Allocator(Layout),
    /// A piece of this order.
    Shared(usize),
    /// Chunks of so many bytes.
    Own(usize),
}

impl Source {
    fn of<T>(len: usize) -> Self {
        let layout = Layout::array::<T>(len).and_then(|layout| layout.align_to(LINE));
        let layout = layout.unwrap_or_else(|_| out_of_memory::<T>(len));
        match layout.size() {
            0 => Self::Nothing,
            bytes if bytes < UNIT => Self::Allocator(layout),
            bytes if bytes <= CHUNK => Self::Shared(order_of(bytes)),
            bytes => Self::Own(bytes.next_multiple_of(CHUNK)),
        }
    }
}

/// What a `Vec` does where there is no memory.
fn out_of_memory<T>(len: usize) -> ! {
    handle_alloc_error(Layout::array::<T>(len).unwrap_or(Layout::new::<T>()))
}

impl<T: Copy> Array<T> {
    const FITS: () = assert!(align_of::<T>() <= LINE && size_of::<T>() > 0);

    /// So many times a value. Where there is no memory the process ends, as with a `Vec`.
    #[must_use]
    pub fn new(value: T, len: usize) -> Self {
        let () = Self::FITS;
        let start = match Source::of::<T>(len) {
            Source::Nothing => return Self::default(),
            // SAFETY: the layout is not empty.
            Source::Allocator(layout) => unsafe { alloc(layout) },
            Source::Shared(order) => {
                let mut chunks = chunks();
                let piece = chunks.take(order).or_else(|| {
                    chunks.add(map(CHUNK)?);
                    chunks.take(order)
                });
                with_exposed_provenance_mut(piece.unwrap_or_else(|| out_of_memory::<T>(len)))
            }
            Source::Own(bytes) => {
                with_exposed_provenance_mut(map(bytes).unwrap_or_else(|| out_of_memory::<T>(len)))
            }
        };
        let start = NonNull::new(start.cast::<T>()).unwrap_or_else(|| out_of_memory::<T>(len));
        for at in 0..len {
            // SAFETY: memory for `len` values, ours alone, aligned for them (`FITS`).
            unsafe { start.add(at).write(value) };
        }
        Self { start, len }
    }

    /// How many values take no more memory than `len` do.
    #[must_use]
    pub fn room(len: usize) -> usize {
        match Source::of::<T>(len) {
            Source::Nothing | Source::Allocator(_) => len,
            Source::Shared(order) => (UNIT << order) / size_of::<T>(),
            Source::Own(bytes) => bytes / size_of::<T>(),
        }
    }
}

impl<T> Default for Array<T> {
    /// No values, and no memory.
    fn default() -> Self {
        Self {
            start: NonNull::dangling(),
            len: 0,
        }
    }
}

impl<T> Drop for Array<T> {
    fn drop(&mut self) {
        // Values are `Copy`: nothing is to be done about them.
        let start = self.start.as_ptr().cast::<u8>();
        match Source::of::<T>(self.len) {
            Source::Nothing => {}
            // SAFETY: allocated with this very layout, which is a function of the length.
            Source::Allocator(layout) => unsafe { dealloc(start, layout) },
            Source::Shared(order) => {
                let chunk = chunks().give(start.addr(), order);
                if let Some(chunk) = chunk {
                    unmap(chunk, CHUNK);
                }
            }
            Source::Own(bytes) => unmap(start.addr(), bytes),
        }
    }
}

impl<T> Deref for Array<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `len` values lie there, written when the array was made.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Array<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and nobody else has them.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: fmt::Debug> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way memory comes, at the sizes where it changes.
    #[test]
    fn arrays_hold_their_values_and_nobody_elses() {
        let sizes = [0, 1, 100, UNIT - 1, UNIT, UNIT + 1, CHUNK, CHUNK + 1];
        let mut arrays: Vec<(u8, Array<[u8; 1]>)> = Vec::new();
        for (round, len) in (0..3).flat_map(|_| sizes).enumerate() {
            arrays.push((round as u8, Array::new([round as u8], len)));
            // Some go, so that their memory is used again.
            if round % 4 == 3 {
                arrays.swap_remove(round / 2 % arrays.len());
            }
        }
        for (value, array) in &mut arrays {
            assert!(array.iter().all(|byte| byte[0] == *value));
            assert!(array.is_empty() || array.as_ptr().addr().is_multiple_of(LINE));
            if let Some(last) = array.last_mut() {
                last[0] = 255;
            }
        }
        for (value, array) in &arrays {
            let others = array.iter().rev().skip(1);
            assert!(others.into_iter().all(|byte| byte[0] == *value));
        }
    }

    #[test]
    fn room_is_what_the_memory_has_anyway() {
        assert_eq!(Array::<u64>::room(0), 0);
        assert_eq!(Array::<u64>::room(10), 10);
        assert_eq!(Array::<u64>::room(UNIT / 8 + 1), 2 * UNIT / 8);
        assert_eq!(Array::<u64>::room(CHUNK / 8 + 1), 2 * CHUNK / 8);
    }

    #[test]
    fn large_arrays_begin_on_a_huge_page() {
        let array = Array::new(1u64, CHUNK);
        assert!(array.as_ptr().addr().is_multiple_of(CHUNK));
        assert_eq!(array.iter().sum::<u64>(), CHUNK as u64);
    }
}
