//! What two parties must agree on before their blocks may meet.

use crate::{ChecksumPolicy, HashLen, InvalidMessage, Layout, NamespaceName, pb};

/// A namespace: name, layout, hash length and checksum policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceSpec {
    /// Its name.
    pub name: NamespaceName,
    /// How its blocks lie.
    pub layout: Layout,
    /// Bytes per block hash.
    pub hash_len: HashLen,
    /// Which blocks carry a checksum.
    pub checksum: ChecksumPolicy,
}

impl NamespaceSpec {
    /// None when `other` may use the namespace; else what differs, with both fingerprints.
    #[must_use]
    pub fn mismatch(&self, other: &Self) -> Option<String> {
        if self.layout != other.layout {
            return Some(format!(
                "namespace {} has layout {} ({}), not {} ({}); use another namespace for another layout",
                self.name,
                self.layout.fingerprint(),
                self.layout,
                other.layout.fingerprint(),
                other.layout,
            ));
        }
        if self.hash_len != other.hash_len {
            return Some(format!(
                "namespace {} has block hashes of {} bytes, not {}",
                self.name,
                self.hash_len.get(),
                other.hash_len.get(),
            ));
        }
        if self.checksum != other.checksum {
            return Some(format!(
                "namespace {} has checksum policy {}, not {}",
                self.name, self.checksum, other.checksum,
            ));
        }
        None
    }
}

impl TryFrom<pb::NamespaceSpec> for NamespaceSpec {
    type Error = InvalidMessage;
    fn try_from(message: pb::NamespaceSpec) -> Result<Self, InvalidMessage> {
        let checksum = ChecksumPolicy::from(message.checksum());
        Ok(Self {
            name: NamespaceName::new(&message.name)?,
            layout: message
                .layout
                .ok_or(InvalidMessage::Missing("layout"))?
                .try_into()?,
            hash_len: HashLen::new(message.hash_len as usize)?,
            checksum,
        })
    }
}

impl From<&NamespaceSpec> for pb::NamespaceSpec {
    fn from(spec: &NamespaceSpec) -> Self {
        Self {
            name: spec.name.to_string(),
            layout: Some((&spec.layout).into()),
            hash_len: spec.hash_len.get() as u32,
            checksum: pb::ChecksumPolicy::from(spec.checksum).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(plane_bytes: u64) -> NamespaceSpec {
        NamespaceSpec {
            name: NamespaceName::new("t/m").unwrap(),
            layout: Layout::new("bf16", 16, 64, plane_bytes).unwrap(),
            hash_len: HashLen::new(32).unwrap(),
            checksum: ChecksumPolicy::Off,
        }
    }

    #[test]
    fn a_mismatch_names_both_fingerprints() {
        let (ours, theirs) = (spec(32_768), spec(16_384));
        let text = ours.mismatch(&theirs).unwrap();
        assert!(text.contains(&ours.layout.fingerprint().to_string()));
        assert!(text.contains(&theirs.layout.fingerprint().to_string()));
        assert_eq!(ours.mismatch(&ours.clone()), None);
    }

    #[test]
    fn the_message_round_trips() {
        let ours = spec(32_768);
        assert_eq!(
            NamespaceSpec::try_from(pb::NamespaceSpec::from(&ours)).unwrap(),
            ours
        );
    }
}
