//! How much is left of a read: the orderings by which the last of its READs sees what all of them brought, apart from
//! where they are done, so that loom can try every interleaving of them (`cargo test -p kvferry-agent --lib left`).

use std::sync::atomic::{AtomicUsize, Ordering};

/// What it needs of an atomic.
pub(super) trait Count {
    fn fetch_add(&self, more: usize, order: Ordering) -> usize;
    fn fetch_sub(&self, less: usize, order: Ordering) -> usize;
}

impl Count for AtomicUsize {
    fn fetch_add(&self, more: usize, order: Ordering) -> usize {
        Self::fetch_add(self, more, order)
    }
    fn fetch_sub(&self, less: usize, order: Ordering) -> usize {
        Self::fetch_sub(self, less, order)
    }
}

/// READs that are not over, and one for whoever still prepares them. It never comes back from nothing: who adds holds one.
#[derive(Debug)]
pub(super) struct Left<C = AtomicUsize>(C);

impl Left {
    /// Being prepared.
    pub(super) fn new() -> Self {
        Self(AtomicUsize::new(1))
    }
}

impl<C: Count> Left<C> {
    /// So many more. Who hands a READ on to another thread is ordered before it by whatever hands it on.
    pub(super) fn add(&self, reads: usize) {
        self.0.fetch_add(reads, Ordering::Relaxed);
    }

    /// One is over. True for the last: it sees everything that the others did before theirs were.
    pub(super) fn is_last(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

#[cfg(test)]
mod tests {
    use loom::{
        sync::{Arc, atomic::AtomicUsize},
        thread,
    };

    use super::*;

    impl Count for AtomicUsize {
        fn fetch_add(&self, more: usize, order: Ordering) -> usize {
            Self::fetch_add(self, more, order)
        }
        fn fetch_sub(&self, less: usize, order: Ordering) -> usize {
            Self::fetch_sub(self, less, order)
        }
    }

    /// As ours, of no order at all.
    struct Loose(AtomicUsize);

    impl Count for Loose {
        fn fetch_add(&self, more: usize, _: Ordering) -> usize {
            self.0.fetch_add(more, Ordering::Relaxed)
        }
        fn fetch_sub(&self, less: usize, _: Ordering) -> usize {
            self.0.fetch_sub(less, Ordering::Relaxed)
        }
    }

    /// A read of two READs that land in two words.
    struct Read<C> {
        left: Left<C>,
        words: [AtomicUsize; 2],
        settled: AtomicUsize,
    }

    impl<C: Count> Read<C> {
        /// Counted from what `count` says.
        fn new(count: C) -> Arc<Self> {
            Arc::new(Self {
                left: Left(count),
                words: [AtomicUsize::new(0), AtomicUsize::new(0)],
                settled: AtomicUsize::new(0),
            })
        }

        /// One READ brings its word, as if nobody else were there.
        fn bring(&self, at: usize) {
            self.words[at].store(1, Ordering::Relaxed);
            self.over();
        }

        fn over(&self) {
            if self.left.is_last() {
                let seen = [0, 1].map(|at| self.words[at].load(Ordering::Relaxed));
                assert_eq!(seen, [1, 1], "settled without what it brought");
                let before = self.settled.fetch_add(1, Ordering::Relaxed);
                assert_eq!(before, 0, "settled twice");
            }
        }
    }

    fn read<C: Count + Send + Sync + 'static>(count: fn(usize) -> C, held: bool) {
        loom::model(move || {
            let read = Read::new(count(usize::from(held)));
            let one = |at: usize| {
                if !held {
                    read.left.add(1);
                }
                let read = Arc::clone(&read);
                thread::spawn(move || read.bring(at))
            };
            if held {
                read.left.add(2);
            }
            let reads = [one(0), one(1)];
            if held {
                // What prepared it is done.
                read.over();
            }
            for read in reads {
                read.join().unwrap();
            }
            assert_eq!(read.settled.load(Ordering::Relaxed), 1);
        });
    }

    #[test]
    fn the_last_of_a_read_sees_what_all_of_them_brought() {
        read(AtomicUsize::new, true);
    }

    /// It can see: without an order the last one misses what another brought.
    #[test]
    #[should_panic(expected = "settled without what it brought")]
    fn without_an_order_a_read_settles_before_its_bytes_are_here() {
        read(|left| Loose(AtomicUsize::new(left)), true);
    }

    /// Nor where its preparer holds none: the first READ is over before the second is counted.
    #[test]
    #[should_panic(expected = "settled")]
    fn where_its_preparer_holds_none_a_read_settles_between_two_of_its_reads() {
        read(AtomicUsize::new, false);
    }
}
