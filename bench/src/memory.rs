//! What a process holds.

use std::fs;

/// Resident memory of this process in bytes; 0 where the system doesn't say.
#[must_use]
pub fn resident_bytes() -> u64 {
    resident_bytes_of(std::process::id())
}

/// Resident memory of a process in bytes; 0 where there is none, or the system doesn't say.
#[must_use]
pub fn resident_bytes_of(pid: u32) -> u64 {
    let line = |text: String| {
        text.lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
    };
    let kib = fs::read_to_string(format!("/proc/{pid}/status"))
        .ok()
        .and_then(line);
    kib.unwrap_or(0) * 1024
}
