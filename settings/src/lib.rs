//! Settings of what runs long. A command's, in three layers: TOML file < `KVFERRY_*` variables < flags ([`load`]); those of
//! something within another program: TOML file < what the program gives ([`given`]).
//!
//! Each layer replaces whole keys. A key that does not exist, or a value it cannot have, is refused
//! with the place it came from. Which keys there are is asked of the type itself.

mod keys;
mod text;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use toml::{Table, Value};

pub use keys::known_keys;
pub use text::Refusal;

/// Largest settings file: a thousand times what one needs.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Names the file where no flag does.
const FILE_VARIABLE: &str = "KVFERRY_CONFIG";
/// What every variable's name starts with.
pub const VARIABLE_PREFIX: &str = "KVFERRY_";

/// Where settings come from.
pub struct Sources<'a, F> {
    /// The file named by a flag.
    pub file: Option<&'a Path>,
    /// Looks a variable up by its full name.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// What was given on the command line; a field per key, None where not given.
    pub flags: &'a F,
}

/// Why settings were refused. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("the settings file {path} cannot be read: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no settings file.
    #[error("the settings file {path} is larger than {MAX_FILE_BYTES} bytes", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is no TOML, or a value in it is wrong.
    #[error("{path}:{line}: {message}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// The file has a key that does not exist.
    #[error("{path}:{line}: there is no setting `{key}`{hint}", path = path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// As given.
        key: String,
        /// What was meant, perhaps.
        hint: Hint,
    },
    /// A variable has a value its key cannot have.
    #[error("{variable}={value}: {source}")]
    Variable {
        /// Its name.
        variable: String,
        /// As given.
        value: String,
        /// What is wrong with it.
        source: Refusal,
    },
    /// A flag has a value its key cannot have.
    #[error("--{flag}: {source}")]
    Flag {
        /// Its name, without the dashes.
        flag: String,
        /// What is wrong with it.
        source: Refusal,
    },
    /// The program gives a value that its key cannot have.
    #[error("setting {key}={value}: {source}")]
    Given {
        /// Which key.
        key: String,
        /// As given.
        value: String,
        /// What is wrong with it.
        source: Refusal,
    },
    /// The program gives a key that does not exist.
    #[error("there is no setting `{key}`{hint}")]
    UnknownGiven {
        /// As given.
        key: String,
        /// What was meant, perhaps.
        hint: Hint,
    },
    /// The flags cannot be laid over the other settings: a fault of this program.
    #[error("the flags cannot be read: {0}")]
    Flags(#[from] toml::ser::Error),
    /// The layers fit one by one, but not together.
    #[error("the settings do not fit together: {message}")]
    Together {
        /// What does not fit.
        message: String,
    },
}

/// The closest key that exists, or all of them.
#[derive(Debug)]
pub struct Hint {
    meant: Option<&'static str>,
    known: &'static [&'static str],
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.meant {
            Some(key) => write!(f, "; did you mean `{key}`?"),
            None => write!(f, "; there are: {}", self.known.join(", ")),
        }
    }
}

/// Lays the sources over each other, and over the defaults of `T`.
///
/// # Errors
/// [`SettingsError`].
pub fn load<T: DeserializeOwned>(
    sources: &Sources<'_, impl Serialize>,
) -> Result<T, SettingsError> {
    let named = (sources.variable)(FILE_VARIABLE).map(PathBuf::from);
    let mut merged = match sources.file.or(named.as_deref()) {
        Some(path) => from_file::<T>(path)?,
        None => Table::new(),
    };
    merged.extend(from_variables::<T>(sources.variable)?);
    merged.extend(from_flags::<T>(sources.flags)?);
    together(merged)
}

/// Lays what a program gives (keys and values as text, as flags have them) over a file, and that over the defaults of `T`.
/// No variable is looked at: what runs within a program has the settings that the program says.
///
/// # Errors
/// [`SettingsError`].
pub fn given<T: DeserializeOwned>(
    file: Option<&Path>,
    settings: &[(String, String)],
) -> Result<T, SettingsError> {
    let mut merged = match file {
        Some(path) => from_file::<T>(path)?,
        None => Table::new(),
    };
    for (key, value) in settings {
        if !known_keys::<T>().contains(&key.as_str()) {
            return Err(SettingsError::UnknownGiven {
                hint: hint::<T>(key),
                key: key.clone(),
            });
        }
        let fitted = text::fit::<T>(key, value).map_err(|source| SettingsError::Given {
            key: key.clone(),
            value: value.clone(),
            source,
        })?;
        merged.insert(key.clone(), fitted);
    }
    together(merged)
}

fn together<T: DeserializeOwned>(merged: Table) -> Result<T, SettingsError> {
    merged
        .try_into()
        .map_err(|error: toml::de::Error| SettingsError::Together {
            message: error.message().to_owned(),
        })
}

/// The name of the variable that sets a key.
fn variable_of(key: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", key.to_ascii_uppercase())
}

fn from_file<T: DeserializeOwned>(path: &Path) -> Result<Table, SettingsError> {
    let unreadable = |source| SettingsError::Unreadable {
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(unreadable)?.len() > MAX_FILE_BYTES {
        return Err(SettingsError::TooLarge {
            path: path.to_owned(),
        });
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let wrong = |error: toml::de::Error| SettingsError::File {
        path: path.to_owned(),
        line: line_at(&text, error.span().map_or(0, |span| span.start)),
        message: error.message().to_owned(),
    };
    if let Some((key, offset)) = keys::first_unknown::<T>(&text).map_err(wrong)? {
        return Err(SettingsError::UnknownKey {
            path: path.to_owned(),
            line: line_at(&text, offset),
            hint: hint::<T>(&key),
            key,
        });
    }
    // Read as `T` for its errors, which know their lines; kept as a table, so that layers can be laid on.
    toml::from_str::<T>(&text).map_err(wrong)?;
    toml::from_str(&text).map_err(wrong)
}

fn from_variables<T: DeserializeOwned>(
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Table, SettingsError> {
    let mut table = Table::new();
    for key in known_keys::<T>() {
        let name = variable_of(key);
        let Some(value) = variable(&name) else {
            continue;
        };
        let fitted = text::fit::<T>(key, &value).map_err(|source| SettingsError::Variable {
            variable: name,
            value,
            source,
        })?;
        table.insert((*key).to_owned(), fitted);
    }
    Ok(table)
}

fn from_flags<T: DeserializeOwned>(flags: &impl Serialize) -> Result<Table, SettingsError> {
    let mut table = Table::new();
    for (key, value) in Table::try_from(flags)? {
        let fitted = match &value {
            Value::String(given) => text::fit::<T>(&key, given),
            other => text::accepts::<T>(&key, other).map(|()| value),
        };
        let fitted = fitted.map_err(|source| SettingsError::Flag {
            flag: key.replace('_', "-"),
            source,
        })?;
        table.insert(key, fitted);
    }
    Ok(table)
}

fn hint<T: DeserializeOwned>(key: &str) -> Hint {
    Hint {
        meant: keys::closest(key, known_keys::<T>()),
        known: known_keys::<T>(),
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Default, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Small {
        name: String,
        numbers: Vec<u32>,
        wait_ms: u64,
    }

    fn pairs(settings: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        settings.iter().map(owned).collect()
    }

    #[test]
    fn what_a_program_gives_is_laid_over_its_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut file, b"name = \"file\"\nwait_ms = 5\n").unwrap();
        let settings = pairs(&[("wait_ms", "7"), ("numbers", "1,2")]);
        let small: Small = given(Some(file.path()), &settings).unwrap();
        let wanted = Small {
            name: "file".into(),
            numbers: vec![1, 2],
            wait_ms: 7,
        };
        assert_eq!(small, wanted);
        assert_eq!(given::<Small>(None, &[]).unwrap(), Small::default());
    }

    #[test]
    fn what_a_program_gives_wrongly_is_named() {
        let said = |settings: &[(&str, &str)]| {
            let refused = given::<Small>(None, &pairs(settings)).unwrap_err();
            refused.to_string()
        };
        assert_eq!(
            said(&[("wait-ms", "1")]),
            "there is no setting `wait-ms`; did you mean `wait_ms`?"
        );
        let wrong = said(&[("wait_ms", "long")]);
        assert!(wrong.starts_with("setting wait_ms=long: "), "{wrong}");
    }
}
