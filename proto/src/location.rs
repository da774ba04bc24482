//! Where a block lies in storage that outlasts nodes.

use std::{fmt, sync::Arc};

use crate::InvalidMessage;

/// Longest location, in bytes: an object store's longest key is 1,024, and keys that follow from block
/// hashes need not be told.
pub const MAX_LOCATION_BYTES: usize = 512;

/// A key of shared storage. Opaque: who reads it knows which storage it is of.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location(Arc<str>);

impl Location {
    /// Parses a location.
    ///
    /// # Errors
    /// [`InvalidMessage`] when it is empty or too long.
    pub fn new(text: &str) -> Result<Self, InvalidMessage> {
        if text.is_empty() {
            return Err(InvalidMessage::Missing("a location"));
        }
        if text.len() > MAX_LOCATION_BYTES {
            return Err(InvalidMessage::OutOfBounds {
                what: "the length of a location in bytes",
                got: text.len() as u64,
                max: MAX_LOCATION_BYTES as u64,
            });
        }
        Ok(Self(text.into()))
    }

    /// The location as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_has_bounds_and_no_other_rule() {
        assert!(Location::new("").is_err());
        assert!(Location::new(&"a".repeat(513)).is_err());
        let text = "s3://bucket/kv cache/ä";
        assert_eq!(Location::new(text).unwrap().as_str(), text);
    }
}
