//! A server's side: its certificate, and whose clients it takes.

use std::{path::Path, sync::Arc};

use rustls::{
    ServerConfig,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tokio_rustls::TlsAcceptor;

use super::{
    configs::Configs,
    files::{self, TlsFileError, TlsFiles},
};
use crate::reread::Reread;

/// A server's certificate, read again when its files change.
#[derive(Debug)]
pub struct ServerTls {
    files: Reread<Configs<ServerConfig>, TlsFileError>,
    asks_clients: bool,
}

impl ServerTls {
    /// Reads certificate and key, and the clients' CA where there is one; None where there is no certificate.
    ///
    /// # Errors
    /// [`TlsFileError`].
    pub fn open(settings: &TlsFiles) -> Result<Option<Self>, TlsFileError> {
        settings.check()?;
        let Some((cert, key)) = settings.pair() else {
            return Ok(None);
        };
        let ca = settings.ca.clone();
        let paths = [&cert, &key].into_iter().chain(&ca).cloned().collect();
        let asks_clients = ca.is_some();
        let load = move || config(&cert, &key, ca.as_deref());
        let files = Reread::open("the server's certificate", paths, load)?;
        Ok(Some(Self {
            files,
            asks_clients,
        }))
    }

    /// Whether clients must show certificates.
    #[must_use]
    pub fn asks_clients(&self) -> bool {
        self.asks_clients
    }

    /// For the next handshake.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.files.current().value.grpc))
    }

    /// As [`acceptor`](Self::acceptor), of the data port.
    pub(super) fn data_acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.files.current().value.data))
    }
}

fn config(
    cert: &Path,
    key: &Path,
    ca: Option<&Path>,
) -> Result<Configs<ServerConfig>, TlsFileError> {
    let (chain, private) = files::pair(cert, key)?;
    let broken = |path: &Path, detail: String| TlsFileError::Broken {
        what: "tls_ca",
        path: path.to_owned(),
        detail,
    };
    let builder = ServerConfig::builder_with_provider(files::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| files::unusable(cert, key, &error))?;
    let builder = match ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let roots = files::roots(ca)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, files::provider());
            let verifier = verifier.build();
            builder
                .with_client_cert_verifier(verifier.map_err(|error| broken(ca, error.to_string()))?)
        }
    };
    let mut config = builder
        .with_single_cert(chain, private)
        .map_err(|error| files::unusable(cert, key, &error))?;
    // A session that is gone on with is not asked for its certificate again, and connections last for hours.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config.into())
}
