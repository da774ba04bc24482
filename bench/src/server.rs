//! A coordinator on threads of its own, in this process: it shares the machine with its clients,
//! and its memory can be told from theirs, who hold nothing.

use std::{net::SocketAddr, thread};

use kvferry_coordinator::{Coordinator, CoordinatorConfig, MetricsListen};
use tokio::sync::oneshot;

use crate::BenchError;

/// A coordinator that runs until it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Starts one on a free port of loopback.
    ///
    /// # Errors
    /// [`BenchError`] when no port or thread can be had.
    pub fn start(threads: usize, max_slots: u64) -> Result<Self, BenchError> {
        let config = CoordinatorConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            listen_metrics: MetricsListen::Off,
            // Agents of a benchmark send no heartbeats while they are not measured.
            hide_after_ms: 600_000,
            purge_after_ms: 86_400_000,
            max_slots,
            ..CoordinatorConfig::default()
        };
        let coordinator = Coordinator::bind(&config)?;
        let address = coordinator.local_addr();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("coordinator")
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let served = runtime.block_on(coordinator.serve(async {
                stopped.await.ok();
            }));
            if let Err(error) = served {
                eprintln!("the coordinator failed: {error}");
            }
        });
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.send(()).ok();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
