//! The thread that calls back: one per agent handle, so that callbacks come one after another and may call
//! anything that waits.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use kvferry_client::{Cause, Failure};
use tokio::runtime::Runtime;

use super::state::Shared;
use crate::threads::take_no_signals;

/// Pulls that are not freed yet, of one handle: as many as the agent has under way at once.
pub const KVF_MAX_PULLS: usize = 4096;
/// What a task of the runtime does at once takes far less.
const SHUTDOWN: Duration = Duration::from_secs(2);

enum Job {
    CallBack(Arc<Shared>),
    /// End the runtime, make the calls that this leads to, and end.
    Close(Runtime),
}

/// Where pulls ask to be called back.
#[derive(Clone)]
pub(crate) struct Queue(SyncSender<Job>);

impl Queue {
    pub(super) fn push(&self, pull: Arc<Shared>) {
        // Never full: a pull is in it once at most, and there is room for all that exist. Closed: `kvf_close`
        // has made every last call before.
        let _ = self.0.try_send(Job::CallBack(pull));
    }
}

/// A pull's place among those that exist.
pub(crate) struct Permit(Arc<AtomicUsize>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The pulls of one handle.
pub(crate) struct Pulls {
    queue: Queue,
    existing: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Pulls {
    pub(crate) fn start() -> io::Result<Self> {
        let (sender, receiver) = sync_channel(KVF_MAX_PULLS + 1);
        let thread = thread::Builder::new()
            .name("kvferry-call".to_owned())
            .spawn(move || {
                take_no_signals();
                serve(&receiver);
            })?;
        Ok(Self {
            queue: Queue(sender),
            existing: Arc::default(),
            thread,
        })
    }

    pub(crate) fn is_this_thread(&self) -> bool {
        self.thread.thread().id() == thread::current().id()
    }

    pub(super) fn queue(&self) -> Queue {
        self.queue.clone()
    }

    pub(super) fn permit(&self) -> Result<Permit, Failure> {
        let permit = Permit(Arc::clone(&self.existing));
        if self.existing.fetch_add(1, Ordering::AcqRel) >= KVF_MAX_PULLS {
            return Err(Failure::new(
                Cause::BoundReached,
                format!("{KVF_MAX_PULLS} pulls are not freed yet, as many as may be: free some"),
            ));
        }
        Ok(permit)
    }

    /// Ends all pulls, and waits until their last callbacks have returned.
    pub(crate) fn close(self, runtime: Runtime) {
        match self.queue.0.try_send(Job::Close(runtime)) {
            Ok(()) => {}
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => {
                if let Job::Close(runtime) = job {
                    runtime.shutdown_background();
                }
            }
        }
        // The thread does not panic; if it did, there is nothing left to wait for.
        let _ = self.thread.join();
    }
}

fn serve(jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        match job {
            Job::CallBack(pull) => pull.call_back(),
            Job::Close(runtime) => {
                // Here, because this thread is in no runtime of the host's. What is dropped ends its pull.
                runtime.shutdown_timeout(SHUTDOWN);
                while let Ok(Job::CallBack(pull)) = jobs.try_recv() {
                    pull.call_back();
                }
                return;
            }
        }
    }
}
