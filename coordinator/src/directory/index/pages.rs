//! Values at positions that stay: pages of a fixed size, no allocation a value, none moved ever.

/// Values of a page: 12 KiB of 48-byte entries. One open page a shard then fits the second cache, and
/// the last page of each is nothing beside what it holds.
const PAGE: usize = 256;
const WORDS: usize = PAGE / 64;

#[derive(Debug)]
struct Page<T> {
    /// A bit a value.
    used: [u64; WORDS],
    live: usize,
    values: [T; PAGE],
}

/// A slab of plain values. A page goes when its last value goes.
#[derive(Debug)]
pub(super) struct Pages<T> {
    pages: Vec<Option<Box<Page<T>>>>,
    /// Pages with room; a number may be here although its page is gone.
    open: Vec<u32>,
    len: usize,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self {
            pages: Vec::new(),
            open: Vec::new(),
            len: 0,
        }
    }
}

fn split(position: u32) -> (usize, usize) {
    (position as usize / PAGE, position as usize % PAGE)
}

impl<T: Copy> Pages<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// None where all of `limit` positions are taken.
    pub(super) fn insert(&mut self, value: T, limit: u32) -> Option<u32> {
        let number = match self.open.last() {
            Some(number) => *number as usize,
            None => {
                let number = self.pages.len();
                if (number + 1) * PAGE > limit as usize {
                    return None;
                }
                self.pages.push(None);
                self.open.push(number as u32);
                number
            }
        };
        let page = self.pages[number].get_or_insert_with(|| {
            Box::new(Page {
                used: [0; WORDS],
                live: 0,
                values: [value; PAGE],
            })
        });
        let word = page.used.iter().position(|word| *word != u64::MAX)?;
        let bit = page.used[word].trailing_ones() as usize;
        page.used[word] |= 1 << bit;
        page.values[word * 64 + bit] = value;
        page.live += 1;
        self.len += 1;
        if page.live == PAGE {
            self.open.pop();
        }
        Some((number * PAGE + word * 64 + bit) as u32)
    }

    pub(super) fn remove(&mut self, position: u32) {
        let (number, at) = split(position);
        let Some(place) = self.pages.get_mut(number) else {
            return;
        };
        let Some(page) = place else { return };
        let bit = 1 << (at % 64);
        if page.used[at / 64] & bit == 0 {
            return;
        }
        page.used[at / 64] &= !bit;
        if page.live == PAGE {
            self.open.push(number as u32);
        }
        page.live -= 1;
        self.len -= 1;
        if page.live == 0 {
            *place = None;
        }
    }

    pub(super) fn get(&self, position: u32) -> Option<&T> {
        let (number, at) = split(position);
        Some(&self.pages.get(number)?.as_ref()?.values[at])
    }

    pub(super) fn get_mut(&mut self, position: u32) -> Option<&mut T> {
        let (number, at) = split(position);
        Some(&mut self.pages.get_mut(number)?.as_mut()?.values[at])
    }

    /// Pages that take memory.
    #[cfg(test)]
    pub(super) fn pages(&self) -> usize {
        self.pages.iter().flatten().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_stay_and_are_used_again() {
        let mut pages = Pages::default();
        let limit = 2 * PAGE as u32;
        for n in 0..limit {
            assert_eq!(pages.insert(n, limit), Some(n));
        }
        assert_eq!(pages.insert(0, limit), None, "full");
        for n in (0..limit).step_by(2) {
            pages.remove(n);
            pages.remove(n);
        }
        assert_eq!(pages.len(), PAGE);
        assert_eq!(pages.get(limit - 1), Some(&(limit - 1)));
        let again = pages.insert(7, limit).unwrap();
        assert_eq!((again % 2, pages.get(again)), (0, Some(&7)));
        (0..limit).for_each(|n| pages.remove(n));
        assert_eq!((pages.len(), pages.pages()), (0, 0));
        for _ in 0..limit {
            assert!(pages.insert(1, limit).is_some(), "all of it is there again");
        }
    }
}
