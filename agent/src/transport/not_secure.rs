//! Ways that are not as safe as they must be.

use kvferry_security::tls::TlsRefusal;

/// Why a way is not as safe as it must be. Each is another thing to mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotSecure {
    /// The owner's data port speaks in clear, and we take payload by TLS only.
    #[error(
        "its data port speaks in clear, and this agent takes payload by TLS only: set data_tls there, too"
    )]
    Clear,
    /// Coordinators say that it speaks TLS, and what answers there does not.
    #[error(
        "its data port speaks TLS, as it told its coordinator, and what answers at {address} does not: look who that is"
    )]
    Downgraded {
        /// Where.
        address: String,
    },
    /// TLS did not come about.
    #[error(transparent)]
    Tls(TlsRefusal),
}
