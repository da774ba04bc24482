//! Which keys a configuration type has, asked of the type itself.

use std::collections::BTreeMap;

use serde::{
    Deserializer,
    de::{DeserializeOwned, Error, IgnoredAny, Visitor, value},
};
use toml::Spanned;

/// The names of a struct's fields, as they are deserialized.
#[must_use]
pub fn known_keys<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut fields: &'static [&'static str] = &[];
    // Always an error: the deserializer below only listens to what it is asked for.
    let _ = T::deserialize(FieldNames(&mut fields));
    fields
}

/// The first key of a TOML document that `T` does not have, and where it stands.
pub(super) fn first_unknown<T: DeserializeOwned>(
    text: &str,
) -> Result<Option<(String, usize)>, toml::de::Error> {
    let document: BTreeMap<Spanned<String>, IgnoredAny> = toml::from_str(text)?;
    let known = known_keys::<T>();
    Ok(document
        .into_keys()
        .filter(|key| !known.contains(&key.get_ref().as_str()))
        .map(|key| {
            let offset = key.span().start;
            (key.into_inner(), offset)
        })
        .min_by_key(|(_, offset)| *offset))
}

/// The known key a mistyped one is nearest to; None where none is near.
pub(super) fn closest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    let spelled = key.to_ascii_lowercase().replace('-', "_");
    known
        .iter()
        .map(|candidate| (distance(&spelled, candidate), *candidate))
        // A third of the letters may be wrong: more is another word.
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Letters to insert, drop or change to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, other) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(letter != other);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Notes the field names a struct asks for, and gives it nothing.
struct FieldNames<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = value::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, value::Error> {
        *self.0 = fields;
        Err(value::Error::custom("field names only"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, value::Error> {
        Err(value::Error::custom("not a struct"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_found() {
        let known = &["pool_bytes", "hugepages", "listen_peer"];
        for (key, meant) in [
            ("pool-bytes", Some("pool_bytes")),
            ("Hugepage", Some("hugepages")),
            ("listen_pear", Some("listen_peer")),
            ("xyz", None),
        ] {
            assert_eq!(closest(key, known), meant);
        }
    }
}
