//! Looks for things that nobody announces.
//!
//! A GPU does not wake a task when a copy is done; it can be asked. Tokio's timer has a grain of a millisecond, ten
//! times what a copy takes, so a thread of its own ticks while somebody waits, and sleeps otherwise.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

/// Between two looks: a third of what a staging buffer takes over PCIe, and long enough that an agent which waits for
/// copies all the time spends a few per cent of a core on it.
const TICK: Duration = Duration::from_micros(50);
/// How long a wait lets other tasks run instead of sleeping: small copies take this long, and a sleep takes longer.
const SPIN: Duration = Duration::from_micros(40);

/// Ticks while somebody waits. Its thread ends with it.
#[derive(Debug)]
pub struct Ticker(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<oneshot::Sender<()>>,
    over: bool,
}

impl Ticker {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the kernel says where there is none to be had.
    pub fn new() -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let own = Arc::clone(&shared);
        thread::Builder::new()
            .name("kvferry-gpu".to_owned())
            .spawn(move || own.run())?;
        Ok(Self(shared))
    }

    /// Between two looks at something that is waited for since `begun`.
    pub async fn pause(&self, begun: Instant) {
        if begun.elapsed() < SPIN {
            tokio::task::yield_now().await;
        } else {
            self.tick().await;
        }
    }

    /// Completes after a moment.
    pub async fn tick(&self) {
        let (sender, ticked) = oneshot::channel();
        self.0.state.lock().waiting.push(sender);
        self.0.changed.notify_one();
        // The thread outlives this borrow, so it answers.
        let _ = ticked.await;
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let mut state = self.state.lock();
            while state.waiting.is_empty() && !state.over {
                self.changed.wait(&mut state);
            }
            if state.over {
                return;
            }
            drop(state);
            thread::sleep(TICK);
            let waiting = std::mem::take(&mut self.state.lock().waiting);
            for waiter in waiting {
                // One that went away does not want to know.
                let _ = waiter.send(());
            }
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.0.state.lock().over = true;
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_ticks_for_everybody_and_again() {
        let ticker = Ticker::new().unwrap();
        for _ in 0..3 {
            tokio::join!(ticker.tick(), ticker.tick());
        }
        assert!(ticker.0.state.lock().waiting.is_empty());
        let shared = Arc::downgrade(&ticker.0);
        drop(ticker);
        while shared.strong_count() > 0 {
            thread::sleep(TICK);
        }
    }
}
