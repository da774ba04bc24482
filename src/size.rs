//! Numbers of bytes and speeds, as people read them.

use std::time::Duration;

pub(crate) use kvferry_agent::config::ByteSize;

/// Bytes in a second, in 10^9.
pub(crate) fn gb_per_s(bytes: u64, took: Duration) -> f64 {
    match took.as_secs_f64() {
        0.0 => 0.0,
        seconds => bytes as f64 / seconds / 1e9,
    }
}

/// A duration in the unit that fits it.
pub(crate) fn duration(took: Duration) -> String {
    let micros = took.as_micros();
    match micros {
        0..10_000 => format!("{micros} us"),
        10_000..1_000_000 => format!("{} ms", micros / 1_000),
        _ => format!("{:.2} s", took.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_and_durations_read_well() {
        assert_eq!(gb_per_s(3_000_000_000, Duration::from_secs(2)), 1.5);
        assert_eq!(gb_per_s(1, Duration::ZERO), 0.0);
        assert_eq!(duration(Duration::from_micros(950)), "950 us");
        assert_eq!(duration(Duration::from_millis(25)), "25 ms");
        assert_eq!(duration(Duration::from_secs(12)), "12.00 s");
    }
}
