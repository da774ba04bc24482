//! Which host this is, as far as unix sockets and memory descriptors go.

use std::{fs, os::unix::fs::MetadataExt};

/// Longest host id; well within what a node's addresses may carry.
const MAX_HOST_ID: usize = 64;

/// Equal in two processes only when they run under one kernel boot and see the same files and users:
/// one boot id, one mount namespace, one user namespace. Two containers that share a socket through a
/// volume still differ, and then use TCP. Empty where the kernel does not tell: no peer is on this host.
#[must_use]
pub fn host_id() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let inode = |namespace| fs::metadata(namespace).map(|meta| meta.ino());
    match (
        boot,
        inode("/proc/self/ns/mnt"),
        inode("/proc/self/ns/user"),
    ) {
        (Ok(boot), Ok(mounts), Ok(users)) => {
            let boot: String = boot.chars().filter(char::is_ascii_hexdigit).collect();
            let mut id = format!("{boot}-{mounts:x}-{users:x}");
            id.truncate(MAX_HOST_ID);
            id
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_has_one_host() {
        let id = host_id();
        assert_eq!(id, host_id());
        assert!(id.len() > 32 && id.len() <= MAX_HOST_ID, "{id}");
    }
}
