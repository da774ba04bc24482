//! Which namespaces.

use std::fmt;

use kvferry_proto::NamespaceName;

/// A namespace, or all whose name begins alike: a line of a policy, as a ticket carries it.
///
/// Beginnings, so that a namespace made a moment ago needs no new ticket; whoever may read what begins like that may
/// read it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope(Box<str>);

/// No namespace's name, and no beginning of one and `*`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a namespace's name nor the beginning of one and `*`")]
pub struct BadScope(Box<str>);

impl Scope {
    /// Of a namespace's name, or the beginning of one and `*`.
    ///
    /// # Errors
    /// [`BadScope`].
    pub fn new(text: &str) -> Result<Self, BadScope> {
        let name = text.strip_suffix('*').unwrap_or(text);
        match name.is_empty() && text.ends_with('*') || NamespaceName::new(name).is_ok() {
            true => Ok(Self(text.into())),
            // Bounded: it may have come from anywhere.
            false => Err(BadScope(text.chars().take(64).collect())),
        }
    }

    /// All namespaces.
    #[must_use]
    pub fn all() -> Self {
        Self("*".into())
    }

    /// Is this namespace one of them?
    #[must_use]
    pub fn covers(&self, namespace: &NamespaceName) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => namespace.as_str().starts_with(beginning),
            None => *self.0 == *namespace.as_str(),
        }
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&NamespaceName> for Scope {
    fn from(name: &NamespaceName) -> Self {
        Self(name.as_str().into())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}
