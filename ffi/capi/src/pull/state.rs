//! A pull's state: what the task in the runtime tells, and what the caller's threads ask.

use std::{
    ffi::{CStr, CString, c_void},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::Arc,
    thread::ThreadId,
    time::{Duration, Instant},
};

use kvferry_client::{Cause, Failure, PullSink, Unanswered};
use kvferry_proto::pb;
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::event::{EventfdFlags, eventfd};
use tokio_util::sync::CancellationToken;

use super::{
    callbacks::{Permit, Queue},
    kvf_pull,
    words::{kvf_outcome, kvf_outcome_kind, kvf_pull_callback, kvf_pull_summary},
};

/// Whom to call, and how far that is.
pub(super) struct Callback {
    pub(super) function: kvf_pull_callback,
    pub(super) user: *mut c_void,
    pub(super) handle: *mut kvf_pull,
}

// SAFETY: the pointers are only handed back to C, from the callback thread; the header says that the callback is
// called from there, so `user` is meant for it.
unsafe impl Send for Callback {}

/// How far the callback is.
#[derive(Default)]
struct Calling {
    queued: bool,
    /// The thread that is in the callback now.
    running: Option<ThreadId>,
    /// The call with done = 1 was made.
    last: bool,
}

struct Stored {
    index: u32,
    kind: kvf_outcome_kind,
    region: u32,
    slot: u32,
    generation: u64,
    settled: bool,
    source_node: Arc<CStr>,
    transport: Arc<CStr>,
    detail: Arc<CStr>,
}

impl Stored {
    fn to_c(&self) -> kvf_outcome {
        kvf_outcome {
            index: self.index,
            kind: self.kind,
            region: self.region,
            slot: self.slot,
            generation: self.generation,
            settled: self.settled,
            source_node: self.source_node.as_ptr(),
            transport: self.transport.as_ptr(),
            detail: self.detail.as_ptr(),
        }
    }
}

struct Inner {
    /// In the order they came; kept until the pull is freed, because their texts are lent out.
    outcomes: Vec<Stored>,
    /// Per hash: it has its outcome.
    answered: Vec<bool>,
    /// How many of the outcomes the caller has been given.
    told: usize,
    /// The caller has been told that there are no more.
    told_end: bool,
    /// How many stages have landed of every block without an outcome, and how many the caller knows of.
    stages: u32,
    told_stages: u32,
    end: Option<Result<pb::PullSummary, Failure>>,
    /// Few texts occur often.
    texts: Vec<Arc<CStr>>,
    event: Option<OwnedFd>,
    callback: Callback,
    calling: Calling,
    freed: bool,
}

/// A pull's state, shared between its task and its handle.
pub(crate) struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
    pub(super) cancel: CancellationToken,
    queue: Queue,
    _permit: Permit,
}

/// Most different texts that are looked for among those already there; owners of one pull are fewer.
const TEXTS: usize = 32;

impl Shared {
    pub(super) fn new(blocks: usize, callback: Callback, queue: Queue, permit: Permit) -> Self {
        Self {
            inner: Mutex::new(Inner {
                outcomes: Vec::with_capacity(blocks),
                answered: vec![false; blocks],
                told: 0,
                told_end: false,
                stages: 0,
                told_stages: 0,
                end: None,
                texts: Vec::new(),
                event: None,
                callback,
                calling: Calling::default(),
                freed: false,
            }),
            changed: Condvar::new(),
            cancel: CancellationToken::new(),
            queue,
            _permit: permit,
        }
    }

    /// Where the callback's first argument is known.
    pub(super) fn set_handle(&self, handle: *mut kvf_pull) {
        self.inner.lock().callback.handle = handle;
    }

    /// Wakes everybody who waits for this pull.
    fn announce(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>) {
        inner.set_event();
        let wanted = inner.callback.function.is_some() && !inner.freed;
        let call = wanted && !inner.calling.last && !inner.calling.queued;
        inner.calling.queued |= call;
        drop(inner);
        self.changed.notify_all();
        if call {
            self.queue.push(Arc::clone(self));
        }
    }

    /// Makes the callback's next call, on the callback thread.
    pub(super) fn call_back(&self) {
        let mut inner = self.inner.lock();
        inner.calling.queued = false;
        let done = inner.end.is_some();
        let Some(function) = inner.callback.function else {
            return;
        };
        if inner.freed || inner.calling.last {
            return;
        }
        inner.calling.last = done;
        inner.calling.running = Some(std::thread::current().id());
        let (handle, user) = (inner.callback.handle, inner.callback.user);
        drop(inner);
        // SAFETY: the function is the caller's, given for this; the handle is not freed, or is freed by this very
        // call, because `free` waits while a callback runs elsewhere.
        unsafe { function(handle, i32::from(done), user) };
        self.inner.lock().calling.running = None;
        self.changed.notify_all();
    }

    /// No callback is called after this, and none is running, unless it is the one that calls this.
    pub(super) fn free(&self) {
        let me = std::thread::current().id();
        // Before the pull is given up: its end is nobody's news any more.
        self.inner.lock().freed = true;
        self.cancel.cancel();
        let mut inner = self.inner.lock();
        while inner.calling.running.is_some_and(|thread| thread != me) {
            self.changed.wait(&mut inner);
        }
    }

    /// At most `room` outcomes that were not given before, and whether there will be no more.
    pub(super) fn poll(&self, room: usize) -> (Vec<kvf_outcome>, bool) {
        let mut inner = self.inner.lock();
        let upto = inner.outcomes.len().min(inner.told.saturating_add(room));
        let fresh = inner.outcomes.get(inner.told..upto).unwrap_or_default();
        let fresh = fresh.iter().map(Stored::to_c).collect();
        inner.told = upto;
        let done = inner.end.is_some() && inner.told == inner.outcomes.len();
        inner.told_end |= done;
        inner.set_event();
        (fresh, done)
    }

    /// Waits until the pull has ended.
    pub(super) fn wait(&self, patience: Duration) -> Result<pb::PullSummary, Failure> {
        self.until(patience, |inner| inner.end.clone())
    }

    /// Waits until so many stages have landed or the pull has ended.
    pub(super) fn wait_stages(&self, stages: u32, patience: Duration) -> Result<(), Failure> {
        self.until(patience, |inner| {
            if inner.stages >= stages {
                inner.tell_stages();
                return Some(Ok(()));
            }
            let end = inner.end.as_ref()?;
            Some(end.as_ref().map(|_| ()).map_err(Failure::clone))
        })
    }

    /// How many stages have landed.
    pub(super) fn stages_landed(&self) -> u32 {
        self.inner.lock().tell_stages()
    }

    /// Waits for what `is` looks for.
    fn until<T>(
        &self,
        patience: Duration,
        mut is: impl FnMut(&mut Inner) -> Option<Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + patience;
        let mut inner = self.inner.lock();
        let mut late = false;
        loop {
            if let Some(said) = is(&mut inner) {
                return said;
            }
            if late {
                let (done, all) = (inner.outcomes.len(), inner.answered.len());
                return Err(Failure::new(
                    Cause::NotDone,
                    format!("{done} of {all} blocks have their outcome: wait on"),
                ));
            }
            late = self.changed.wait_until(&mut inner, deadline).timed_out();
        }
    }

    /// A descriptor that can be read while `poll` has something new to say. It stays the pull's.
    pub(super) fn event(&self) -> Result<RawFd, Failure> {
        let mut inner = self.inner.lock();
        if inner.event.is_none() {
            let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(|error| Failure::system("cannot make an eventfd", error))?;
            inner.event = Some(event);
        }
        inner.set_event();
        let event = inner.event.as_ref().map(AsRawFd::as_raw_fd);
        event.ok_or_else(|| Failure::system("cannot make an eventfd", "none"))
    }

    /// As the end has it; for a pull that has ended.
    pub(super) fn summary(&self) -> Result<kvf_pull_summary, Failure> {
        let summary = self.wait(Duration::ZERO)?;
        Ok(kvf_pull_summary {
            size: size_of::<kvf_pull_summary>(),
            pulled: summary.pulled,
            bytes: summary.bytes,
            locate_us: summary.locate_us,
            connect_us: summary.connect_us,
            wire_us: summary.wire_us,
            total_us: summary.total_us,
            pin: summary.pin,
        })
    }
}

impl PullSink for Shared {
    /// Takes what the agent said. A second outcome for a block, or one for none, is not passed on.
    fn add(self: &Arc<Self>, outcomes: Vec<pb::BlockOutcome>) {
        let mut inner = self.inner.lock();
        for outcome in outcomes {
            inner.add(&outcome, outcome.kind().into());
        }
        self.announce(inner);
    }

    fn landed(self: &Arc<Self>, stages: u32) {
        let mut inner = self.inner.lock();
        inner.stages = stages;
        self.announce(inner);
    }

    /// Ends the pull: every block without an outcome gets this one. Only the first end counts.
    fn finish(
        self: &Arc<Self>,
        end: Result<pb::PullSummary, Failure>,
        rest: Unanswered,
        settled: bool,
    ) {
        let mut inner = self.inner.lock();
        if inner.end.is_some() {
            return;
        }
        let detail = end.as_ref().err().map_or_else(
            || "the agent gave no outcome for this block".to_owned(),
            |failure| failure.message.clone(),
        );
        for index in 0..inner.answered.len() as u32 {
            let outcome = pb::BlockOutcome {
                index,
                settled,
                detail: detail.clone(),
                ..pb::BlockOutcome::default()
            };
            inner.add(&outcome, rest.into());
        }
        inner.end = Some(end);
        self.announce(inner);
    }
}

impl Inner {
    fn add(&mut self, outcome: &pb::BlockOutcome, kind: kvf_outcome_kind) {
        match self.answered.get_mut(outcome.index as usize) {
            Some(answered) if !*answered => *answered = true,
            _ => return,
        }
        let source_node = self.text(&outcome.source_node);
        let transport = self.text(&outcome.transport);
        let detail = self.text(&outcome.detail);
        self.outcomes.push(Stored {
            index: outcome.index,
            kind,
            region: outcome.region,
            slot: outcome.slot,
            generation: outcome.generation,
            settled: outcome.settled,
            source_node,
            transport,
            detail,
        });
    }

    fn text(&mut self, text: &str) -> Arc<CStr> {
        let bytes = text.as_bytes();
        if let Some(known) = self.texts.iter().find(|known| known.to_bytes() == bytes) {
            return Arc::clone(known);
        }
        // A NUL within would end it for C.
        let whole = text.replace('\0', " ");
        let text: Arc<CStr> = CString::new(whole).unwrap_or_default().into();
        if self.texts.len() < TEXTS {
            self.texts.push(Arc::clone(&text));
        }
        text
    }

    /// The caller hears how many stages have landed.
    fn tell_stages(&mut self) -> u32 {
        self.told_stages = self.stages;
        self.set_event();
        self.stages
    }

    /// Brings the descriptor in line with what there is to say.
    fn set_event(&self) {
        let Some(event) = &self.event else {
            return;
        };
        let news = self.told < self.outcomes.len()
            || self.told_stages < self.stages
            || (self.end.is_some() && !self.told_end);
        // Neither can fail in a way that matters: a full counter can be read, an empty one cannot.
        let mut counter = [0; 8];
        let _ = rustix::io::read(event, &mut counter);
        if news {
            let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
        }
    }
}
