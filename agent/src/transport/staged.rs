//! Reads into memory of any kind, over any link.
//!
//! Links write to host memory, and few straight to a GPU's ([`Link::read_gpu`]). Where one does not, a read into a GPU is cut
//! into reads of a staging buffer each; while the link fills one, others are copied on to the GPU:
//!
//! ```text
//!   owner ── link.read ──> pinned buffer ── cuMemcpyHtoDAsync ──> GPU
//!   owner ── link.read ──> pinned buffer                                  ...while the next one arrives
//! ```
//!
//! The contract of [`Link::read`] holds for the whole: it resolves when the link has settled every part *and* the GPU
//! has said of every copy that was started that it is done (`cuEventQuery` of an event recorded behind it in the same
//! stream). Where the GPU cannot say so any more (it is lost, with copies under way), the read never resolves, and its
//! spans stay its own: better a slot that nobody uses than one that two use.

use std::{collections::VecDeque, future::poll_fn, pin::Pin, sync::Arc, task::Poll, time::Instant};

use kvferry_cuda::{CopyError, Fill, Inbound, StagingError};
use kvferry_proto::RemoteSpan;
use tokio::time::{Duration, sleep};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::{
    BoxFuture, GpuRead, GpuRequest, GpuSpans, Link, LocalSpans, PendingRead, ReadError, ReadRequest,
};
use crate::{
    gpu::{Gpu, StagedWay, keep_for_ever},
    transfer::PlannedRead,
};

/// Parts of one read under way at a time: one arrives while another is copied, and one more hides how unevenly they
/// come. Few, so that an owner that stands still cannot hold the ring.
const PARTS_AHEAD: usize = 3;
/// Longest that a read waits for its first staging buffer while others hold them all: well over the pull engine's own
/// bounds, which cancel it before.
const BUFFER_BOUND: Duration = Duration::from_secs(30);
/// A GPU that is not done with a megabyte by then hangs: it is looked at less often, so that waiting costs nothing.
const HANGING: Duration = Duration::from_millis(200);

/// Starts a read; see the contract of the [module above](super). Must be called on a tokio runtime.
pub fn read(link: &Arc<dyn Link>, request: PlannedRead) -> PendingRead {
    let Some(memory) = request.local.memory.gpu().map(Arc::clone) else {
        return match request.into_host() {
            Some(request) => link.read(request),
            // One of the two it is.
            None => PendingRead::settled(Err(ReadError::Invalid("it has no memory"))),
        };
    };
    let local = GpuSpans {
        memory,
        ranges: request.local.ranges.into_vec(),
    };
    let remote = request.remote;
    into_gpu(link, GpuRequest { remote, local })
}

/// Starts a read into a GPU: straight where the link can, else staged.
pub(super) fn into_gpu(link: &Arc<dyn Link>, request: GpuRequest) -> PendingRead {
    if let Err(error) = check(link, &request) {
        return PendingRead::settled(Err(error));
    }
    if let Some(why) = request.local.memory.gpu().context().lost_by() {
        let lost = StagingError::Copy(CopyError::GpuLost(why.clone()));
        return PendingRead::settled(Err(lost.into()));
    }
    let later = match begin(link, &request) {
        Ok(pending) => return pending,
        Err(later) => later,
    };
    let link = Arc::clone(link);
    let cancel = CancellationToken::new();
    let (pending, completion) = PendingRead::new(Arc::new(cancel.clone()));
    tokio::spawn(async move {
        tokio::select! {
            biased;
            // Nothing has begun.
            () = cancel.cancelled() => return completion.settle(Err(ReadError::Cancelled)),
            () = later => {}
        }
        let mut begun = match begin(&link, &request) {
            Ok(begun) => begun,
            // Once is enough.
            Err(_) => stage(&link, request),
        };
        // Whoever drops the link ends the read.
        drop(link);
        let result = tokio::select! {
            result = &mut begun => result,
            () = cancel.cancelled() => {
                begun.cancel();
                begun.await
            }
        };
        completion.settle(result);
    });
    pending
}

/// Starts it, or says what to wait for.
fn begin(
    link: &Arc<dyn Link>,
    request: &GpuRequest,
) -> Result<PendingRead, BoxFuture<'static, ()>> {
    match link.read_gpu(request) {
        GpuRead::Straight(pending) => {
            request.local.memory.gpu().reads().straight.inc();
            Ok(pending)
        }
        GpuRead::Staged => Ok(stage(link, request.clone())),
        GpuRead::Later(later) => Err(later),
    }
}

/// Starts a read through host memory.
fn stage(link: &Arc<dyn Link>, request: GpuRequest) -> PendingRead {
    let GpuSpans { memory, ranges } = request.local;
    memory.gpu().reads().staged.inc();
    let left = request.remote.iter().map(|span| span.len).sum();
    let staging = memory.gpu().land();
    let inbound = match staging.write(memory.device_memory(), ranges) {
        Ok(inbound) => inbound,
        Err(error) => return PendingRead::settled(Err(error.into())),
    };
    let cancel = CancellationToken::new();
    let (pending, completion) = PendingRead::new(Arc::new(cancel.clone()));
    let staged = Staged {
        link: Arc::clone(link),
        gpu: Arc::clone(memory.gpu()),
        remote: request.remote.into(),
        left,
        inbound,
        parts: VecDeque::new(),
        cancel,
    };
    tokio::spawn(async move {
        if let Some(result) = staged.run().await {
            completion.settle(result);
        } else {
            // Dropping it would say that it has settled.
            keep_for_ever(completion);
        }
    });
    pending
}

/// What [`ReadRequest::check`] asks of host memory.
fn check(link: &Arc<dyn Link>, request: &GpuRequest) -> Result<(), ReadError> {
    let bounds = link.capabilities();
    let mut bytes = Some(0_u64);
    for span in &request.remote {
        bytes = bytes.and_then(|sum| sum.checked_add(span.len));
    }
    let mut local = 0_u64;
    for range in &request.local.ranges {
        if range.start > range.end || range.end > request.local.memory.len() {
            return Err(ReadError::Invalid("a local span is outside its memory"));
        }
        local = local.saturating_add(range.end - range.start);
    }
    match bytes {
        Some(0) | None => Err(ReadError::Invalid("there is nothing to read")),
        Some(bytes) if bytes != local => Err(ReadError::Invalid(
            "remote and local spans differ in length",
        )),
        Some(bytes) if bytes > bounds.max_bytes => {
            Err(ReadError::Invalid("more bytes than one read may have"))
        }
        Some(_) if request.remote.len() > bounds.max_spans => {
            Err(ReadError::Invalid("more spans than one read may have"))
        }
        Some(_) => Ok(()),
    }
}

/// A buffer that the link may be writing to. Dropped before the link has settled, it is free never again.
struct Part {
    arriving: PendingRead,
    fill: Option<Fill>,
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(fill) = self.fill.take() {
            keep_for_ever(fill);
        }
    }
}

struct Staged {
    link: Arc<dyn Link>,
    gpu: Arc<Gpu>,
    /// What was not asked for yet.
    remote: VecDeque<RemoteSpan>,
    left: u64,
    inbound: Inbound,
    /// In the order in which they were asked for.
    parts: VecDeque<Part>,
    cancel: CancellationToken,
}

impl Staged {
    /// None where it will never settle.
    async fn run(mut self) -> Option<Result<(), ReadError>> {
        let result = self.transfer().await;
        if result.is_err() {
            self.parts.iter().for_each(|part| part.arriving.cancel());
            while let Some(part) = self.parts.front_mut() {
                // Whatever it says: it has settled.
                let _ = (&mut part.arriving).await;
                if let Some(mut part) = self.parts.pop_front() {
                    drop(part.fill.take());
                }
            }
        }
        match self.copied().await {
            Ok(()) => Some(result),
            Err(error) => {
                error!(
                    device = %self.gpu.context().device().uuid(),
                    "a read into GPU memory never settles, and only a new agent gives its slots back: {error}"
                );
                // Its buffers and its memory are kept as long as the process lives.
                keep_for_ever(self);
                None
            }
        }
    }

    /// Until every byte has arrived and every copy has been started.
    async fn transfer(&mut self) -> Result<(), ReadError> {
        let bound = Instant::now() + BUFFER_BOUND;
        loop {
            if self.cancel.is_cancelled() {
                return Err(ReadError::Cancelled);
            }
            let starved = !self.ask_for_more()?;
            if self.parts.is_empty() {
                if self.left == 0 {
                    return Ok(());
                }
                if Instant::now() >= bound {
                    let buffers = self.gpu.land().options().buffers;
                    return Err(StagingError::NoBuffer { buffers }.into());
                }
                self.gpu.ticker().tick().await;
                continue;
            }
            let cancel = self.cancel.clone();
            let gpu = Arc::clone(&self.gpu);
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(ReadError::Cancelled),
                arrived = self.arrived() => self.hand_over(arrived)?,
                // A buffer may have come free for what was not asked for yet.
                () = gpu.ticker().tick(), if starved => {}
            }
        }
    }

    /// Asks the link for as many parts as may be under way. False where no buffer was free for one.
    fn ask_for_more(&mut self) -> Result<bool, ReadError> {
        while self.left > 0 && self.parts.len() < PARTS_AHEAD {
            let fill = match self.inbound.next_buffer(Instant::now()) {
                Ok(Some(fill)) => fill,
                Ok(None) => {
                    return Err(ReadError::Invalid(
                        "remote and local spans differ in length",
                    ));
                }
                Err(StagingError::NoBuffer { .. }) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            let range = fill.range();
            let bytes = range.end - range.start;
            let request = ReadRequest {
                remote: take(&mut self.remote, bytes),
                local: LocalSpans {
                    memory: Arc::clone(fill.memory()),
                    ranges: vec![range],
                },
            };
            self.left -= bytes;
            self.parts.push_back(Part {
                arriving: self.link.read(request),
                fill: Some(fill),
            });
        }
        Ok(true)
    }

    /// The first part that has arrived, by its place.
    async fn arrived(&mut self) -> (usize, Result<(), ReadError>) {
        poll_fn(|context| {
            for (place, part) in self.parts.iter_mut().enumerate() {
                if let Poll::Ready(result) = Pin::new(&mut part.arriving).poll(context) {
                    return Poll::Ready((place, result));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Starts the copy of a part that has settled.
    fn hand_over(
        &mut self,
        (place, result): (usize, Result<(), ReadError>),
    ) -> Result<(), ReadError> {
        let fill = self
            .parts
            .remove(place)
            .and_then(|mut part| part.fill.take());
        result?;
        if let Some(fill) = fill {
            let range = fill.range();
            self.inbound.submit(fill)?;
            self.gpu.count(StagedWay::Land, range.end - range.start);
        }
        Ok(())
    }

    /// Until the GPU is done with every copy that was started.
    async fn copied(&mut self) -> Result<(), CopyError> {
        let begun = Instant::now();
        loop {
            match self.inbound.settle(Instant::now()) {
                Ok(()) => return Ok(()),
                Err(CopyError::TimedOut) if begun.elapsed() < HANGING => {
                    self.gpu.ticker().pause(begun).await;
                }
                Err(CopyError::TimedOut) => sleep(HANGING / 10).await,
                Err(error) => return Err(error),
            }
        }
    }
}

/// The first `bytes` bytes of the spans.
fn take(spans: &mut VecDeque<RemoteSpan>, mut bytes: u64) -> Vec<RemoteSpan> {
    let mut taken = Vec::new();
    while bytes > 0
        && let Some(span) = spans.front_mut()
    {
        let len = span.len.min(bytes);
        if len > 0 {
            taken.push(RemoteSpan { len, ..*span });
        }
        span.offset += len;
        span.len -= len;
        bytes -= len;
        if span.len == 0 {
            spans.pop_front();
        }
    }
    taken
}

#[cfg(test)]
#[path = "staged_tests.rs"]
mod tests;
