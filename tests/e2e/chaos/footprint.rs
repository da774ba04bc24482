//! What a process holds of the system's: to see that a fault has left nothing behind.

use std::{fs, time::Duration};

use tokio::time::{Instant, sleep};

/// Connections and pooled threads end within seconds; nothing that is over keeps its descriptors for longer, on any machine.
const GIVEN_BACK: Duration = Duration::from_secs(90);
/// Descriptors that come and go with work that has nothing to do with the fault: a connection that is renewed.
const SLACK: usize = 12;

/// Descriptors and threads of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Footprint {
    pid: u32,
    descriptors: usize,
    threads: usize,
}

impl Footprint {
    pub(crate) fn of(pid: u32) -> Self {
        let count = |what: &str| {
            fs::read_dir(format!("/proc/{pid}/{what}"))
                .expect("the process lives")
                .count()
        };
        Self {
            pid,
            descriptors: count("fd"),
            threads: count("task"),
        }
    }

    /// Waits until the process holds as much as it did then.
    pub(crate) async fn is_back(&self) {
        let deadline = Instant::now() + GIVEN_BACK;
        loop {
            let now = Self::of(self.pid);
            // Blocking calls have threads that wait for more of them; their number is the runtime's, and bounded.
            if now.descriptors <= self.descriptors + SLACK && now.threads <= self.threads + 64 {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "left over: {now:?}, was {self:?}"
            );
            sleep(Duration::from_millis(100)).await;
        }
    }
}
