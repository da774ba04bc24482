//! Labels whose values are known when the program is built: an array, not a table with a lock.

use std::marker::PhantomData;

/// An enum that is a label; made by [`label!`](crate::label!).
pub trait Label: Copy + 'static {
    /// The label's name.
    const NAME: &'static str;
    /// Every value, in the order of their places.
    const ALL: &'static [Self];
    /// As it is told.
    fn as_str(self) -> &'static str;
    /// Which of all it is.
    fn place(self) -> usize;
}

/// An enum whose variants are the values of one label.
#[macro_export]
macro_rules! label {
    ($(#[$doc:meta])* $vis:vis enum $name:ident($label:literal) {
        $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)?
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $crate::Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
            fn place(self) -> usize {
                self as usize
            }
        }
    };
}

/// One metric for every value of a label.
#[derive(Debug)]
pub struct ByLabel<L, M> {
    all: Box<[M]>,
    label: PhantomData<fn(L)>,
}

impl<L: Label, M: Default> Default for ByLabel<L, M> {
    fn default() -> Self {
        Self {
            all: L::ALL.iter().map(|_| M::default()).collect(),
            label: PhantomData,
        }
    }
}

impl<L: Label, M> ByLabel<L, M> {
    /// The one of this value.
    #[must_use]
    pub fn of(&self, value: L) -> &M {
        &self.all[value.place()]
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (L, &M)> {
        L::ALL.iter().copied().zip(&self.all)
    }
}

/// One metric for every pair of values.
#[derive(Debug)]
pub struct ByLabels<A, B, M>(ByLabel<A, ByLabel<B, M>>);

impl<A: Label, B: Label, M: Default> Default for ByLabels<A, B, M> {
    fn default() -> Self {
        Self(ByLabel::default())
    }
}

impl<A: Label, B: Label, M> ByLabels<A, B, M> {
    /// The one of these values.
    #[must_use]
    pub fn of(&self, a: A, b: B) -> &M {
        self.0.of(a).of(b)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (A, B, &M)> {
        let rows = self.0.iter();
        rows.flat_map(|(a, row)| row.iter().map(move |(b, metric)| (a, b, metric)))
    }
}
