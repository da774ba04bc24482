//! What one caller may do.

use std::sync::Arc;

/// What is asked for, in one namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

/// What the caller of a request may do. The door puts it among the request's extensions; whoever serves the request asks it.
#[derive(Debug, Clone)]
pub struct Access {
    rules: Option<Arc<Rules>>,
}

/// The rules for one identity, as the policy had them when the request came in.
#[derive(Debug)]
struct Rules {
    name: String,
    node: Option<String>,
    grants: Vec<Grant>,
}

/// One line of a policy: these rights in the namespaces whose name fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// A namespace's name, or the beginning of one and `*`.
    pub namespace: String,
    /// What may be done there.
    pub rights: Vec<Right>,
}

impl Access {
    /// Everything is allowed: no policy is configured.
    #[must_use]
    pub fn unrestricted() -> Self {
        Self { rules: None }
    }

    /// What `name` may do. `node`: the only node it may speak for; `None` for those who are no node.
    #[must_use]
    pub fn of(name: &str, node: Option<&str>, grants: Vec<Grant>) -> Self {
        let (name, node) = (name.to_owned(), node.map(str::to_owned));
        Self {
            rules: Some(Arc::new(Rules { name, node, grants })),
        }
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

    /// Whether it may speak for the node of this name.
    #[must_use]
    pub fn may_be(&self, node: &str) -> bool {
        self.rules
            .as_ref()
            .is_none_or(|rules| rules.node.as_deref() == Some(node))
    }

    /// The name of who asks, for logs; `None` where no policy is configured.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.rules.as_ref().map(|rules| rules.name.as_str())
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
}
