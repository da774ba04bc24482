//! The file's shape.

use serde::Deserialize;

use super::Fault;
use crate::access::Grant;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) identity: Vec<Entry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Entry {
    pub(super) name: Option<String>,
    pub(super) certificate: Option<String>,
    pub(super) token_sha256: Option<String>,
    pub(super) node: Option<String>,
    pub(super) own_node: bool,
    pub(super) rights: Vec<Grant>,
}

impl Entry {
    pub(super) fn check(&self) -> Result<(), Fault> {
        let star_within = |text: &str| text.strip_suffix('*').unwrap_or(text).contains('*');
        let mut patterns = self.rights.iter().map(|grant| &grant.namespace);
        let certificate = self.certificate.as_deref();
        match () {
            () if self.certificate.is_none() && self.token_sha256.is_none() => Err(Fault::Nobody),
            () if self.certificate.is_none() && self.name.is_none() => Err(Fault::NoName),
            () if self.own_node && self.certificate.is_none() => Err(Fault::OwnNode),
            () if self.own_node && self.node.is_some() => Err(Fault::TwoNodes),
            () if patterns.any(|text| star_within(text))
                || certificate.is_some_and(star_within) =>
            {
                Err(Fault::Pattern)
            }
            () => Ok(()),
        }
    }
}
