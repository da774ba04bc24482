//! What a failed handshake means, and what to do about it.

use std::io;

use rustls::{AlertDescription, CertificateError, Error as RustlsError, InvalidMessage};

/// Why no connection came about. `server` and `client` are told as the other side knows them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsRefusal {
    /// Its certificate is another's.
    #[error(
        "the certificate of {server} is for {}, not for {expected}: connect to a name it has, or issue one for {expected} (`kvferry keys cert`)",
        if presented.is_empty() { "no name at all" } else { presented }
    )]
    WrongName {
        /// Who was dialled.
        server: String,
        /// The name it should have.
        expected: String,
        /// Those it has.
        presented: String,
    },
    /// Its certificate is not by the CA we trust.
    #[error(
        "the certificate of {server} was not issued by the CA in {ca}: give the CA that issued it (--tls-ca), or a certificate of this CA there"
    )]
    UnknownIssuer {
        /// Who was dialled.
        server: String,
        /// Our CA's file.
        ca: String,
    },
    /// Its certificate is out of date.
    #[error(
        "the certificate of {server} has expired: renew it there (files are read again by themselves)"
    )]
    Expired {
        /// Who was dialled.
        server: String,
    },
    /// Its certificate is of tomorrow.
    #[error("the certificate of {server} is not valid yet: look at the clocks of both hosts")]
    NotYetValid {
        /// Who was dialled.
        server: String,
    },
    /// Nobody to know it by.
    #[error(
        "{server} speaks TLS, and there is no CA to know its certificate by: give the one that issued it (--tls-ca)"
    )]
    NoCa {
        /// Who was dialled.
        server: String,
    },
    /// It speaks in clear.
    #[error(
        "{server} does not speak TLS: use http:// for it, or start it with --tls-cert and --tls-key"
    )]
    NotTls {
        /// Who was dialled.
        server: String,
    },
    /// It wants to know who we are.
    #[error(
        "{server} wants a client certificate: give one that its CA issued (--tls-cert, --tls-key)"
    )]
    CertificateWanted {
        /// Who was dialled.
        server: String,
    },
    /// It does not take our certificate.
    #[error(
        "{server} refuses our certificate ({alert}): give one that its CA issued and that has not expired (--tls-cert, --tls-key)"
    )]
    CertificateRefused {
        /// Who was dialled.
        server: String,
        /// What it said.
        alert: String,
    },
    /// It hung up.
    #[error(
        "{server} closed the connection in the handshake: it may be busy, or speak something else"
    )]
    HungUp {
        /// Who was dialled.
        server: String,
    },
    /// Anything else.
    #[error("no TLS connection to {server}: {detail}")]
    Other {
        /// Who was dialled.
        server: String,
        /// What rustls says.
        detail: String,
    },
    /// A server's words about a client.
    #[error("{detail}")]
    Client {
        /// What is wrong with it.
        detail: String,
    },
}

impl TlsRefusal {
    /// What a client is told of a server.
    pub(super) fn of_server(server: &str, expected: &str, ca: &str, error: &io::Error) -> Self {
        let server = server.to_owned();
        let Some(error) = rustls_error(error) else {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe => Self::HungUp { server },
                _ => Self::Other {
                    server,
                    detail: error.to_string(),
                },
            };
        };
        match error {
            RustlsError::InvalidMessage(InvalidMessage::InvalidContentType) => {
                Self::NotTls { server }
            }
            RustlsError::InvalidCertificate(wrong) => match wrong {
                CertificateError::NotValidForNameContext { presented, .. } => Self::WrongName {
                    server,
                    expected: expected.to_owned(),
                    presented: presented
                        .iter()
                        .map(|name| plain(name))
                        .collect::<Vec<_>>()
                        .join(", "),
                },
                CertificateError::UnknownIssuer => Self::UnknownIssuer {
                    server,
                    ca: ca.to_owned(),
                },
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    Self::Expired { server }
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotYetValid { server }
                }
                // What one gets whose other CA has the same name.
                CertificateError::BadSignature => Self::UnknownIssuer {
                    server,
                    ca: ca.to_owned(),
                },
                other => Self::Other {
                    server,
                    detail: other.to_string(),
                },
            },
            RustlsError::AlertReceived(alert) => Self::of_alert(server, *alert),
            other => Self::Other {
                server,
                detail: other.to_string(),
            },
        }
    }

    /// What a server says after its own part of the handshake was done; None: nothing of the kind.
    #[must_use]
    pub fn of_late_alert(server: &str, error: &io::Error) -> Option<Self> {
        match rustls_error(error)? {
            RustlsError::AlertReceived(alert) => Some(Self::of_alert(server.to_owned(), *alert)),
            _ => None,
        }
    }

    fn of_alert(server: String, alert: AlertDescription) -> Self {
        use AlertDescription as A;
        match alert {
            A::CertificateRequired => Self::CertificateWanted { server },
            A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::DecryptError => Self::CertificateRefused {
                server,
                alert: format!("{alert:?}"),
            },
            other => Self::Other {
                server,
                detail: format!("it sends the alert {other:?}"),
            },
        }
    }

    /// What a server logs of a client.
    pub(super) fn of_client(error: &io::Error) -> Self {
        let detail = match rustls_error(error) {
            Some(RustlsError::NoCertificatesPresented) => {
                "it shows no certificate (clients need --tls-cert and --tls-key)".to_owned()
            }
            Some(RustlsError::InvalidCertificate(wrong)) => {
                format!("its certificate is refused: {wrong}")
            }
            Some(RustlsError::AlertReceived(alert)) => {
                format!("it does not take this server's certificate ({alert:?})")
            }
            Some(other) => other.to_string(),
            None => error.to_string(),
        };
        Self::Client { detail }
    }
}

fn rustls_error(error: &io::Error) -> Option<&RustlsError> {
    error.get_ref()?.downcast_ref()
}

/// `DnsName("x")` is `x`.
fn plain(presented: &str) -> String {
    let inner = presented
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(presented).trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(error: RustlsError) -> TlsRefusal {
        let error = io::Error::new(io::ErrorKind::InvalidData, error);
        TlsRefusal::of_server("10.0.0.1:7400", "coordinator", "ca.pem", &error)
    }

    #[test]
    fn what_went_wrong_says_what_to_do() {
        let clear = refusal(RustlsError::InvalidMessage(
            InvalidMessage::InvalidContentType,
        ));
        assert!(matches!(clear, TlsRefusal::NotTls { .. }));
        let wanted = refusal(RustlsError::AlertReceived(
            AlertDescription::CertificateRequired,
        ));
        assert!(wanted.to_string().contains("--tls-cert"), "{wanted}");
        let ca = refusal(CertificateError::UnknownIssuer.into());
        assert!(ca.to_string().contains("ca.pem") && ca.to_string().contains("10.0.0.1:7400"));
        assert_eq!(plain("DnsName(\"x.y\")"), "x.y");
        assert_eq!(plain("x"), "x");
    }
}
