//! Certificates and keys, from PEM files.

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};

/// Largest file: a bundle of all public CAs is a quarter of it.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Which files, as settings name them: `tls_cert`, `tls_key`, `tls_ca`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsFiles {
    /// Our certificate, and those between it and the CA.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Who must have issued the other side's certificate.
    pub ca: Option<PathBuf>,
}

impl TlsFiles {
    /// Certificate and key come together.
    ///
    /// # Errors
    /// [`TlsFileError::Half`].
    pub fn check(&self) -> Result<(), TlsFileError> {
        let half = |given, missing| Err(TlsFileError::Half { given, missing });
        match (&self.cert, &self.key) {
            (Some(_), None) => half("tls_cert", "tls_key"),
            (None, Some(_)) => half("tls_key", "tls_cert"),
            _ => Ok(()),
        }
    }

    /// Whether there is what a server needs.
    #[must_use]
    pub fn serve(&self) -> bool {
        self.cert.is_some() && self.key.is_some()
    }

    pub(super) fn pair(&self) -> Option<(PathBuf, PathBuf)> {
        self.cert.clone().zip(self.key.clone())
    }
}

/// Why files are of no use.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// One without the other.
    #[error(
        "{given} is set and {missing} is not: a certificate and its key belong together (--tls-cert and --tls-key)"
    )]
    Half {
        /// The setting that is there.
        given: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// A file cannot be read.
    #[error("{what}: {} cannot be read: {source}", path.display())]
    Unreadable {
        /// Which setting.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file is longer than any certificate.
    #[error("{what}: {} is larger than {MAX_FILE_BYTES} bytes", path.display())]
    TooLarge {
        /// Which setting.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The file holds something else.
    #[error("{what}: {} holds no {kind} in PEM (-----BEGIN ...-----): is it the right file?", path.display())]
    Nothing {
        /// Which setting.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What was looked for.
        kind: &'static str,
    },
    /// The file is broken.
    #[error("{what}: {} is broken: {detail}", path.display())]
    Broken {
        /// Which setting.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// In which way.
        detail: String,
    },
    /// Key and certificate do not belong together.
    #[error("the key in {} is not that of the certificate in {}: give both of one pair", key.display(), cert.display())]
    Mismatch {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
}

pub(super) type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A certificate with its chain, and its key.
pub(super) fn pair(cert: &Path, key: &Path) -> Result<Pair, TlsFileError> {
    let chain = certificates("tls_cert", cert)?;
    let text = read("tls_key", key)?;
    let found = PrivateKeyDer::from_pem_slice(&text);
    let found = found.map_err(|error| wrong("tls_key", key, "private key", error))?;
    if let Ok(meta) = std::fs::metadata(key)
        && meta.permissions().mode() & 0o007 != 0
    {
        tracing::warn!(
            "tls_key: every user of this host can read {}: chmod 600 it",
            key.display()
        );
    }
    Ok((chain, found))
}

/// Certificates of CAs.
pub(super) fn roots(path: &Path) -> Result<Arc<RootCertStore>, TlsFileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("tls_ca", path)? {
        roots
            .add(certificate)
            .map_err(|error| TlsFileError::Broken {
                what: "tls_ca",
                path: path.to_owned(),
                detail: error.to_string(),
            })?;
    }
    Ok(Arc::new(roots))
}

/// The only cryptography there is.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What rustls says of a pair.
pub(super) fn unusable(cert: &Path, key: &Path, error: &rustls::Error) -> TlsFileError {
    match error {
        rustls::Error::InconsistentKeys(_) => TlsFileError::Mismatch {
            cert: cert.to_owned(),
            key: key.to_owned(),
        },
        other => TlsFileError::Broken {
            what: "tls_cert",
            path: cert.to_owned(),
            detail: other.to_string(),
        },
    }
}

fn certificates(
    what: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let text = read(what, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| wrong(what, path, "certificate", error))?;
    if found.is_empty() {
        return Err(wrong(what, path, "certificate", pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn wrong(what: &'static str, path: &Path, kind: &'static str, error: pem::Error) -> TlsFileError {
    let path = path.to_owned();
    match error {
        pem::Error::NoItemsFound => TlsFileError::Nothing { what, path, kind },
        other => TlsFileError::Broken {
            what,
            path,
            detail: other.to_string(),
        },
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsFileError> {
    let unreadable = |source| TlsFileError::Unreadable {
        what,
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_FILE_BYTES {
        return Err(TlsFileError::TooLarge {
            what,
            path: path.to_owned(),
        });
    }
    std::fs::read(path).map_err(unreadable)
}
