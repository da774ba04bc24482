//! Blocks of one pull, in order.

use super::command::BlockIndex;

/// Bits of a word.
const BITS: usize = u64::BITS as usize;

/// Some of a pull's blocks: a bit each, so that a pull's steps neither allocate nor search per block.
#[derive(Debug, Clone, Default)]
pub(super) struct BlockSet {
    words: Vec<u64>,
    len: usize,
    /// No word before this one has a bit.
    first: usize,
}

impl BlockSet {
    /// All blocks of a pull of that many.
    pub(super) fn all(blocks: u32) -> Self {
        (0..blocks).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn contains(&self, block: BlockIndex) -> bool {
        let (word, bit) = place(block);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// False where it was in already.
    pub(super) fn insert(&mut self, block: BlockIndex) -> bool {
        let (word, bit) = place(block);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let fresh = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.len += usize::from(fresh);
        self.first = match self.len {
            1 => word,
            _ => self.first.min(word),
        };
        fresh
    }

    /// False where it was not in.
    pub(super) fn remove(&mut self, block: BlockIndex) -> bool {
        let removed = self.contains(block);
        if removed {
            let (word, bit) = place(block);
            self.words[word] &= !bit;
            self.len -= 1;
            // What the earliest block is looked for in every step, and it is mostly the one that goes.
            while self.words.get(self.first) == Some(&0) {
                self.first += 1;
            }
        }
        removed
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn first(&self) -> Option<BlockIndex> {
        self.iter().next()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = BlockIndex> + '_ {
        let words = self.words.iter().enumerate().skip(self.first);
        words.flat_map(|(at, &word)| {
            let mut left = word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
                left &= left - 1;
                // As it was inserted.
                Some((at * BITS + bit) as BlockIndex)
            })
        })
    }
}

impl FromIterator<BlockIndex> for BlockSet {
    fn from_iter<I: IntoIterator<Item = BlockIndex>>(blocks: I) -> Self {
        let mut set = Self::default();
        set.extend(blocks);
        set
    }
}

impl Extend<BlockIndex> for BlockSet {
    fn extend<I: IntoIterator<Item = BlockIndex>>(&mut self, blocks: I) {
        for block in blocks {
            self.insert(block);
        }
    }
}

fn place(block: BlockIndex) -> (usize, u64) {
    let block = block as usize;
    (block / BITS, 1 << (block % BITS))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set_in_order(steps in prop::collection::vec((0..4u8, 0..300u32), 0..200)) {
            let (mut set, mut model) = (BlockSet::default(), BTreeSet::new());
            for (step, block) in steps {
                match step {
                    0 | 1 => prop_assert_eq!(set.insert(block), model.insert(block)),
                    2 => prop_assert_eq!(set.remove(block), model.remove(&block)),
                    _ if block == 0 => {
                        set.clear();
                        model.clear();
                    }
                    _ => prop_assert_eq!(set.contains(block), model.contains(&block)),
                }
                prop_assert_eq!(set.len(), model.len());
                prop_assert_eq!(set.is_empty(), model.is_empty());
                prop_assert_eq!(set.first(), model.first().copied());
            }
            prop_assert!(set.iter().eq(model.iter().copied()));
        }
    }

    #[test]
    fn all_are_in() {
        let all = BlockSet::all(130);
        assert_eq!((all.len(), all.first()), (130, Some(0)));
        assert!(all.iter().eq(0..130));
    }
}
