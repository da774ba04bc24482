//! A CA, what it issues, and who has it.

use std::{fs, sync::Arc};

use kvferry_agent::transport::tcp::{PayloadTls, TcpTransport};
use kvferry_security::tls::{Dialer, Secured, ServerTls, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

pub struct Keys {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Keys {
    /// A CA that has issued certificates to an owner and a reader.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "a CA of tests");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(dir.path().join("ca.pem"), certificate.pem()).unwrap();
        let issuer = Issuer::new(params, key);
        let keys = Self { dir, issuer };
        keys.issue("owner", "owner");
        keys.issue("reader", "reader");
        keys
    }

    /// `FILE.pem` and `FILE.key`, for that name.
    pub fn issue(&self, file: &str, name: &str) {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        // Whole, as what rotates certificates does it.
        for (kind, text) in [("key", key.serialize_pem()), ("pem", certificate.pem())] {
            let path = self.dir.path().join(format!("{file}.{kind}"));
            let new = path.with_extension("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, path).unwrap();
        }
    }

    pub fn files(&self, file: Option<&str>) -> TlsFiles {
        let path = |kind| file.map(|file| self.dir.path().join(format!("{file}.{kind}")));
        TlsFiles {
            cert: path("pem"),
            key: path("key"),
            ca: Some(self.dir.path().join("ca.pem")),
        }
    }

    /// An owner's side, which wants certificates of its readers.
    pub fn server(&self, file: &str) -> Arc<ServerTls> {
        let files = self.files(Some(file));
        Arc::new(ServerTls::open(&files).unwrap().unwrap())
    }

    pub fn dialer(&self, file: Option<&str>) -> Dialer {
        let files = self.files(file);
        Dialer::open(&Secured {
            files,
            ..Secured::default()
        })
        .unwrap()
    }

    /// One that reads nothing in clear.
    pub fn reader(&self) -> TcpTransport {
        let tls = PayloadTls::new(self.dialer(Some("reader")), true);
        TcpTransport::default().with_tls(tls)
    }
}
