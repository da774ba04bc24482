//! The stream back to a caller: a bounded queue, and an end that overtakes it.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tonic::Status;

/// What a caller is sent. An error overtakes what is queued: after it nothing queued matters.
#[derive(Debug)]
pub(crate) struct Outbound<M> {
    messages: mpsc::Receiver<M>,
    /// None once it has spoken, or can't any more.
    close: Option<oneshot::Receiver<Status>>,
    ended: bool,
}

impl<M> Outbound<M> {
    pub(super) fn new(messages: mpsc::Receiver<M>, close: oneshot::Receiver<Status>) -> Self {
        Self {
            messages,
            close: Some(close),
            ended: false,
        }
    }
}

impl<M> Stream for Outbound<M> {
    type Item = Result<M, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(close) = &mut self.close {
            match Pin::new(close).poll(cx) {
                Poll::Ready(Ok(status)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(status)));
                }
                // Dropped without a word: the queue is sent, then the stream ends well.
                Poll::Ready(Err(_)) => self.close = None,
                Poll::Pending => {}
            }
        }
        self.messages.poll_recv(cx).map(|message| message.map(Ok))
    }
}
