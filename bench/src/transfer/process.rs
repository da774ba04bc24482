//! Processor time: ours by process, and what everybody else took of the machine.

use std::{
    fs,
    thread::available_parallelism,
    time::{Duration, Instant},
};

/// Clock ticks a second in /proc, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time a process has used, in seconds; zero when it is gone.
#[must_use]
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in brackets may hold anything, brackets too.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

/// Runnable processes, averaged over a minute by the kernel.
#[must_use]
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split_whitespace().next();
    first.and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// Seconds all processors were busy since boot, whoever kept them so.
fn busy_seconds() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let fields: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .map(|field| field.parse().unwrap_or(0.0))
        .collect();
    // All but idle and iowait; guests are counted in user time already.
    let busy = fields.iter().take(8).sum::<f64>()
        - fields.get(3).unwrap_or(&0.0)
        - fields.get(4).unwrap_or(&0.0);
    busy / TICKS_PER_SECOND
}

/// Between two looks at what others do.
const LOOK: Duration = Duration::from_millis(100);

/// Waits until others take at most this share of the machine; ours must be idle meanwhile. Gives what is
/// left of the patience.
pub(super) async fn wait_for_quiet(most: f64, mut patience: Duration) -> Duration {
    while patience > LOOK {
        let others = Others::begin(&[]);
        tokio::time::sleep(LOOK).await;
        if others.share() <= most {
            break;
        }
        patience -= LOOK;
    }
    patience
}

/// Measures which share of the machine went to processes that are none of ours.
pub(super) struct Others<'a> {
    ours: &'a [u32],
    began: Instant,
    busy: f64,
    used: f64,
}

impl<'a> Others<'a> {
    pub(super) fn begin(ours: &'a [u32]) -> Self {
        Self {
            ours,
            began: Instant::now(),
            busy: busy_seconds(),
            used: ours.iter().map(|pid| cpu_seconds(*pid)).sum(),
        }
    }

    /// 0 to 1, of all cores.
    pub(super) fn share(&self) -> f64 {
        let cores = available_parallelism().map_or(1, usize::from) as f64;
        let used: f64 = self.ours.iter().map(|pid| cpu_seconds(*pid)).sum();
        let others = (busy_seconds() - self.busy) - (used - self.used);
        (others / (self.began.elapsed().as_secs_f64() * cores)).clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_seen() {
        let pid = std::process::id();
        let (before, began) = (cpu_seconds(pid), Instant::now());
        let mut sum = 0u64;
        while began.elapsed().as_millis() < 200 {
            sum = sum.wrapping_mul(31).wrapping_add(1);
        }
        assert!(cpu_seconds(pid) > before || sum == 1);
        assert_eq!(cpu_seconds(0), 0.0);
        assert!(busy_seconds() > 0.0 && load() >= 0.0);
    }
}
