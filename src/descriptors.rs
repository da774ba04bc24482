//! How many files and sockets this process may hold open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};

/// Below this a daemon of a few hundred nodes may run out: each peer is some six sockets.
const FEW: u64 = 4_096;

/// Takes as many as the hard limit allows, and gives how many that is; `u64::MAX` is no limit. The usual soft limit of 1,024
/// is there for programs that use select(2), which this is none of.
pub(crate) fn take_all() -> u64 {
    let now = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: now.maximum,
        maximum: now.maximum,
    };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => now.maximum,
        Err(_) => now.current,
    };
    limit.unwrap_or(u64::MAX)
}

/// For daemons: as above, and a word where that is little.
pub(crate) fn prepare() {
    match take_all() {
        u64::MAX => {}
        limit if limit < FEW => warn!(
            limit,
            "few files and sockets may be open at a time; with more than a hundred peers raise the hard limit \
             (systemd: LimitNOFILE=65536; shell: ulimit -Hn)"
        ),
        limit => info!(limit, "open files and sockets"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = take_all();
        let now = getrlimit(Resource::Nofile);
        assert_eq!(now.current, now.maximum);
        assert_eq!(limit, now.maximum.unwrap_or(u64::MAX));
    }
}
