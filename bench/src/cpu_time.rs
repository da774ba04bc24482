//! Time a thread had on a core.

use std::time::Duration;

/// Time this thread had on a core: on a machine that others use, too, the time that passes says
/// more of them than of us. Zero where the system doesn't say.
#[must_use]
pub fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split_whitespace().next().and_then(|n| n.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}
