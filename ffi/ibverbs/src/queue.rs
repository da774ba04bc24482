//! Completion queues: where the device says what is over.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::AsFd,
    ptr::{NonNull, null_mut},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use kvferry_rdma_sys::{ibv_cq, ibv_wc, poll_cq, req_notify_cq};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{CompletionChannel, Context, WorkError, WorkStatus, chain::Keep, lock, sender::Sender};

/// Completions taken from the device in one call.
const BATCH: usize = 64;

/// Calls in one poll: a full device must not keep its poller from everything else.
const BATCHES_AT_ONCE: usize = 4;

/// A READ that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// Of the queue pair it was posted to.
    pub qp_num: u32,
    /// What it was posted with.
    pub token: u64,
    /// `Ok`: every byte is there. Whatever it is, the memory is free again, but for
    /// [`WorkError::Unsettled`].
    pub result: Result<(), WorkError>,
}

/// A completion queue could not be made.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// More than the device can do.
    #[error(
        "{device}: a completion queue holds at most {most} completions, {asked} were asked for"
    )]
    TooLarge {
        /// The device.
        device: String,
        /// As asked for.
        asked: u32,
        /// What it can do.
        most: u32,
    },
    /// A channel of another device.
    #[error("the completion channel belongs to another device")]
    ForeignChannel,
    /// Anything else.
    #[error("{device}: cannot create a completion queue: {source}")]
    Failed {
        /// The device.
        device: String,
        /// What the driver said.
        source: io::Error,
    },
}

/// A completion queue does not answer: the device is gone.
#[derive(Debug, thiserror::Error)]
#[error("{device}: cannot {what}: {source}")]
pub struct PollError {
    /// The device.
    pub device: String,
    /// What was tried.
    pub what: &'static str,
    /// What the driver said.
    pub source: io::Error,
}

/// Where the queue pairs attached to it report what is over. Any thread may poll.
pub struct CompletionQueue {
    raw: NonNull<ibv_cq>,
    context: Arc<Context>,
    channel: Option<Arc<CompletionChannel>>,
    capacity: u32,
    state: Mutex<State>,
}

struct State {
    /// By the high half of their requests' numbers.
    senders: HashMap<u32, Arc<Sender>>,
    /// Completions the attached queue pairs can have at a time. Never more than there is room for: an
    /// overrun queue kills all of them.
    reserved: u32,
    /// Taken from the device by somebody who waited for something else.
    set_aside: VecDeque<Finished>,
    batch: [ibv_wc; BATCH],
}

// SAFETY: libibverbs' calls on a queue may come from any thread, and `state` is behind a lock.
unsafe impl Send for CompletionQueue {}
// SAFETY: as above.
unsafe impl Sync for CompletionQueue {}

impl CompletionQueue {
    /// One with room for `capacity` completions: the depths of the queue pairs that will be attached,
    /// together. With a channel it can be waited for.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn new(
        context: &Arc<Context>,
        capacity: u32,
        channel: Option<&Arc<CompletionChannel>>,
    ) -> Result<Arc<Self>, QueueError> {
        let most = context.attributes().max_completions;
        if capacity == 0 || capacity > most {
            return Err(QueueError::TooLarge {
                device: context.name().into(),
                asked: capacity,
                most,
            });
        }
        if channel.is_some_and(|channel| !Arc::ptr_eq(channel.context(), context)) {
            return Err(QueueError::ForeignChannel);
        }
        // SAFETY: context and channel are alive; vector 0 is the one every device has.
        let raw = unsafe {
            context.verbs.ibv_create_cq(
                context.raw(),
                capacity.cast_signed(),
                null_mut(),
                channel.map_or(null_mut(), |channel| channel.raw()),
                0,
            )
        };
        let raw = NonNull::new(raw).ok_or_else(|| QueueError::Failed {
            device: context.name().into(),
            source: io::Error::last_os_error(),
        })?;
        Ok(Arc::new(Self {
            raw,
            context: Arc::clone(context),
            channel: channel.map(Arc::clone),
            capacity,
            state: Mutex::new(State {
                senders: HashMap::new(),
                reserved: 0,
                set_aside: VecDeque::new(),
                batch: [ibv_wc::default(); BATCH],
            }),
        }))
    }

    /// Its device.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Its channel.
    #[must_use]
    pub fn channel(&self) -> Option<&Arc<CompletionChannel>> {
        self.channel.as_ref()
    }

    /// Adds what is over to `into`, without waiting. Gives how many were added.
    ///
    /// # Errors
    /// [`PollError`].
    pub fn poll(&self, into: &mut Vec<Finished>) -> Result<usize, PollError> {
        let before = into.len();
        let mut spent = Vec::new();
        let mut state = lock(&self.state);
        into.extend(state.set_aside.drain(..));
        let result = self.take(&mut state, &mut spent, |finished| into.push(finished));
        drop(state);
        drop(spent); // without the lock: this may deregister memory
        result.map(|()| into.len() - before)
    }

    /// Asks the channel to tell of the next completion. Poll once more afterwards: what arrived before is not told.
    ///
    /// # Errors
    /// [`PollError`].
    pub fn arm(&self) -> Result<(), PollError> {
        // SAFETY: the queue is alive.
        unsafe { req_notify_cq(self.raw.as_ptr()) }
            .map_err(|source| self.failed("ask for completion events", source))
    }

    /// As [`CompletionQueue::poll`], waiting up to `timeout` for the first. 0 is a timeout. Needs a channel,
    /// and nobody else who waits on it.
    ///
    /// # Errors
    /// [`PollError`].
    pub fn wait(&self, into: &mut Vec<Finished>, timeout: Duration) -> Result<usize, PollError> {
        // None: so far off that it is never.
        let deadline = Instant::now().checked_add(timeout);
        let waiting = |source| self.failed("wait for completions", source);
        let Some(channel) = &self.channel else {
            return Err(waiting(io::ErrorKind::Unsupported.into()));
        };
        loop {
            let polled = self.poll(into)?;
            if polled > 0 {
                return Ok(polled);
            }
            self.arm()?;
            let polled = self.poll(into)?;
            if polled > 0 {
                return Ok(polled);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(0);
            }
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN)];
            match poll(&mut fds, left.as_ref()) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(waiting(error.into())),
            }
            channel.take_events().map_err(waiting)?;
        }
    }

    /// Completions there is room for beyond those of the queue pairs attached.
    #[must_use]
    pub fn room(&self) -> u32 {
        self.capacity - lock(&self.state).reserved
    }

    /// Makes room for the completions of a queue pair. False where there is none.
    pub(crate) fn reserve(&self, completions: u32) -> bool {
        let mut state = lock(&self.state);
        match state.reserved.checked_add(completions) {
            Some(all) if all <= self.capacity => {
                state.reserved = all;
                true
            }
            _ => false,
        }
    }

    pub(crate) fn unreserve(&self, completions: u32) {
        let mut state = lock(&self.state);
        state.reserved = state.reserved.saturating_sub(completions);
    }

    pub(crate) fn attach(&self, sender: &Arc<Sender>) {
        lock(&self.state)
            .senders
            .insert(sender.serial(), Arc::clone(sender));
    }

    /// After the queue pair was destroyed: what is left of it is reported as unsettled and never freed.
    pub(crate) fn detach(&self, sender: &Sender, completions: u32) {
        let mut state = lock(&self.state);
        state.reserved = state.reserved.saturating_sub(completions);
        state.senders.remove(&sender.serial());
        sender.abandon(|finished| state.set_aside.push_back(finished));
    }

    /// Takes what the device has, and sets it aside for the next who polls.
    pub(crate) fn set_aside(&self) -> Result<(), PollError> {
        let (mut spent, mut taken) = (Vec::new(), Vec::new());
        let mut state = lock(&self.state);
        let result = self.take(&mut state, &mut spent, |finished| taken.push(finished));
        state.set_aside.extend(taken);
        drop(state);
        drop(spent); // without the lock: this may deregister memory
        result
    }

    fn take(
        &self,
        state: &mut State,
        spent: &mut Vec<Keep>,
        mut report: impl FnMut(Finished),
    ) -> Result<(), PollError> {
        let State { senders, batch, .. } = state;
        for _ in 0..BATCHES_AT_ONCE {
            // SAFETY: the queue is alive.
            let taken = unsafe { poll_cq(self.raw.as_ptr(), batch) }
                .map_err(|source| self.failed("poll the completion queue", source))?;
            for completion in batch.iter().take(taken) {
                // Nothing but these fields means anything when the status is an error.
                let (number, status) = (completion.wr_id, completion.status);
                let (serial, number) = ((number >> 32) as u32, number as u32);
                if let Some(sender) = senders.get(&serial) {
                    sender.finish(number, WorkStatus::from_raw(status), spent, &mut report);
                }
            }
            if taken < BATCH {
                break;
            }
        }
        Ok(())
    }

    fn failed(&self, what: &'static str, source: io::Error) -> PollError {
        PollError {
            device: self.context.name().into(),
            what,
            source,
        }
    }

    pub(crate) fn raw(&self) -> *mut ibv_cq {
        self.raw.as_ptr()
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: every queue pair on it held an `Arc` of it, so none is left. Events are acknowledged as
        // they are taken, so this does not wait.
        let result = unsafe { self.context.verbs.ibv_destroy_cq(self.raw.as_ptr()) };
        if result != 0 {
            // It lives on in the driver, and so must what it was made from.
            crate::leak::keep_for_ever(self.channel.clone());
            crate::leak::keep_for_ever(Arc::clone(&self.context));
        }
    }
}

impl std::fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "CompletionQueue({}, {})",
            self.context.name(),
            self.capacity
        )
    }
}

/// Numbers queue pairs for the life of the program, so that a completion that comes late never meets another.
pub(crate) fn next_serial() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
