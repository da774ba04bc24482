//! Copies that a GPU is at.

use std::{
    fmt,
    mem::ManuallyDrop,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{CopyError, GpuMemory, PinnedRange, Stream, event::Event};

/// Host bytes of copies that a GPU never ended.
static LOST_BYTES: AtomicU64 = AtomicU64::new(0);

/// How long a wait looks without sleeping: small copies take this long, and going to sleep as long again.
const SPIN: Duration = Duration::from_micros(20);
/// How long it sleeps between looks: a fraction of what a staging buffer's copy takes.
pub(crate) const NAP: Duration = Duration::from_micros(50);

/// Bytes of pinned host memory that this process will never free, because a GPU did not say that it is done with
/// them. More than zero is a reason to look at the GPU.
#[must_use]
pub fn lost_bytes() -> u64 {
    LOST_BYTES.load(Ordering::Relaxed)
}

/// What a copy uses. Dropped before the copy is done, it is lost: never freed, so that the GPU writes to nobody else's memory.
pub(crate) struct InFlight {
    parts: ManuallyDrop<Parts>,
    /// There is no mark in the stream to look at.
    endless: bool,
}

struct Parts {
    event: Event,
    host: PinnedRange,
    _gpu: Arc<GpuMemory>,
}

impl InFlight {
    /// The event was recorded after the copy.
    pub(crate) fn new(event: Event, gpu: Arc<GpuMemory>, host: PinnedRange) -> Self {
        Self {
            parts: ManuallyDrop::new(Parts {
                event,
                host,
                _gpu: gpu,
            }),
            endless: false,
        }
    }

    /// The event was not recorded: when the copy ends cannot be known.
    pub(crate) fn never_ends(&mut self) {
        self.endless = true;
    }

    pub(crate) fn is_done(&self) -> Result<bool, CopyError> {
        if self.endless {
            return Ok(false);
        }
        Ok(self.parts.event.is_done()?)
    }

    /// Is it done for certain?
    pub(crate) fn is_over(&self) -> bool {
        self.is_done().unwrap_or(false)
    }

    /// Gives the host's side back where the copy is done.
    fn into_host(self) -> Result<PinnedRange, Self> {
        if !self.is_over() {
            return Err(self);
        }
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is never dropped, so the parts are taken out once.
        let parts = unsafe { ManuallyDrop::take(&mut this.parts) };
        Ok(parts.host)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.is_over() {
            // SAFETY: dropped once, here, and not looked at afterwards.
            unsafe { ManuallyDrop::drop(&mut self.parts) };
        } else {
            LOST_BYTES.fetch_add(self.parts.host.len(), Ordering::Relaxed);
        }
    }
}

/// A copy under way, and both its sides. Dropped, it goes to its stream, which frees them when the GPU is done
/// with them; until then the copy may still write.
#[must_use = "the copy is done when this says so"]
pub struct PendingCopy {
    /// Taken when it is over or dropped.
    flight: Option<InFlight>,
    stream: Arc<Stream>,
}

impl PendingCopy {
    pub(crate) fn new(flight: InFlight, stream: Arc<Stream>) -> Self {
        Self {
            flight: Some(flight),
            stream,
        }
    }

    /// Is the copy done? Does not wait.
    ///
    /// # Errors
    /// [`CopyError::GpuLost`] or [`CopyError::Failed`]: whether it was done is not known, and never will be.
    pub fn is_done(&self) -> Result<bool, CopyError> {
        self.flight.as_ref().map_or(Ok(true), InFlight::is_done)
    }

    /// Waits until the copy is done, and gives the host's side back. Blocks the thread: a copy of some MiB takes a
    /// fraction of a millisecond.
    ///
    /// # Errors
    /// [`CopyError::TimedOut`] or as [`PendingCopy::is_done`]; the copy goes to its stream as if dropped.
    pub fn wait(mut self, deadline: Instant) -> Result<PinnedRange, CopyError> {
        let spun = Instant::now() + SPIN;
        while !self.is_done()? {
            let now = Instant::now();
            if now >= deadline {
                return Err(CopyError::TimedOut);
            }
            if now < spun {
                std::hint::spin_loop();
            } else {
                std::thread::sleep(NAP.min(deadline.saturating_duration_since(now)));
            }
        }
        match self.flight.take().map(InFlight::into_host) {
            Some(Ok(host)) => Ok(host),
            Some(Err(flight)) => {
                self.flight = Some(flight);
                Err(CopyError::TimedOut)
            }
            // Only `drop` takes it away before.
            None => Err(CopyError::Invalid("the copy was waited for before")),
        }
    }
}

impl Drop for PendingCopy {
    fn drop(&mut self) {
        if let Some(flight) = self.flight.take() {
            self.stream.abandon(flight);
            self.stream.sweep();
        }
    }
}

impl fmt::Debug for PendingCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingCopy").finish_non_exhaustive()
    }
}
