//! Names and numbers that identify nodes, namespaces, regions and slots.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

/// Longest node name, in bytes. Names travel in every located owner.
const MAX_NODE_NAME: usize = 128;
/// Longest namespace name, in bytes: tenant, model and revision fit.
const MAX_NAMESPACE_NAME: usize = 256;
/// Most labels a node may carry, and the longest key or value: they are compared in every locate.
const MAX_LABELS: usize = 32;
const MAX_LABEL_BYTES: usize = 128;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Empty where a name is required.
    #[error("the {what} is empty")]
    Empty {
        /// Which name.
        what: &'static str,
    },
    /// Longer than its bound.
    #[error("the {what} is {len} bytes long; at most {max} are allowed")]
    TooLong {
        /// Which name.
        what: &'static str,
        /// Its length.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// A character outside the allowed set.
    #[error("the {what} {name:?} holds {found:?}; allowed are ASCII letters, digits and {allowed}")]
    BadCharacter {
        /// Which name.
        what: &'static str,
        /// The name as given.
        name: String,
        /// The first bad character.
        found: char,
        /// Punctuation that is allowed.
        allowed: &'static str,
    },
    /// More labels than a node may have.
    #[error("{count} labels were given; at most {MAX_LABELS} are allowed")]
    TooManyLabels {
        /// How many there were.
        count: usize,
    },
    /// Zero where a number identifies something.
    #[error("the incarnation is zero")]
    ZeroIncarnation,
}

fn check(what: &'static str, name: &str, max: usize, allowed: &'static str) -> Result<(), IdError> {
    if name.is_empty() {
        return Err(IdError::Empty { what });
    }
    if name.len() > max {
        return Err(IdError::TooLong {
            what,
            len: name.len(),
            max,
        });
    }
    match name
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && !allowed.contains(*c))
    {
        Some(found) => Err(IdError::BadCharacter {
            what,
            name: name.to_owned(),
            found,
            allowed,
        }),
        None => Ok(()),
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr, $allowed:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses a name.
            ///
            /// # Errors
            /// [`IdError`] when it is empty, too long, or holds a character that is not allowed.
            pub fn new(name: &str) -> Result<Self, IdError> {
                check($what, name, $max, $allowed)?;
                Ok(Self(name.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(name: &str) -> Result<Self, IdError> {
                Self::new(name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

name_type!(
    /// A node's name, unique in the cluster: one agent at a time speaks for it.
    NodeId, "node name", MAX_NODE_NAME, "._-:"
);
name_type!(
    /// A namespace's name: tenant, model and layout, as the operator writes them.
    NamespaceName, "namespace name", MAX_NAMESPACE_NAME, "._-:/@+="
);

/// One lifetime of one agent process; a later lifetime has a greater number. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(u64);

impl Incarnation {
    /// Parses a number from the wire.
    ///
    /// # Errors
    /// [`IdError::ZeroIncarnation`] for zero.
    pub fn new(number: u64) -> Result<Self, IdError> {
        if number == 0 {
            return Err(IdError::ZeroIncarnation);
        }
        Ok(Self(number))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A region of one incarnation. Never used twice in an incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionId(pub u32);

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The n-th block of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A slot's version. Even: sealed. Odd: being written, or never written. Never repeats in a
/// region's lifetime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u64);

impl Generation {
    /// What a new slot has: nothing was ever sealed in it.
    pub const UNWRITTEN: Self = Self(1);

    /// True when the slot's bytes are complete.
    #[must_use]
    pub fn is_sealed(self) -> bool {
        self.0.is_multiple_of(2)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A node's labels (rack, zone, ...): readers may prefer owners that share theirs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Parses labels.
    ///
    /// # Errors
    /// [`IdError`] when there are too many, or a key or value is too long or has bad characters.
    pub fn new(labels: impl IntoIterator<Item = (String, String)>) -> Result<Self, IdError> {
        let labels: BTreeMap<_, _> = labels.into_iter().collect();
        if labels.len() > MAX_LABELS {
            return Err(IdError::TooManyLabels {
                count: labels.len(),
            });
        }
        for (key, value) in &labels {
            check("label key", key, MAX_LABEL_BYTES, "._-/")?;
            check("label value", value, MAX_LABEL_BYTES, "._-:/@+=")?;
        }
        Ok(Self(labels))
    }

    /// How many of the labels in `wanted` this node carries with the same value.
    #[must_use]
    pub fn matches(&self, wanted: &Self) -> usize {
        wanted
            .0
            .iter()
            .filter(|(key, value)| self.0.get(*key) == Some(value))
            .count()
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Key and value of each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(NodeId::new("node-1.rack_2").is_ok());
        assert_eq!(NodeId::new(""), Err(IdError::Empty { what: "node name" }));
        assert!(matches!(
            NodeId::new(&"x".repeat(129)),
            Err(IdError::TooLong { len: 129, .. })
        ));
        assert!(matches!(
            NodeId::new("a b"),
            Err(IdError::BadCharacter { found: ' ', .. })
        ));
        assert!(NamespaceName::new("tenant/llama-3-8b@main:bf16").is_ok());
    }

    #[test]
    fn generations_tell_sealed_from_written() {
        assert!(!Generation::UNWRITTEN.is_sealed());
        assert!(Generation(2).is_sealed());
        assert!(!Generation(3).is_sealed());
    }

    #[test]
    fn labels_count_what_they_share() {
        let node =
            Labels::new([("rack".into(), "r1".into()), ("zone".into(), "a".into())]).unwrap();
        let wanted =
            Labels::new([("rack".into(), "r1".into()), ("zone".into(), "b".into())]).unwrap();
        assert_eq!(node.matches(&wanted), 1);
        let many = (0..33).map(|i| (format!("k{i}"), "v".to_owned()));
        assert_eq!(Labels::new(many), Err(IdError::TooManyLabels { count: 33 }));
    }
}
