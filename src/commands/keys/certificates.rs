//! A CA, and what it issues. ECDSA P-256 throughout.

use std::net::IpAddr;

use kvferry_security::Caller;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use time::{Duration, OffsetDateTime};

use super::KeysError;

/// Clocks differ: what is made now is valid on a host whose clock is a little behind.
const CLOCK_SLACK: Duration = Duration::hours(1);

/// A CA's certificate and key, or those it issued, as PEM.
pub(super) struct Authority {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// Who is to get a certificate.
pub(super) struct Subject<'a> {
    pub(super) name: &'a str,
    pub(super) dns: &'a [String],
    pub(super) ip: &'a [IpAddr],
    pub(super) days: u32,
}

impl Authority {
    /// A new one.
    pub(super) fn make(name: &str, days: u32) -> Result<Self, KeysError> {
        let failed = |source| KeysError::Certificate {
            what: format!("a CA named {name:?} cannot be made"),
            source,
        };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = ca_params(name);
        valid_for(&mut params, days);
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// A certificate that servers and clients may show.
    pub(super) fn issue(&self, subject: &Subject<'_>) -> Result<Self, KeysError> {
        let failed = |source| KeysError::Certificate {
            what: format!("a certificate for {:?} cannot be made", subject.name),
            source,
        };
        let issuer = self.issuer()?;
        let mut params = CertificateParams::default();
        let names = std::iter::once(subject.name).chain(subject.dns.iter().map(String::as_str));
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.try_into().map_err(failed)?),
            });
        }
        let addresses = subject.ip.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names.extend(addresses);
        // For servers that know clients by it, and for people.
        params
            .distinguished_name
            .push(DnType::CommonName, subject.name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        valid_for(&mut params, subject.days);
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
        Ok(Self {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// What signs: the key, under the name that the CA's certificate has.
    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, KeysError> {
        let not_ours = || KeysError::NotOurs {
            path: "ca.pem".to_owned(),
        };
        let der = CertificateDer::from_pem_slice(self.certificate.as_bytes());
        let der = der.map_err(|_| not_ours())?;
        let ca = Caller::with_certificate(None, &der);
        let name = ca.names().and_then(<[String]>::first);
        let name = name.ok_or_else(not_ours)?;
        let key = KeyPair::from_pem(&self.key).map_err(|source| KeysError::Certificate {
            what: "ca.key is no key".to_owned(),
            source,
        })?;
        Ok(Issuer::new(ca_params(name), key))
    }
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn valid_for(params: &mut CertificateParams, days: u32) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_SLACK;
    params.not_after = now + Duration::days(days.into());
}
