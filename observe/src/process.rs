//! The process itself, under the names every Prometheus client uses.

use std::{fmt, fs};

use rustix::param::{clock_ticks_per_second, page_size};

use crate::Page;

/// Fields of `/proc/self/stat` behind the command's name, counted from zero: the kernel's `utime`,
/// `stime` and `starttime`, in clock ticks.
const UTIME: usize = 11;
const STIME: usize = 12;
const STARTTIME: usize = 19;

/// What could not be read is left out: a dashboard shows a gap rather than a zero.
pub(crate) fn tell(page: &mut Page<'_>) -> fmt::Result {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name may have spaces and brackets of its own.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map_or(Vec::new(), |(_, rest)| rest.split_whitespace().collect());
    let seconds = |place: usize| {
        let ticks: f64 = fields.get(place)?.parse().ok()?;
        Some(ticks / clock_ticks_per_second() as f64)
    };
    if let (Some(user), Some(system)) = (seconds(UTIME), seconds(STIME)) {
        page.counter_f64(
            "process_cpu_seconds_total",
            "Processor time of all threads. Its rate is the number of cores kept busy",
            user + system,
        )?;
    }
    if let (Some(booted), Some(started)) = (boot_time(), seconds(STARTTIME)) {
        page.gauge_f64(
            "process_start_time_seconds",
            "When the process started, in seconds since 1970. A change is a restart",
            booted + started,
        )?;
    }
    let resident = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let resident = resident.split_whitespace().nth(1);
    if let Some(pages) = resident.and_then(|pages| pages.parse::<u64>().ok()) {
        page.gauge(
            "process_resident_memory_bytes",
            "Memory of the process that is in RAM; an agent's pools are part of it once they were written to",
            pages.saturating_mul(page_size() as u64),
        )?;
    }
    Ok(())
}

fn boot_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}
