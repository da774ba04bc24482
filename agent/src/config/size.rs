//! Numbers of bytes as people write them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes. Read from a number or from text such as "4GiB".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// Why text is no number of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No number, or an unknown unit.
    #[error(
        "{text:?} is no size: write bytes, or a number with KiB, MiB, GiB, TiB, KB, MB, GB or TB"
    )]
    Unreadable {
        /// As given.
        text: String,
    },
    /// More than 2^64 bytes.
    #[error("{text:?} is more than 2^64 bytes")]
    TooLarge {
        /// As given.
        text: String,
    },
    /// A fraction of a byte.
    #[error("{text:?} is no whole number of bytes")]
    Fraction {
        /// As given.
        text: String,
    },
}

/// Units from the largest binary one down, as they are printed; a bare letter means the binary one.
const BINARY: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

fn factor(unit: &str) -> Option<u64> {
    Some(match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    })
}

/// Most digits behind the point: enough for one byte of a kibibyte, and no overflow.
const MAX_FRACTION_DIGITS: usize = 12;

impl FromStr for ByteSize {
    type Err = SizeError;
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let unreadable = || SizeError::Unreadable {
            text: text.to_owned(),
        };
        let trimmed = text.trim();
        let split = trimmed
            .find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_')
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let factor = u128::from(factor(unit.trim()).ok_or_else(unreadable)?);
        let number = number.replace('_', "");
        let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
        if fraction.len() > MAX_FRACTION_DIGITS {
            return Err(unreadable());
        }
        // 24 digits are more than 2^64 and less than 2^128 with every factor.
        if whole.is_empty() || whole.len() > 24 {
            return Err(unreadable());
        }
        let digits: u128 = whole.parse().map_err(|_| unreadable())?;
        let scale = 10u128.pow(fraction.len() as u32);
        let parts: u128 = match fraction {
            "" => 0,
            some => some.parse().map_err(|_| unreadable())?,
        };
        let too_large = || SizeError::TooLarge {
            text: text.to_owned(),
        };
        let of_parts = parts * factor;
        if !of_parts.is_multiple_of(scale) {
            return Err(SizeError::Fraction {
                text: text.to_owned(),
            });
        }
        let bytes = digits
            .checked_mul(factor)
            .and_then(|bytes| bytes.checked_add(of_parts / scale))
            .ok_or_else(too_large)?;
        u64::try_from(bytes).map(Self).map_err(|_| too_large())
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match BINARY.iter().find(|(_, factor)| self.0 >= *factor) {
            Some((unit, factor)) if self.0.is_multiple_of(*factor) => {
                write!(f, "{} {unit}", self.0 / factor)
            }
            Some((unit, factor)) => write!(f, "{:.1} {unit}", self.0 as f64 / *factor as f64),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// Exact, unlike what is displayed.
impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or text such as \"4GiB\"")
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes)
                    .map(ByteSize)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<u64, SizeError> {
        text.parse::<ByteSize>().map(|size| size.0)
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1_000", 1000),
            ("4GiB", 4 << 30),
            ("4 gib", 4 << 30),
            ("2M", 2 << 20),
            ("1.5GiB", 3 << 29),
            ("64MB", 64_000_000),
            ("16777215TiB", 16_777_215 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "GiB",
            "4 gigs",
            "-1",
            "1.2.3",
            ".5G",
            "9".repeat(25).as_str(),
        ] {
            assert!(
                matches!(parse(text), Err(SizeError::Unreadable { .. })),
                "{text:?}"
            );
        }
        assert!(matches!(
            parse("16777216TiB"),
            Err(SizeError::TooLarge { .. })
        ));
        assert!(matches!(parse("0.3KiB"), Err(SizeError::Fraction { .. })));
    }

    #[test]
    fn sizes_are_printed_in_the_largest_unit() {
        assert_eq!(ByteSize(2 << 20).to_string(), "2 MiB");
        assert_eq!(ByteSize(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(ByteSize(1000).to_string(), "1000 B");
    }
}
