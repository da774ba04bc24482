//! The limit on memory that may be locked, which registration runs into.

use std::fmt;

use rustix::process::{Resource, getrlimit};

/// RLIMIT_MEMLOCK of this process: bytes that a user without CAP_IPC_LOCK may lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemlockLimit {
    /// What holds now; None is no limit.
    pub current_bytes: Option<u64>,
    /// What the process may raise it to; None is no limit.
    pub maximum_bytes: Option<u64>,
}

impl MemlockLimit {
    /// As it is now.
    #[must_use]
    pub fn now() -> Self {
        let limit = getrlimit(Resource::Memlock);
        Self {
            current_bytes: limit.current,
            maximum_bytes: limit.maximum,
        }
    }
}

impl fmt::Display for MemlockLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.current_bytes {
            Some(bytes) => write!(f, "{bytes} bytes"),
            None => f.write_str("unlimited"),
        }
    }
}
