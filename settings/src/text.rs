//! Text, as variables and flags give it, into the value a key wants.

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// What the key itself says against a value, for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

/// Reads text as what the key of `T` takes: text, a number or truth value, a list `a,b` or `1,2`, or a map
/// `k=v,k=v`. The error is the key's own, for people.
pub(super) fn fit<T: DeserializeOwned>(key: &str, text: &str) -> Result<Value, Refusal> {
    let as_text = Value::String(text.to_owned());
    let mut refusal = match accepts::<T>(key, &as_text) {
        Ok(()) => return Ok(as_text),
        Err(refusal) => refusal,
    };
    if let Some(scalar) = scalar(text) {
        match accepts::<T>(key, &scalar) {
            Ok(()) => return Ok(scalar),
            // The number was understood: what is wrong with it says more.
            Err(of_scalar) => refusal = of_scalar,
        }
    }
    [Some(list(text)), numbers(text), map(text)]
        .into_iter()
        .flatten()
        .find(|value| accepts::<T>(key, value).is_ok())
        .ok_or(refusal)
}

/// Would `T` take this value for this key?
pub(super) fn accepts<T: DeserializeOwned>(key: &str, value: &Value) -> Result<(), Refusal> {
    let alone = Table::from_iter([(key.to_owned(), value.clone())]);
    match alone.try_into::<T>() {
        Ok(_) => Ok(()),
        Err(error) => Err(Refusal(error.message().to_owned())),
    }
}

fn scalar(text: &str) -> Option<Value> {
    let text = text.trim();
    let integer = || text.parse().ok().map(Value::Integer);
    let truth = || text.parse().ok().map(Value::Boolean);
    integer().or_else(truth)
}

fn list(text: &str) -> Value {
    let parts = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    Value::Array(parts.map(|part| Value::String(part.to_owned())).collect())
}

fn numbers(text: &str) -> Option<Value> {
    let parts = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    let numbers = parts.map(|part| part.parse().ok().map(Value::Integer));
    numbers.collect::<Option<Vec<_>>>().map(Value::Array)
}

fn map(text: &str) -> Option<Value> {
    let parts = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    let pairs = parts.map(|part| {
        let (key, value) = part.split_once('=')?;
        Some((
            key.trim().to_owned(),
            Value::String(value.trim().to_owned()),
        ))
    });
    pairs.collect::<Option<Table>>().map(Value::Table)
}
