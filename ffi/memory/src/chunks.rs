//! Anonymous memory for large tables, on huge pages where the system gives any.
//!
//! A look-up in a table of gigabytes misses the translation caches as often as the data caches; with
//! pages of 2 MiB the former nearly goes away. The system is asked for whole chunks of that size; what is
//! smaller lies in one of them together with others, so that no page is half used.

use std::{
    collections::{BTreeMap, BTreeSet},
    ptr::with_exposed_provenance_mut,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A huge page of x86-64, and of arm64 with pages of 4 KiB. Where huge pages have another size nothing
/// goes wrong: they are then not used. Miri, which has none, takes a minute for so many bytes.
pub(crate) const CHUNK: usize = if cfg!(miri) { 4 << 10 } else { 2 << 20 };
/// The least that is handed out: as many as a word has bits make a chunk.
pub(crate) const UNIT: usize = CHUNK / u32::BITS as usize;
/// Pieces have 2^order units, from one to all of them.
const ORDERS: usize = u32::BITS.trailing_zeros() as usize + 1;

static CHUNKS: Mutex<Chunks> = Mutex::new(Chunks::new());

/// Chunks of which pieces are in use.
#[derive(Debug)]
pub(crate) struct Chunks {
    /// By address: a bit a unit that is free.
    free: BTreeMap<usize, u32>,
    /// Those with room, by the order of the largest piece there is room for.
    room: [BTreeSet<usize>; ORDERS],
}

/// Those of this process. A table that panicked while it held them left them whole: nothing in here
/// panics half-way.
pub(crate) fn chunks() -> MutexGuard<'static, Chunks> {
    CHUNKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The order of the smallest piece of so many bytes, at most a chunk.
pub(crate) fn order_of(bytes: usize) -> usize {
    bytes.div_ceil(UNIT).next_power_of_two().trailing_zeros() as usize
}

/// Where pieces of an order may begin: a bit a unit.
fn aligned(order: usize) -> u32 {
    (0..u32::BITS)
        .step_by(1 << order)
        .fold(0, |all, unit| all | 1 << unit)
}

/// The first free piece of an order.
fn piece(free: u32, order: usize) -> Option<u32> {
    let runs = (0..order).fold(free, |runs, half| runs & runs >> (1 << half));
    let starts = runs & aligned(order);
    (starts != 0).then(|| starts.trailing_zeros())
}

/// The units of a piece.
fn units(first: u32, order: usize) -> u32 {
    (u32::MAX >> (u32::BITS - (1 << order))) << first
}

impl Chunks {
    const fn new() -> Self {
        Self {
            free: BTreeMap::new(),
            room: [const { BTreeSet::new() }; ORDERS],
        }
    }

    /// A piece of an order, where there is one in a chunk that is in use anyway.
    pub(crate) fn take(&mut self, order: usize) -> Option<usize> {
        let chunk = *self.room[order..].iter().find_map(BTreeSet::first)?;
        let free = *self.free.get(&chunk)?;
        let first = piece(free, order)?;
        self.put(chunk, free, free & !units(first, order));
        Some(chunk + first as usize * UNIT)
    }

    /// A chunk from the system, to take pieces of.
    pub(crate) fn add(&mut self, chunk: usize) {
        self.put(chunk, 0, u32::MAX);
    }

    /// Takes a piece back. A chunk that is nobody's any more comes back, to be unmapped.
    pub(crate) fn give(&mut self, piece: usize, order: usize) -> Option<usize> {
        let chunk = piece & !(CHUNK - 1);
        let first = ((piece - chunk) / UNIT) as u32;
        let free = *self.free.get(&chunk)?;
        let now = free | units(first, order);
        self.put(chunk, free, now);
        if now != u32::MAX {
            return None;
        }
        self.put(chunk, now, 0);
        self.free.remove(&chunk);
        Some(chunk)
    }

    fn put(&mut self, chunk: usize, before: u32, now: u32) {
        let largest = |free| {
            (0..ORDERS)
                .rev()
                .find(|order| piece(free, *order).is_some())
        };
        if let Some(order) = largest(before) {
            self.room[order].remove(&chunk);
        }
        if let Some(order) = largest(now) {
            self.room[order].insert(chunk);
        }
        self.free.insert(chunk, now);
    }
}

/// Maps memory for so many bytes, a multiple of a chunk, on the boundary of one, and asks for huge
/// pages. It is zero, and takes nothing until it is touched. None where there is no more.
#[cfg(not(miri))]
pub(crate) fn map(bytes: usize) -> Option<usize> {
    let all = bytes.checked_add(CHUNK)?;
    // SAFETY: a new mapping of nothing, where the kernel likes: no memory that is in use changes.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            all,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return None;
    }
    let start = start.expose_provenance();
    let begin = start.next_multiple_of(CHUNK);
    unmap(start, begin - start);
    unmap(begin + bytes, start + all - (begin + bytes));
    // SAFETY: advice about a mapping of our own. Where the kernel doesn't take it the pages are small.
    unsafe {
        libc::madvise(
            with_exposed_provenance_mut(begin),
            bytes,
            libc::MADV_HUGEPAGE,
        );
    }
    Some(begin)
}

/// Gives back what [`map`] gave, or an end of it. Nobody may use it any more.
#[cfg(not(miri))]
pub(crate) fn unmap(start: usize, bytes: usize) {
    if bytes > 0 {
        // SAFETY: a part of a mapping of ours that nothing points into: `map` cuts off what it
        // hands to nobody, and an `Array` gives back what it alone had. It can fail only where the
        // kernel has no room for the rest's bookkeeping; the memory is then lost, and not misused.
        unsafe { libc::munmap(with_exposed_provenance_mut(start), bytes) };
    }
}

/// For Miri, which gives back no part of a mapping: the same from the allocator, so that it can follow who uses what.
#[cfg(miri)]
pub(crate) fn map(bytes: usize) -> Option<usize> {
    let layout = std::alloc::Layout::from_size_align(bytes, CHUNK).ok()?;
    // SAFETY: an array has more than nothing.
    let start = unsafe { std::alloc::alloc_zeroed(layout) };
    (!start.is_null()).then(|| start.expose_provenance())
}

/// As [`map`].
#[cfg(miri)]
pub(crate) fn unmap(start: usize, bytes: usize) {
    if let Ok(layout) = std::alloc::Layout::from_size_align(bytes, CHUNK) {
        // SAFETY: allocated with this layout: only whole mappings are given back where `map` cuts none.
        unsafe { std::alloc::dealloc(with_exposed_provenance_mut(start), layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of all sizes, taken and given back at random, against a map of who has which unit.
    #[test]
    fn pieces_never_meet_and_chunks_go_with_their_last_piece() {
        let mut chunks = Chunks::new();
        let mut next_chunk = CHUNK;
        let mut held: Vec<(usize, usize)> = Vec::new();
        let mut state = 7u64;
        // Miri takes its time.
        let rounds = if cfg!(miri) { 400 } else { 4_000 };
        for round in 0..rounds {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let random = (state >> 33) as usize;
            if round < rounds / 2 && !random.is_multiple_of(3) || held.is_empty() {
                let order = random % ORDERS;
                let piece = chunks.take(order).unwrap_or_else(|| {
                    chunks.add(next_chunk);
                    next_chunk += CHUNK;
                    chunks.take(order).unwrap()
                });
                let bytes = UNIT << order;
                assert!(piece.is_multiple_of(bytes), "{piece:x} of {bytes:x}");
                let meets = |(other, order): &(usize, usize)| {
                    piece < other + (UNIT << order) && *other < piece + bytes
                };
                assert!(!held.iter().any(meets));
                held.push((piece, order));
                let units: usize = held.iter().map(|(_, order)| 1 << order).sum();
                let all = chunks.free.len() * u32::BITS as usize;
                assert!(
                    held.len() < 100 || 2 * units > all,
                    "{units} of {all} units"
                );
            } else {
                let (piece, order) = held.swap_remove(random % held.len());
                let chunk = piece & !(CHUNK - 1);
                let last = !held.iter().any(|(other, _)| other & !(CHUNK - 1) == chunk);
                assert_eq!(chunks.give(piece, order), last.then_some(chunk));
            }
        }
        while let Some((piece, order)) = held.pop() {
            chunks.give(piece, order);
        }
        assert!(chunks.free.is_empty() && chunks.room.iter().all(BTreeSet::is_empty));
    }

    #[test]
    fn orders_are_the_next_power_of_two() {
        assert_eq!([1, UNIT, UNIT + 1, CHUNK].map(order_of), [0, 0, 1, 5]);
        assert_eq!(piece(0b1110, 1), Some(2), "aligned");
        assert_eq!(units(4, 2), 0b1111_0000);
        assert_eq!(units(0, 5), u32::MAX);
    }
}
