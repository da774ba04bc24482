//! Who may do what: a small file.

mod file;

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    access::{Grant, Rules},
    caller::Certified,
    token::TokenHash,
};

/// Largest policy file: ten thousand identities.
pub const MAX_POLICY_BYTES: u64 = 4 << 20;

/// Why a policy is of no use.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("the policy file {} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is longer than any policy.
    #[error("the policy file {} is larger than {MAX_POLICY_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is no TOML, or has a key or right that does not exist.
    #[error("{}: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What, and in which line.
        source: Box<toml::de::Error>,
    },
    /// An identity makes no sense.
    #[error("{}: identity {number}{}: {fault}", path.display(), name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default())]
    Identity {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        number: usize,
        /// Its name, where it has one.
        name: Option<String>,
        /// What is wrong.
        fault: Fault,
    },
}

/// What is wrong with an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Nobody could be it.
    #[error("give it a `certificate` (a name of the client's certificate) or a `token_sha256`")]
    Nobody,
    /// Logs could not name it.
    #[error("give it a `name`: a token has none")]
    NoName,
    /// Not a hash.
    #[error(
        "`token_sha256` takes 64 hexadecimal digits (`kvferry keys token` prints them), not the token itself"
    )]
    TokenHash,
    /// A certificate's name is needed.
    #[error("`own_node` needs a `certificate`, whose names are the node's")]
    OwnNode,
    /// Two ways to say it.
    #[error("`own_node` and `node` say different things: keep one")]
    TwoNodes,
    /// A `*` that is not at the end.
    #[error("`*` stands at the end only, and for any rest")]
    Pattern,
    /// Somebody else is that already.
    #[error("an identity before it has the same certificate name or token")]
    Twice,
}

/// A policy, as it was read.
#[derive(Debug, Default)]
pub struct Policy {
    /// By a name of a certificate.
    certificates: HashMap<String, Identity>,
    /// By the beginning of one, the longest first.
    beginnings: Vec<(String, Identity)>,
    tokens: Vec<(TokenHash, Arc<Rules>)>,
}

#[derive(Debug)]
struct Identity {
    /// None: as the certificate has it.
    name: Option<String>,
    speaks: Speaks,
    grants: Arc<[Grant]>,
}

#[derive(Debug)]
enum Speaks {
    ForNobody,
    For(String),
    /// For the nodes that are named like the certificate.
    ForItself,
}

impl Policy {
    /// Reads a file.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let unreadable = |source| PolicyError::Unreadable {
            path: path.to_owned(),
            source,
        };
        if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_POLICY_BYTES {
            return Err(PolicyError::TooLarge {
                path: path.to_owned(),
            });
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        Self::parse(path, &text)
    }

    /// Reads a text; `path` is for errors.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, PolicyError> {
        let file: file::File = toml::from_str(text).map_err(|source| PolicyError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let mut policy = Self::default();
        for (index, entry) in file.identity.into_iter().enumerate() {
            let name = entry.name.clone().or_else(|| entry.certificate.clone());
            policy.add(entry).map_err(|fault| PolicyError::Identity {
                path: path.to_owned(),
                number: index + 1,
                name,
                fault,
            })?;
        }
        let longest_first = |one: &(String, Identity)| std::cmp::Reverse(one.0.len());
        policy.beginnings.sort_by_key(longest_first);
        Ok(policy)
    }

    /// How many identities it has.
    #[must_use]
    pub fn identities(&self) -> usize {
        self.certificates.len() + self.beginnings.len() + self.tokens.len()
    }

    fn add(&mut self, entry: file::Entry) -> Result<(), Fault> {
        entry.check()?;
        let grants: Arc<[Grant]> = entry.rights.into();
        if let Some(hex) = &entry.token_sha256 {
            let hash = TokenHash::parse(hex).ok_or(Fault::TokenHash)?;
            if self.tokens.iter().any(|(known, _)| *known == hash) {
                return Err(Fault::Twice);
            }
            let rules = Rules {
                name: entry.name.clone().ok_or(Fault::NoName)?,
                nodes: entry.node.clone().into_iter().collect(),
                grants: Arc::clone(&grants),
            };
            self.tokens.push((hash, Arc::new(rules)));
        }
        let Some(certificate) = entry.certificate else {
            return Ok(());
        };
        let identity = Identity {
            name: entry.name,
            speaks: match (entry.node, entry.own_node) {
                (Some(node), _) => Speaks::For(node),
                (None, true) => Speaks::ForItself,
                (None, false) => Speaks::ForNobody,
            },
            grants,
        };
        let twice = match certificate.strip_suffix('*') {
            None => self.certificates.insert(certificate, identity).is_some(),
            Some(beginning) => {
                let twice = self.beginnings.iter().any(|(known, _)| known == beginning);
                self.beginnings.push((beginning.to_owned(), identity));
                twice
            }
        };
        if twice { Err(Fault::Twice) } else { Ok(()) }
    }

    /// The rules of whoever has this certificate: by one of its names as it is, else by the longest
    /// beginning.
    pub(crate) fn of_certificate(&self, certified: &Certified) -> Option<Rules> {
        let names = certified.names();
        let exact = || {
            names
                .iter()
                .find_map(|name| Some((name, self.certificates.get(name)?)))
        };
        let begins = || {
            self.beginnings.iter().find_map(|(beginning, identity)| {
                let name = names.iter().find(|name| name.starts_with(beginning))?;
                Some((name, identity))
            })
        };
        let (name, identity) = exact().or_else(begins)?;
        Some(Rules {
            name: identity.name.as_ref().unwrap_or(name).clone(),
            nodes: match &identity.speaks {
                Speaks::ForNobody => Vec::new(),
                Speaks::For(node) => vec![node.clone()],
                Speaks::ForItself => names.to_vec(),
            },
            grants: Arc::clone(&identity.grants),
        })
    }

    /// The rules of whoever has this token. All are compared, whichever it is.
    pub(crate) fn of_token(&self, hash: TokenHash) -> Option<&Arc<Rules>> {
        let mut found = None;
        for (known, rules) in &self.tokens {
            if *known == hash {
                found = Some(rules);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests;
