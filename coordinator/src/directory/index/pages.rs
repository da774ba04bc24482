//! Values at positions that stay: pages, no allocation a value, none moved ever.

use kvferry_memory::Array;

/// Values of one of the first pages: 12 KiB of 48-byte entries, so that a shard of few is small.
const SMALL: usize = 256;
/// How many pages are small ones. In an index of a million blocks all are.
const SMALL_PAGES: usize = 64;
/// Where positions in large pages begin.
const SMALL_END: usize = SMALL * SMALL_PAGES;
/// A large page: an eighth of a huge page. The last page of each shard, half empty, takes 8 MiB in all; and
/// where the pages lie is told by a table that fits the second cache, 150 KB of it at 100 million blocks.
const LARGE_BYTES: usize = 256 << 10;

/// What is known of a page beside its values.
#[derive(Debug, Default)]
struct Page {
    /// A bit a value.
    used: Box<[u64]>,
    live: usize,
    /// No word before it has a free bit.
    first_free: usize,
}

/// A slab of plain values. A page goes when its last value goes.
#[derive(Debug)]
pub(super) struct Pages<T> {
    /// Empty where the page is gone.
    values: Vec<Array<T>>,
    pages: Vec<Page>,
    /// A bit a page that has room, also of one that is gone. The lowest is filled first, so that the others
    /// become empty.
    open: Vec<u64>,
    /// No word of `open` before it has a bit set.
    first_open: usize,
    len: usize,
    /// Room of all pages there are.
    room: usize,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            pages: Vec::new(),
            open: Vec::new(),
            first_open: 0,
            len: 0,
            room: 0,
        }
    }
}

impl<T: Copy> Pages<T> {
    const LARGE: usize = LARGE_BYTES / size_of::<T>();

    /// Page and place in it.
    #[inline]
    fn split(position: u32) -> (usize, usize) {
        let position = position as usize;
        match position.checked_sub(SMALL_END) {
            None => (position / SMALL, position % SMALL),
            Some(large) => (SMALL_PAGES + large / Self::LARGE, large % Self::LARGE),
        }
    }

    /// The first position of a page.
    fn start_of(page: usize) -> usize {
        match page.checked_sub(SMALL_PAGES) {
            None => page * SMALL,
            Some(large) => SMALL_END + large * Self::LARGE,
        }
    }

    fn size_of(page: usize) -> usize {
        Self::start_of(page + 1) - Self::start_of(page)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Will so many more need a large page? Then whoever shares the slab [makes](Self::large_page) it
    /// before anybody waits.
    pub(super) fn wants_large(&self, more: usize) -> bool {
        self.len + more > self.room && self.next_page() >= SMALL_PAGES
    }

    /// A large page, of any value. Its memory is touched here and not later.
    pub(super) fn large_page(value: T) -> Array<T> {
        Array::new(value, Self::LARGE)
    }

    /// The page that an insert opens when those there are have no room.
    fn next_page(&self) -> usize {
        self.first_open().unwrap_or(self.pages.len())
    }

    fn first_open(&self) -> Option<usize> {
        let rest = self.open.get(self.first_open..)?;
        let word = self.first_open + rest.iter().position(|word| *word != 0)?;
        Some(word * 64 + self.open[word].trailing_zeros() as usize)
    }

    fn set_open(&mut self, page: usize, open: bool) {
        let (word, bit) = (page / 64, 1 << (page % 64));
        if open {
            self.open[word] |= bit;
            self.first_open = self.first_open.min(word);
        } else {
            self.open[word] &= !bit;
            // All before it were full, or it would not have been filled.
            self.first_open = word;
        }
    }

    /// None where all of `limit` positions are taken. A large page that is needed is `ready`'s, if it is.
    pub(super) fn insert(
        &mut self,
        value: T,
        limit: u32,
        ready: &mut Option<Array<T>>,
    ) -> Option<u32> {
        let number = match self.first_open() {
            Some(number) => number,
            None => {
                let number = self.pages.len();
                if Self::start_of(number + 1) > limit as usize {
                    return None;
                }
                self.values.push(Array::default());
                self.pages.push(Page::default());
                self.open.resize(number / 64 + 1, 0);
                self.set_open(number, true);
                number
            }
        };
        let (page, values) = (&mut self.pages[number], &mut self.values[number]);
        let size = Self::size_of(number);
        if values.is_empty() {
            *values = match ready.take_if(|ready| ready.len() == size) {
                Some(ready) => ready,
                None => Array::new(value, size),
            };
            page.used = vec![0; size.div_ceil(64)].into();
            page.first_free = 0;
            self.room += size;
        }
        let rest = page.used.get(page.first_free..)?;
        let word = page.first_free + rest.iter().position(|word| *word != u64::MAX)?;
        let bit = page.used[word].trailing_ones() as usize;
        let at = word * 64 + bit;
        *values.get_mut(at)? = value;
        page.used[word] |= 1 << bit;
        page.first_free = word;
        page.live += 1;
        self.len += 1;
        if page.live == size {
            self.set_open(number, false);
        }
        Some((Self::start_of(number) + at) as u32)
    }

    pub(super) fn remove(&mut self, position: u32) {
        let (number, at) = Self::split(position);
        let Some(page) = self.pages.get_mut(number) else {
            return;
        };
        let (word, bit) = (at / 64, 1 << (at % 64));
        let Some(used) = page.used.get_mut(word).filter(|used| **used & bit != 0) else {
            return;
        };
        *used &= !bit;
        page.first_free = page.first_free.min(word);
        let full = page.live == Self::size_of(number);
        page.live -= 1;
        self.len -= 1;
        let empty = page.live == 0;
        // Any other one is open already.
        if full {
            self.set_open(number, true);
        }
        if self.len == 0 {
            *self = Self::default();
        } else if empty {
            self.close(number);
        }
    }

    /// A page is empty. It goes, but where no other has room: it would come again with the next value.
    fn close(&mut self, number: usize) {
        let only = self.room - self.len == Self::size_of(number);
        if !only {
            self.room -= Self::size_of(number);
            self.pages[number].used = Box::default();
            self.values[number] = Array::default();
        }
    }

    #[inline]
    pub(super) fn get(&self, position: u32) -> Option<&T> {
        let (number, at) = Self::split(position);
        self.values.get(number)?.get(at)
    }

    pub(super) fn get_mut(&mut self, position: u32) -> Option<&mut T> {
        let (number, at) = Self::split(position);
        self.values.get_mut(number)?.get_mut(at)
    }

    /// Pages that take memory.
    #[cfg(test)]
    pub(super) fn pages(&self) -> usize {
        self.values.iter().filter(|page| !page.is_empty()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_stay_and_are_used_again() {
        let mut pages = Pages::default();
        let limit = 2 * SMALL as u32;
        for n in 0..limit {
            assert_eq!(pages.insert(n, limit, &mut None), Some(n));
        }
        assert_eq!(pages.insert(0, limit, &mut None), None, "full");
        for n in (0..limit).step_by(2) {
            pages.remove(n);
            pages.remove(n);
        }
        assert_eq!(pages.len(), SMALL);
        assert_eq!(pages.get(limit - 1), Some(&(limit - 1)));
        let again = pages.insert(7, limit, &mut None).unwrap();
        assert_eq!((again, pages.get(again)), (0, Some(&7)), "lowest first");
        (0..limit).for_each(|n| pages.remove(n));
        assert_eq!((pages.len(), pages.pages()), (0, 0));
        for n in 0..limit {
            assert_eq!(
                pages.insert(1, limit, &mut None),
                Some(n),
                "all of it is there again"
            );
        }
    }

    /// Of a size that no number of words holds, so that the last word of a large page is not full.
    type Odd = [u32; 12];

    #[test]
    fn large_pages_come_after_small_ones_and_go_when_they_are_empty() {
        let value = |n: u32| [n; 12];
        let mut pages = Pages::<Odd>::default();
        let large = Pages::<Odd>::LARGE;
        let all = (SMALL_END + 2 * large) as u32;
        for n in 0..all {
            let wants = pages.wants_large(1);
            assert_eq!(
                wants,
                n as usize >= SMALL_END && (n as usize - SMALL_END).is_multiple_of(large)
            );
            let mut ready = wants.then(|| Pages::large_page(value(0)));
            assert_eq!(pages.insert(value(n), all, &mut ready), Some(n));
            assert!(ready.is_none());
        }
        assert_eq!(pages.insert(value(0), all, &mut None), None);
        assert!((0..all).all(|n| pages.get(n) == Some(&value(n))));
        assert_eq!(pages.get(all), None);
        assert_eq!(pages.pages(), SMALL_PAGES + 2);
        let last = (SMALL_END + large) as u32;
        (last..all).for_each(|n| pages.remove(n));
        assert_eq!(pages.pages(), SMALL_PAGES + 2, "no other has room");
        (0..SMALL as u32).for_each(|n| pages.remove(n));
        assert_eq!(pages.pages(), SMALL_PAGES + 1, "one has");
        (last - large as u32..last).for_each(|n| pages.remove(n));
        assert_eq!(pages.pages(), SMALL_PAGES);
        assert_eq!(pages.insert(value(1), all, &mut None), Some(0));
        assert_eq!(pages.len(), SMALL_END - SMALL + 1);
    }

    /// Random writes against a plain map.
    #[test]
    fn a_slab_is_a_map() {
        let mut pages = Pages::default();
        let mut model = std::collections::BTreeMap::new();
        let mut state = 3u64;
        for round in 0..100_000u32 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(5);
            let random = (state >> 33) as u32;
            let shrinks = round / 25_000 % 2 == 1;
            if (random % 8 < 5) != shrinks {
                let at = pages.insert(round, u32::MAX, &mut None).unwrap();
                assert_eq!(model.insert(at, round), None);
            } else if let Some((&at, _)) = model.range(random % 20_000..).next() {
                model.remove(&at);
                pages.remove(at);
            }
            assert_eq!(pages.len(), model.len());
        }
        assert!(
            model
                .iter()
                .all(|(at, value)| pages.get(*at) == Some(value))
        );
        model.keys().for_each(|at| pages.remove(*at));
        assert_eq!((pages.len(), pages.pages()), (0, 0));
    }
}
