//! One generation word: the orderings that make a read valid, apart from where words lie, so that loom can try every
//! interleaving of them (`cargo test -p kvferry-memory word`).

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// What a generation word needs of an atomic. Little-endian in memory: other machines read it.
pub(crate) trait Word {
    fn load(&self, order: Ordering) -> u64;
    fn store(&self, generation: u64, order: Ordering);
    fn fence(order: Ordering);
}

impl Word for AtomicU64 {
    fn load(&self, order: Ordering) -> u64 {
        u64::from_le(Self::load(self, order))
    }
    fn store(&self, generation: u64, order: Ordering) {
        Self::store(self, generation.to_le(), order);
    }
    fn fence(order: Ordering) {
        fence(order);
    }
}

/// Makes it odd, before anything writes to the slot. One thread at a time.
pub(crate) fn begin_write<W: Word>(word: &W) -> u64 {
    let generation = word.load(Ordering::Acquire) | 1;
    word.store(generation, Ordering::Release);
    // Nothing that is written to the slot from here on may be seen before the odd word.
    W::fence(Ordering::SeqCst);
    generation
}

/// Makes it even, after the slot's bytes are complete: they are seen before it. A sealed one stays as it is.
pub(crate) fn seal<W: Word>(word: &W) -> u64 {
    let now = word.load(Ordering::Acquire);
    let generation = now + (now & 1);
    word.store(generation, Ordering::Release);
    generation
}

/// Loads it after everything this thread copied before.
pub(crate) fn load_after<W: Word>(word: &W) -> u64 {
    W::fence(Ordering::SeqCst);
    word.load(Ordering::Acquire)
}

#[cfg(test)]
mod tests {
    use loom::sync::{Arc, atomic::AtomicU64};

    use super::*;

    impl Word for AtomicU64 {
        fn load(&self, order: Ordering) -> u64 {
            Self::load(self, order)
        }
        fn store(&self, generation: u64, order: Ordering) {
            Self::store(self, generation, order);
        }
        fn fence(order: Ordering) {
            loom::sync::atomic::fence(order);
        }
    }

    /// A slot of two words, and its generation.
    struct Slot {
        word: AtomicU64,
        bytes: [AtomicU64; 2],
    }

    impl Slot {
        /// Sealed as generation 2, with 1 in both words.
        fn sealed() -> Arc<Self> {
            Arc::new(Self {
                word: AtomicU64::new(2),
                bytes: [AtomicU64::new(1), AtomicU64::new(1)],
            })
        }

        /// Bytes are copied as if nobody else were there.
        fn write(&self, value: u64) {
            for bytes in &self.bytes {
                bytes.store(value, Ordering::Relaxed);
            }
        }

        fn copy(&self) -> [u64; 2] {
            [0, 1].map(|at| self.bytes[at].load(Ordering::Relaxed))
        }
    }

    fn overwritten(begin: fn(&AtomicU64) -> u64, check: fn(&AtomicU64) -> u64) {
        loom::model(move || {
            let slot = Slot::sealed();
            let owner = {
                let slot = Arc::clone(&slot);
                loom::thread::spawn(move || {
                    begin(&slot.word);
                    slot.write(2);
                    seal(&slot.word);
                })
            };
            // The hint is what a directory said at some time.
            let hint = slot.word.load(Ordering::Acquire);
            let copied = slot.copy();
            if hint.is_multiple_of(2) && check(&slot.word) == hint {
                assert_eq!(copied, [hint / 2; 2], "generation {hint}");
            }
            owner.join().unwrap();
        });
    }

    #[test]
    fn a_read_that_validates_has_the_bytes_that_were_sealed() {
        overwritten(begin_write, load_after);
    }

    /// It can see: without the owner's fence new bytes are taken for old ones.
    #[test]
    #[should_panic(expected = "generation 2")]
    fn without_the_owners_fence_a_torn_read_validates() {
        let begin = |word: &AtomicU64| {
            word.store(3, Ordering::Release);
            3
        };
        overwritten(begin, load_after);
    }

    /// Nor without the reader's.
    #[test]
    #[should_panic(expected = "generation 2")]
    fn without_the_readers_fence_a_torn_read_validates() {
        overwritten(begin_write, |word| word.load(Ordering::Relaxed));
    }
}
