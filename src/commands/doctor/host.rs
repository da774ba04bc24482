//! The host: locked memory, huge pages, the GPU driver's library.

use std::fs;

use kvferry_ibverbs::MemlockLimit;

use super::{Finding, State};
use crate::size::ByteSize;

/// Below this a pool of usual size cannot be registered.
const ENOUGH_MEMLOCK: u64 = 64 << 30;
/// Where the loader's cache lists libraries.
const LOADER_CACHE: &str = "/etc/ld.so.cache";

pub(super) fn look() -> Vec<Finding> {
    vec![memlock(), hugepages(), cuda()]
}

fn memlock() -> Finding {
    let limit = MemlockLimit::now();
    let what = "locked memory (RLIMIT_MEMLOCK)";
    match limit.current_bytes {
        None => Finding::ok(what, "unlimited"),
        Some(bytes) if bytes >= ENOUGH_MEMLOCK => Finding::ok(what, ByteSize(bytes).to_string()),
        Some(bytes) => Finding::new(
            what,
            State::Note,
            format!(
                "{} for everything that is registered with RDMA devices (root is not held to it)",
                ByteSize(bytes)
            ),
            "set it to unlimited: LimitMEMLOCK=infinity in a systemd unit, --ulimit memlock=-1 for a container, `memlock unlimited` in /etc/security/limits.conf",
        ),
    }
}

fn hugepages() -> Finding {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let what = "huge pages";
    match (
        field(&meminfo, "HugePages_Total:"),
        field(&meminfo, "HugePages_Free:"),
    ) {
        (Some(total), Some(free)) if total > 0 => {
            Finding::ok(what, format!("{free} of {total} free"))
        }
        _ => Finding::new(
            what,
            State::Note,
            "none reserved",
            "they make registering large pools and reading them faster: sysctl vm.nr_hugepages=N (2 MiB each), then hugepages = true",
        ),
    }
}

fn field(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn cuda() -> Finding {
    // Loading it would start its threads: the loader's cache says as much.
    let cache = fs::read(LOADER_CACHE).unwrap_or_default();
    let name = b"libcuda.so.1\0";
    match cache.windows(name.len()).any(|window| window == name) {
        true => Finding::ok("libcuda", "installed"),
        false => Finding::new(
            "libcuda",
            State::Note,
            "not installed",
            "only for GPU memory: install NVIDIA's driver, or start the container with --gpus",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_counts_are_read() {
        let text = "MemTotal: 5 kB\nHugePages_Total:      12\nHugePages_Free:        7\n";
        assert_eq!(field(text, "HugePages_Total:"), Some(12));
        assert_eq!(field(text, "HugePages_Free:"), Some(7));
        assert_eq!(field(text, "HugePages_Rsvd:"), None);
    }

    #[test]
    fn everything_is_looked_at_on_any_machine() {
        assert_eq!(look().len(), 3);
    }
}
