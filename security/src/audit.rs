//! Who was refused what, and who did what only few may do. To the log, under the target `audit`.

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Lines of refusals in a second: somebody who tries all day must not fill the disk. How many were left
/// out is told with the next.
const LINES_PER_SECOND: u32 = 50;

static BUDGET: Mutex<Budget> = Mutex::new(Budget {
    since: None,
    lines: 0,
    left_out: 0,
});

struct Budget {
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Budget {
    /// How many lines were left out before this one; None where this one is, too.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let over = |since: Instant| now.saturating_duration_since(since) >= Duration::from_secs(1);
        if self.since.is_none_or(over) {
            self.since = Some(now);
            self.lines = 0;
        }
        if self.lines >= LINES_PER_SECOND {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// Somebody was refused.
pub(crate) fn denied(who: &str, what: &str, from: Option<SocketAddr>, why: &dyn fmt::Display) {
    let Some(left_out) = BUDGET.lock().take(Instant::now()) else {
        return;
    };
    let from = from.map_or_else(|| "unknown".to_owned(), |from| from.to_string());
    tracing::warn!(target: "audit", outcome = "denied", who, what, from, left_out, "{why}");
}

/// Somebody did what an operator wants to know of later.
pub(crate) fn done(who: &str, what: &str, on: &str, from: Option<SocketAddr>) {
    let from = from.map_or_else(|| "unknown".to_owned(), |from| from.to_string());
    tracing::info!(target: "audit", outcome = "allowed", who, what, on, from, "allowed");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_counted() {
        let mut budget = Budget {
            since: None,
            lines: 0,
            left_out: 0,
        };
        let start = Instant::now();
        let told = (0..70).filter_map(|_| budget.take(start)).count();
        assert_eq!(told, LINES_PER_SECOND as usize);
        assert_eq!(budget.take(start + Duration::from_secs(1)), Some(20));
        assert_eq!(budget.take(start + Duration::from_secs(1)), Some(0));
    }
}
