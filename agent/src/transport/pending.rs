//! A read under way, as its caller and as its transport hold it.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::ReadError;

/// How a transport is told that nobody waits for a read any more.
pub trait CancelRead: Send + Sync {
    /// Makes the read settle soon. May be called at any time, any number of times.
    fn cancel(&self);
}

impl CancelRead for CancellationToken {
    fn cancel(&self) {
        Self::cancel(self);
    }
}

/// A read under way. Resolves when it has settled. Dropping it cancels, but then nobody knows when the
/// local spans are free again: keep them until it has resolved.
pub struct PendingRead {
    result: oneshot::Receiver<Result<(), ReadError>>,
    cancel: Option<Arc<dyn CancelRead>>,
}

/// The transport's end. Dropping it resolves the read as cancelled, so drop it only once settled.
pub struct Completion(oneshot::Sender<Result<(), ReadError>>);

impl PendingRead {
    /// The two ends of a new read.
    #[must_use]
    pub fn new(cancel: Arc<dyn CancelRead>) -> (Self, Completion) {
        let (sender, result) = oneshot::channel();
        let pending = Self {
            result,
            cancel: Some(cancel),
        };
        (pending, Completion(sender))
    }

    /// A read that ended before it began.
    #[must_use]
    pub fn settled(result: Result<(), ReadError>) -> Self {
        let (sender, receiver) = oneshot::channel();
        // The receiver is right here, so this cannot fail.
        let _ = sender.send(result);
        Self {
            result: receiver,
            cancel: None,
        }
    }

    /// Asks the transport to settle it soon.
    pub fn cancel(&self) {
        if let Some(cancel) = &self.cancel {
            cancel.cancel();
        }
    }

    /// A handle that cancels it from elsewhere.
    #[must_use]
    pub fn canceller(&self) -> Option<Arc<dyn CancelRead>> {
        self.cancel.clone()
    }
}

impl Completion {
    /// The read has settled with this result.
    pub fn settle(self, result: Result<(), ReadError>) {
        // A caller that went away does not want to know.
        let _ = self.0.send(result);
    }
}

impl Future for PendingRead {
    type Output = Result<(), ReadError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let result = ready!(Pin::new(&mut self.result).poll(context));
        self.cancel = None;
        Poll::Ready(result.unwrap_or(Err(ReadError::Cancelled)))
    }
}

impl Drop for PendingRead {
    fn drop(&mut self) {
        self.cancel();
    }
}
