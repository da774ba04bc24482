//! What one caller may do.

use std::{net::SocketAddr, sync::Arc};

use kvferry_proto::{Reason, refusal};
use serde::Deserialize;
use tonic::{Code, Status};

use crate::{audit, caller::Certified, token::TokenHash};

/// What is asked for, in one namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Locate, watch, pull: learn that a block exists, and read it.
    Read,
    /// Publish blocks, locations and sources.
    Write,
    /// Claim blocks that are to be computed.
    Claim,
    /// Change what the namespace is: its policy, its hot prefixes, drains of nodes.
    Admin,
}

impl Right {
    /// As a policy has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Claim => "claim",
            Self::Admin => "admin",
        }
    }
}

/// What the caller of a request may do. The [gate](crate::Gate) puts it among the request's extensions;
/// whoever serves the request asks it.
#[derive(Debug, Clone)]
pub struct Access {
    rules: Option<Arc<Rules>>,
    from: Option<SocketAddr>,
    credential: Option<Credential>,
}

/// The rules for one identity, as the policy had them when the request came in.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) name: String,
    pub(crate) nodes: Vec<String>,
    pub(crate) grants: Arc<[Grant]>,
}

/// By what somebody was known.
#[derive(Debug, Clone)]
pub(crate) enum Credential {
    Certificate(Arc<Certified>),
    Token(TokenHash),
}

/// One line of a policy: these rights in the namespaces whose name fits.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// A namespace's name, or the beginning of one and `*`.
    pub namespace: String,
    /// What may be done there.
    #[serde(rename = "allow")]
    pub rights: Vec<Right>,
}

/// A call that its caller may not make. Asking again is of no use until the policy changes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// A right in a namespace is lacking. Says nothing of whether the namespace is there.
    #[error(
        "{who} may not {what} in namespace {namespace}: that takes the right `{}` there; the coordinator's policy file grants it",
        right.as_str()
    )]
    Namespace {
        /// Who asked.
        who: String,
        /// To do what.
        what: &'static str,
        /// The right that is lacking.
        right: Right,
        /// Where.
        namespace: String,
    },
    /// It is another's node.
    #[error(
        "{who} may not {what} for node {node}: an identity speaks for its own node only; the coordinator's policy file says which that is"
    )]
    Node {
        /// Who asked.
        who: String,
        /// To do what.
        what: &'static str,
        /// The node it is not.
        node: String,
    },
    /// A right in all namespaces is lacking.
    #[error(
        "{who} may not {what}: that takes the right `{}` in all namespaces (`*`); the coordinator's policy file grants it",
        right.as_str()
    )]
    Everywhere {
        /// Who asked.
        who: String,
        /// To do what.
        what: &'static str,
        /// The right that is lacking.
        right: Right,
    },
}

impl From<Denied> for Status {
    fn from(denied: Denied) -> Self {
        let text = denied.to_string();
        refusal(Code::PermissionDenied, Reason::PermissionDenied, text)
    }
}

impl Access {
    /// Everything is allowed: no policy is configured.
    #[must_use]
    pub fn unrestricted() -> Self {
        Self {
            rules: None,
            from: None,
            credential: None,
        }
    }

    /// What `name` may do. `node`: the only node it may speak for; `None` for those who are no node.
    #[must_use]
    pub fn of(name: &str, node: Option<&str>, grants: Vec<Grant>) -> Self {
        let rules = Rules {
            name: name.to_owned(),
            nodes: node.map(str::to_owned).into_iter().collect(),
            grants: grants.into(),
        };
        Self {
            rules: Some(Arc::new(rules)),
            ..Self::unrestricted()
        }
    }

    pub(crate) fn by(rules: Arc<Rules>, credential: Credential, from: Option<SocketAddr>) -> Self {
        Self {
            rules: Some(rules),
            from,
            credential: Some(credential),
        }
    }

    pub(crate) fn credential(&self) -> Option<&Credential> {
        self.credential.as_ref()
    }

    pub(crate) fn rules(&self) -> Option<&Arc<Rules>> {
        self.rules.as_ref()
    }

    /// Whether `right` is granted in `namespace`.
    #[must_use]
    pub fn may(&self, right: Right, namespace: &str) -> bool {
        let Some(rules) = &self.rules else {
            return true;
        };
        rules
            .grants
            .iter()
            .any(|grant| grant.rights.contains(&right) && grant.covers(namespace))
    }

    /// The namespaces and beginnings of namespaces where `right` is granted; `None`: everywhere.
    #[must_use]
    pub fn granted(&self, right: Right) -> Option<Vec<&str>> {
        let grants = self.rules.as_ref()?.grants.iter();
        let granting = grants.filter(|grant| grant.rights.contains(&right));
        Some(granting.map(|grant| grant.namespace.as_str()).collect())
    }

    /// Whether it may know that a namespace is there: whoever has any right in it may.
    #[must_use]
    pub fn sees(&self, namespace: &str) -> bool {
        let Some(rules) = &self.rules else {
            return true;
        };
        let mut grants = rules.grants.iter();
        grants.any(|grant| !grant.rights.is_empty() && grant.covers(namespace))
    }

    /// Whether it may speak for the node of this name.
    #[must_use]
    pub fn may_be(&self, node: &str) -> bool {
        let Some(rules) = &self.rules else {
            return true;
        };
        rules.nodes.iter().any(|own| own == node)
    }

    /// Whether nothing is asked of the caller at all.
    #[must_use]
    pub fn is_unrestricted(&self) -> bool {
        self.rules.is_none()
    }

    /// The name of who asks, for logs; `None` where no policy is configured.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.rules.as_ref().map(|rules| rules.name.as_str())
    }

    /// As [`may`](Self::may); a refusal is written to the audit log. `what`: as in "may not `what`".
    ///
    /// # Errors
    /// [`Denied`]: the same whether the namespace is there or not.
    pub fn must(&self, right: Right, namespace: &str, what: &'static str) -> Result<(), Denied> {
        if self.may(right, namespace) {
            return Ok(());
        }
        Err(self.denied(what, |who| Denied::Namespace {
            who,
            what,
            right,
            namespace: namespace.to_owned(),
        }))
    }

    /// As [`may_be`](Self::may_be); a refusal is written to the audit log.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn must_be(&self, node: &str, what: &'static str) -> Result<(), Denied> {
        if self.may_be(node) {
            return Ok(());
        }
        let node = node.to_owned();
        Err(self.denied(what, |who| Denied::Node { who, what, node }))
    }

    /// Whether `right` is granted in every namespace; a refusal is written to the audit log.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn must_everywhere(&self, right: Right, what: &'static str) -> Result<(), Denied> {
        let granted = self.rules.as_ref().is_none_or(|rules| {
            let mut grants = rules.grants.iter();
            grants.any(|grant| grant.namespace == "*" && grant.rights.contains(&right))
        });
        if granted {
            return Ok(());
        }
        Err(self.denied(what, |who| Denied::Everywhere { who, what, right }))
    }

    /// Notes in the audit log that it did what only few may do.
    pub fn did(&self, what: &'static str, on: &str) {
        if let Some(name) = self.name() {
            audit::done(name, what, on, self.from);
        }
    }

    fn denied(&self, what: &'static str, denied: impl FnOnce(String) -> Denied) -> Denied {
        let who = self.name().unwrap_or("nobody");
        let denied = denied(who.to_owned());
        audit::denied(who, what, self.from, &denied);
        denied
    }
}

impl Grant {
    fn covers(&self, namespace: &str) -> bool {
        match self.namespace.strip_suffix('*') {
            Some(beginning) => namespace.starts_with(beginning),
            None => self.namespace == namespace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader() -> Access {
        let grant = Grant {
            namespace: "llama*".to_owned(),
            rights: vec![Right::Read],
        };
        Access::of("cn-7", Some("node-7"), vec![grant])
    }

    #[test]
    fn a_grant_covers_what_begins_like_it() {
        assert!(reader().may(Right::Read, "llama-70b"));
        assert!(!reader().may(Right::Read, "qwen"));
        assert!(!reader().may(Right::Write, "llama-70b"));
        assert!(reader().sees("llama-70b") && !reader().sees("qwen"));
    }

    #[test]
    fn what_is_granted_can_be_listed() {
        assert_eq!(reader().granted(Right::Read), Some(vec!["llama*"]));
        assert_eq!(reader().granted(Right::Admin), Some(Vec::new()));
        assert_eq!(Access::unrestricted().granted(Right::Read), None);
    }

    #[test]
    fn an_agent_speaks_for_its_own_node_only() {
        assert!(reader().may_be("node-7"));
        assert!(!reader().may_be("node-8"));
        assert!(!Access::of("router", None, Vec::new()).may_be("node-7"));
    }

    #[test]
    fn a_refusal_says_who_what_and_where() {
        let denied = reader().must(Right::Write, "llama-70b", "publish blocks");
        assert_eq!(
            denied.unwrap_err().to_string(),
            "cn-7 may not publish blocks in namespace llama-70b: that takes the right `write` there; \
             the coordinator's policy file grants it"
        );
        assert!(reader().must_be("node-8", "open a session").is_err());
        assert!(reader().must_everywhere(Right::Read, "list all").is_err());
        let all = Access::unrestricted();
        assert!(all.must_everywhere(Right::Admin, "drain").is_ok() && all.may_be("any"));
    }
}
