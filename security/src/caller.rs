//! Who is at the other end of a connection, as far as the connection says so.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwapOption;
use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use crate::access::Rules;

/// Names taken from one certificate: a node's has a handful.
const MAX_NAMES: usize = 64;

/// Who is at the other end. A listener puts it among the extensions of every request of the connection.
#[derive(Debug, Clone)]
pub struct Caller {
    from: Option<SocketAddr>,
    certified: Option<Arc<Certified>>,
}

/// The names of a client's certificate, which the CA answers for.
#[derive(Debug)]
pub(crate) struct Certified {
    names: Vec<String>,
    /// What the policy of a number says of them; asked for once a connection and policy.
    pub(crate) known: ArcSwapOption<Known>,
}

/// What a reading of the policy says of a certificate; None: nothing.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) number: u64,
    pub(crate) rules: Option<Arc<Rules>>,
}

impl Caller {
    /// Somebody who showed no certificate.
    #[must_use]
    pub fn anonymous(from: Option<SocketAddr>) -> Self {
        let certified = None;
        Self { from, certified }
    }

    /// Somebody whose certificate was verified.
    #[must_use]
    pub fn with_certificate(from: Option<SocketAddr>, certificate: &CertificateDer<'_>) -> Self {
        let certified = Certified {
            names: names(certificate),
            known: ArcSwapOption::empty(),
        };
        Self {
            from,
            certified: Some(Arc::new(certified)),
        }
    }

    /// From where.
    #[must_use]
    pub fn from(&self) -> Option<SocketAddr> {
        self.from
    }

    /// The names its certificate has: DNS names, URIs, then the common name. None without a certificate.
    #[must_use]
    pub fn names(&self) -> Option<&[String]> {
        self.certified.as_deref().map(Certified::names)
    }

    pub(crate) fn certified(&self) -> Option<&Arc<Certified>> {
        self.certified.as_ref()
    }
}

impl Certified {
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }
}

fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(parsed) = EndEntityCert::try_from(certificate) else {
        return Vec::new();
    };
    let alternative = parsed.valid_dns_names().chain(parsed.valid_uri_names());
    let mut names: Vec<String> = Vec::new();
    for name in alternative.chain(common_name(parsed.subject())) {
        if names.len() < MAX_NAMES && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// The common name of a subject, as `openssl req -subj /CN=...` makes it. `subject` is the content of
/// an RDNSequence in DER, or the sequence itself.
#[must_use]
pub fn common_name(subject: &[u8]) -> Option<&str> {
    const SEQUENCE: u8 = 0x30;
    const SET: u8 = 0x31;
    const OBJECT: u8 = 0x06;
    const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
    // UTF8String, PrintableString, IA5String.
    const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];
    let mut rest = subject;
    if let Some((SEQUENCE, inner, [])) = element(rest) {
        rest = inner;
    }
    while let Some((SET, mut attributes, after)) = element(rest) {
        rest = after;
        while let Some((SEQUENCE, attribute, more)) = element(attributes) {
            attributes = more;
            let Some((OBJECT, id, value)) = element(attribute) else {
                continue;
            };
            if let (true, Some((tag, text, _))) = (*id == COMMON_NAME, element(value))
                && TEXTS.contains(&tag)
            {
                return std::str::from_utf8(text).ok();
            }
        }
    }
    None
}

/// The first element: its tag, its content, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let len = if first < 0x80 {
        usize::from(first)
    } else {
        // Names longer than two bytes of length can say are nobody's.
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 2 {
            return None;
        }
        let (bytes, after) = rest.split_at_checked(count)?;
        rest = after;
        bytes
            .iter()
            .fold(0, |len, byte| len << 8 | usize::from(*byte))
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    #[test]
    fn all_names_of_a_certificate_count() {
        let mut params = CertificateParams::new(vec!["node-7".to_owned()]).unwrap();
        let uri = "kvferry:node-7".try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
        params
            .distinguished_name
            .push(DnType::OrganizationName, "x".repeat(200));
        params.distinguished_name.push(DnType::CommonName, "Node 7");
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let caller = Caller::with_certificate(None, certificate.der());
        let names: Vec<_> = caller.names().unwrap().iter().map(String::as_str).collect();
        assert_eq!(names, ["node-7", "kvferry:node-7", "Node 7"]);
        assert_eq!(Caller::anonymous(None).names(), None);
    }

    #[test]
    fn no_subject_makes_it_panic() {
        for bad in [
            &[][..],
            &[0x30],
            &[0x31, 0x82, 0xff],
            &[0x31, 0x03, 0x30, 0x01, 0x06],
            &[0x30, 0x80, 0, 0],
        ] {
            assert_eq!(common_name(bad), None);
        }
    }
}
